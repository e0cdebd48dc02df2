"""The rows of the tables: every column, its type, unit and meaning."""

from typing import NamedTuple


class Field(NamedTuple):
    type: str  # bool, int64, float64, string, or list<...>/struct of them, in Arrow's names
    unit: str
    meaning: str


REQUEST_FIELDS = {
    "request": Field(
        "int64", "", "position among the requests of this load worker as it sent them, from 0"
    ),
    "worker": Field("int64", "", "load worker that sent the request"),
    "user": Field("int64", "", "user of a closed loop; null in an open loop"),
    "scheduled_s": Field(
        "float64",
        "s",
        "scheduled time of the arrival process; in a closed loop, when the user became free",
    ),
    "slot_s": Field(
        "float64",
        "s",
        "when it got a slot under the scenario's cap on concurrency (max_in_flight); null without"
        " one",
    ),
    "sent_s": Field(
        "float64",
        "s",
        "when the first byte of the request was written; null if no connection could be made",
    ),
    "first_s": Field(
        "float64",
        "s",
        "arrival of the first chunk with a generated token, visible or reasoning; null without one",
    ),
    "last_s": Field(
        "float64", "s", "arrival of the last chunk with a generated token; null without one"
    ),
    "first_visible_s": Field(
        "float64",
        "s",
        "arrival of the first chunk with text that is not reasoning; null without one; absent in"
        " older campaigns",
    ),
    "done_s": Field("float64", "s", "end of the response, or when the client gave up"),
    "http_status": Field("int64", "", "null without a status line"),
    "error": Field(
        "string",
        "",
        "null if the response is complete; otherwise one reason, such as 'http 503', 'timeout', 'no"
        " token'",
    ),
    "error_detail": Field(
        "string",
        "",
        "the server's own message about the error, at most 200 characters, secrets redacted; absent"
        " in older campaigns",
    ),
    "retry_after_s": Field(
        "float64", "s", "the server's Retry-After; null without one; absent in older campaigns"
    ),
    "resent": Field(
        "bool",
        "",
        "whether it was sent again because a kept-alive connection closed before any response;"
        " absent in older campaigns",
    ),
    "connect_s": Field(
        "float64",
        "s",
        "to open a connection for the request, TLS included, before `sent_s`; null on an open one;"
        " absent in older campaigns",
    ),
    "answer": Field(
        "string", "", "exact, wrong, or unchecked (failed, or not the known-answer model)"
    ),
    "prompt_tokens_asked": Field(
        "int64",
        "tokens",
        "length of the prompt that the load generator made, in the server's tokens (run.json's"
        " prompt_lengths has their source); null if it is unknown, as of prompts from a file",
    ),
    "prompt_tokens": Field("int64", "tokens", "the server's usage.prompt_tokens; null without it"),
    "max_tokens": Field(
        "int64", "tokens", "requested tokens; with ignore_eos, exactly as many must come"
    ),
    "tokens": Field("int64", "tokens", "the server's usage.completion_tokens; null without it"),
    "reasoning_tokens": Field(
        "int64",
        "tokens",
        "reasoning tokens among `tokens`: from usage if it has them, otherwise from the chunks;"
        " absent in older campaigns",
    ),
    "tokens_counted": Field(
        "int64",
        "tokens",
        "our own count: words of the known-answer model's text, otherwise chunks with text, or an"
        " estimate from the text if chunks hold several tokens; absent in older campaigns",
    ),
    "token_source": Field(
        "string",
        "",
        "source of token_n: continuous (usage in each chunk), usage (spread over the chunks in"
        " proportion to their text), or counted (no credible usage); absent in older campaigns",
    ),
    "finish_reason": Field("string", "", "the server's finish_reason"),
    "token_s": Field("list<float64>", "s", "arrival of each chunk that carries tokens"),
    "token_n": Field("list<int64>", "tokens", "tokens in each of those chunks"),
    "bytes": Field("int64", "bytes", "length of the response's body"),
    "reads": Field(
        "int64",
        "",
        "reads of the socket for this response; fewer than chunks if some arrived together",
    ),
    "read_lag_mean_s": Field(
        "float64",
        "s",
        "mean time from the kernel's stamp of a read until we saw it; 0 without stamps",
    ),
    "read_lag_max_s": Field(
        "float64",
        "s",
        "longest such time; the arrivals above are the kernel's and do not contain it, but TCP "
        "merges unread chunks, and merged chunks all have the arrival of the last",
    ),
    "queue_ms": Field(
        "float64",
        "ms",
        "from the server's timings: wait until the engine started the request; null if not given",
    ),
    "prompt_ms": Field(
        "float64", "ms", "from the server's timings: from the engine's start to the first token"
    ),
    "predicted_ms": Field(
        "float64", "ms", "from the server's timings: from the first token to the last"
    ),
}

