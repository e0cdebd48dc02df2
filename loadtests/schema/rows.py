"""The rows of the tables: every column, its type, unit and meaning."""

from typing import NamedTuple


class Field(NamedTuple):
    type: str  # bool, int64, float64, string, or list<...>/struct of them, in Arrow's names
    unit: str
    meaning: str


REQUEST_FIELDS = {
    "request": Field(
        "int64", "", "position in the order in which this load worker sent them, from 0"
    ),
    "worker": Field("int64", "", "load worker that sent it"),
    "user": Field("int64", "", "user of a closed loop, null in an open one"),
    "scheduled_s": Field(
        "float64",
        "s",
        "when the arrival process wanted it sent; closed loop: when its user became free",
    ),
    "slot_s": Field(
        "float64",
        "s",
        "when the scenario's cap on concurrency (max_in_flight) let it go; null without one",
    ),
    "sent_s": Field(
        "float64",
        "s",
        "when the first byte of the request was written; null if no connection could be made",
    ),
    "first_s": Field(
        "float64",
        "s",
        "arrival of the first chunk that carries a generated token, visible or reasoning; null if"
        " none came",
    ),
    "last_s": Field(
        "float64",
        "s",
        "arrival of the last chunk that carries a generated token; null if none came",
    ),
    "first_visible_s": Field(
        "float64",
        "s",
        "arrival of the first chunk with text that is no reasoning; null if none came; absent in"
        " older campaigns",
    ),
    "done_s": Field("float64", "s", "the answer's end, or when it was given up"),
    "http_status": Field("int64", "", "null if no status line came"),
    "error": Field(
        "string", "", "null if complete; else one reason, such as 'http 503', 'timeout', 'no token'"
    ),
    "error_detail": Field(
        "string",
        "",
        "the server's own words about the error, 200 characters at most, secrets redacted; absent"
        " in older campaigns",
    ),
    "retry_after_s": Field(
        "float64", "s", "the server's Retry-After; null without one; absent in older campaigns"
    ),
    "resent": Field(
        "bool",
        "",
        "sent a second time, since a kept-alive connection closed before any response; absent in"
        " older campaigns",
    ),
    "answer": Field(
        "string", "", "exact, wrong, or unchecked (failed, or a model without the planted rule)"
    ),
    "prompt_tokens_asked": Field(
        "int64", "tokens", "length of the prompt as the load generator made it"
    ),
    "prompt_tokens": Field(
        "int64", "tokens", "the server's usage.prompt_tokens; null if it gave none"
    ),
    "max_tokens": Field(
        "int64", "tokens", "tokens asked for (with ignore_eos, so exactly as many must come)"
    ),
    "tokens": Field(
        "int64", "tokens", "the server's usage.completion_tokens; null if it gave none"
    ),
    "reasoning_tokens": Field(
        "int64",
        "tokens",
        "those of `tokens` that are reasoning: by usage if it says so, else by the chunks; absent"
        " in older campaigns",
    ),
    "tokens_counted": Field(
        "int64",
        "tokens",
        "our own count: the words of the known-answer model's text, else the chunks that carry"
        " text; absent in older campaigns",
    ),
    "token_source": Field(
        "string",
        "",
        "where token_n is from: continuous (usage in each chunk), usage (spread over the chunks in"
        " proportion to their text), or counted (no credible usage); absent in older campaigns",
    ),
    "finish_reason": Field("string", "", "as the server gave it"),
    "token_s": Field("list<float64>", "s", "arrival of each chunk that carries tokens"),
    "token_n": Field("list<int64>", "tokens", "tokens in each of those chunks"),
    "bytes": Field("int64", "bytes", "length of the answer's body"),
    "reads": Field(
        "int64", "", "reads of the socket that brought it; fewer than chunks if some came together"
    ),
    "read_lag_mean_s": Field(
        "float64",
        "s",
        "how much later than the kernel's stamp a read was seen; 0 where there are no stamps",
    ),
    "read_lag_max_s": Field(
        "float64",
        "s",
        "likewise the worst of the reads; the arrivals above are the kernel's and do not contain "
        "it, but TCP merges what is not read, and what came together has the last one's",
    ),
    "queue_ms": Field(
        "float64",
        "ms",
        "server's timings: waiting before the engine began with it; null if not given",
    ),
    "prompt_ms": Field(
        "float64", "ms", "server's timings: from the engine's begin to the first token"
    ),
    "predicted_ms": Field("float64", "ms", "server's timings: from the first token to the last"),
}

# Counters (`*_total`, cpu_s, energy_j) only ever rise within a case, also when a process of the
# tree ends.
PROCESS_FIELDS = {
    "processes": Field("int64", "", "processes of the tree"),
    "threads": Field("int64", "", "threads of the tree"),
    "cpu_s": Field("float64", "s", "user + system CPU time of the tree so far"),
    "pss_bytes": Field(
        "int64", "bytes", "proportional set size of the tree, once a second; null between"
    ),
    "context_switches_total": Field("int64", "", "voluntary + involuntary"),
}
GPU_FIELDS = {
    "index": Field("int64", "", "NVML's index"),
    "utilization_percent": Field("float64", "%", "share of time in which at least one kernel ran"),
    "memory_used_bytes": Field("int64", "bytes", "of the whole device"),
    "power_w": Field("float64", "W", ""),
    "energy_j": Field("float64", "J", "NVML's counter since the driver was loaded"),
    "sm_clock_mhz": Field("float64", "MHz", ""),
    "temperature_c": Field("float64", "C", ""),
    "throttle_reasons": Field("int64", "", "NVML's bit mask"),
    "memory_clock_mhz": Field("float64", "MHz", "absent in older campaigns, as are the following"),
    "pcie_rx_bytes_per_s": Field(
        "float64", "bytes/s", "into the card, over the last 20 ms, once a second; null between"
    ),
    "pcie_tx_bytes_per_s": Field("float64", "bytes/s", "likewise out of it"),
    "server_memory_bytes": Field(
        "int64",
        "bytes",
        "of the server's processes, once a second; null between, and where the driver does not "
        "say, or names them by other numbers than we see, as to a container",
    ),
}
TELEMETRY_FIELDS = {
    "time_s": Field("float64", "s", "when the sample was taken"),
    "server": Field("struct", "", f"the server's process tree: {', '.join(PROCESS_FIELDS)}"),
    "load": Field("struct", "", "the load generator's process tree, likewise"),
    "cpu_busy_s": Field(
        "float64",
        "s",
        "all cores: time not idle, not waiting for a disk, steal not counted, since boot",
    ),
    "cpu_steal_s": Field("float64", "s", "all cores: time taken by the hypervisor since boot"),
    "load_average": Field("float64", "", "1 minute"),
    "memory_available_bytes": Field("int64", "bytes", ""),
    "swap_used_bytes": Field("int64", "bytes", ""),
    "gpus": Field(
        "list<struct>", "", f"one for each GPU: {', '.join(GPU_FIELDS)}; empty without one"
    ),
}

# Long form: a row for each sample of each scrape, in the order in which the server gives them.
SERVER_METRICS_FIELDS = {
    "time_s": Field(
        "float64",
        "s",
        "when the server was asked; its answer is of a moment between this and took_s later",
    ),
    "took_s": Field("float64", "s", "until the answer was complete, or was given up"),
    "name": Field(
        "string", "", "as in the server's GET /metrics; null if this scrape brought nothing"
    ),
    "labels": Field("string", "", "a JSON object"),
    "value": Field("float64", "", ""),
}