# Counters (`*_total`, cpu_s, energy_j) never fall within a case, even when a process of the tree
# ends.
PROCESS_FIELDS = {
    "processes": Field("int64", "", "processes of the tree"),
    "threads": Field("int64", "", "threads of the tree"),
    "cpu_s": Field("float64", "s", "user + system CPU time of the tree so far"),
    "pss_bytes": Field(
        "int64", "bytes", "proportional set size of the tree, once per second; null in between"
    ),
    "context_switches_total": Field("int64", "", "voluntary + involuntary"),
    "waited_s": Field(
        "float64",
        "s",
        "time in which its threads were ready to run but had no core so far, summed over the"
        " threads; null where the system does not count it; absent in older campaigns",
    ),
}
GPU_FIELDS = {
    "index": Field("int64", "", "NVML's index, or that in run.json's server_machine.gpus"),
    "utilization_percent": Field("float64", "%", "share of time in which at least one kernel ran"),
    "memory_used_bytes": Field(
        "int64", "bytes", "of the whole device; of a DCGM exporter, without the driver's reserve"
    ),
    "power_w": Field("float64", "W", ""),
    "energy_j": Field("float64", "J", "the counter of NVML or of the exporter"),
    "sm_clock_mhz": Field("float64", "MHz", ""),
    "temperature_c": Field("float64", "C", ""),
    "throttle_reasons": Field("int64", "", "NVML's bit mask; null with AMD's exporter"),
    "memory_clock_mhz": Field("float64", "MHz", "absent in older campaigns, as are the following"),
    "pcie_rx_bytes_per_s": Field(
        "float64", "bytes/s", "into the card, over 20 ms, once per second; null in between"
    ),
    "pcie_tx_bytes_per_s": Field("float64", "bytes/s", "the same out of the card"),
    "server_memory_bytes": Field(
        "int64",
        "bytes",
        "of the server's processes, once per second; null in between, and where the driver does "
        "not report it or uses other process ids than ours, as in a container",
    ),
}
TELEMETRY_FIELDS = {
    "time_s": Field("float64", "s", "time of the sample"),
    "server": Field("struct", "", f"the server's process tree: {', '.join(PROCESS_FIELDS)}"),
    "load": Field("struct", "", "the load generator's process tree, with the same fields"),
    "cpu_busy_s": Field(
        "float64",
        "s",
        "all cores since boot: time that is neither idle, nor waiting for a disk, nor steal",
    ),
    "cpu_steal_s": Field("float64", "s", "all cores since boot: time taken by the hypervisor"),
    "load_average": Field("float64", "", "over 1 minute"),
    "memory_available_bytes": Field("int64", "bytes", ""),
    "swap_used_bytes": Field("int64", "bytes", ""),
    "server_cores_busy_s": Field(
        "float64",
        "s",
        "the server's cores since boot: time in which they ran processes, without interrupts; null"
        " without a server of ours, where the cores' numbers are unknown, and if the sampling was"
        " interrupted; absent in older campaigns, as is the next",
    ),
    "server_cores_steal_s": Field(
        "float64", "s", "the server's cores since boot: time taken by the hypervisor"
    ),
    "client_steal_s": Field(
        "float64",
        "s",
        "all cores of the load generator's machine since boot: time taken by the hypervisor; null"
        " if it is the server's machine; absent in older campaigns",
    ),
    "gpus": Field("list<struct>", "", f"one per GPU: {', '.join(GPU_FIELDS)}; empty without a GPU"),
}

# Long form: one row per sample of each scrape, in the server's order.
SERVER_METRICS_FIELDS = {
    "time_s": Field(
        "float64",
        "s",
        "time of the scrape; its values are from a moment between this and took_s later",
    ),
    "took_s": Field("float64", "s", "until the response was complete, or until we gave up"),
    "name": Field("string", "", "as in the server's GET /metrics; null if this scrape failed"),
    "labels": Field("string", "", "a JSON object"),
    "value": Field("float64", "", ""),
}
