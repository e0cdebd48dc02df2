"""The results schema: every key on disk, its type, unit and meaning. Standard library only;
computes no statistic.

History
    1  (0.1.0) first version

A campaign is a folder:

    campaign.json         what was asked, where, with which versions (CAMPAIGN_KEYS)
    calibration.json      the load generator's own errors here, measured before the first case
                          (CALIBRATION_KEYS)
    cases/NNN-SERVER-ENGINE-SCENARIO-rN/
        run.json          state and identity of the case (RUN_KEYS); "running" until it ends
        requests.jsonl    one line a request while the case runs; requests.parquet at its end
                          (REQUEST_FIELDS)
        telemetry.jsonl   likewise telemetry.parquet (TELEMETRY_FIELDS)
        server_metrics.jsonl    the text of each GET /metrics; at the end server_metrics.parquet
                                (SERVER_METRICS_FIELDS)
        server.log  load.log    output of the processes; server.NAME.log: a server's other
                                processes, and servers behind it
    attempts/NNN-....N/   likewise, what a case left that was killed, interrupted or failed, and
                          was then run again
    report.html  report.md  figures/  notebooks/    made by analysis, at any time, from the above

Identity is data (run.json's "case"), never parsed from a path. Missing is null, zero is zero. Times
called `*_s` in the rows are seconds of one machine-wide monotonic clock since `clock_zero_s` of
run.json; the wall clock appears only as `*_utc`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

SCHEMA = 1


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
        "arrival of the first chunk that carries a generated token; null if none came",
    ),
    "last_s": Field(
        "float64",
        "s",
        "arrival of the last chunk that carries a generated token; null if none came",
    ),
    "done_s": Field("float64", "s", "the answer's end, or when it was given up"),
    "http_status": Field("int64", "", "null if no status line came"),
    "error": Field(
        "string",
        "",
        "null if complete; else one reason, such as 'http 503', 'timeout', 'stream ended without"
        " [DONE]'",
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

CAMPAIGN_KEYS = {
    "schema": "version of this schema",
    "name": "the folder's name",
    "created_utc": "ISO 8601; the only wall-clock time of the measurements",
    "command": "arguments of `python -m loadtests`",
    "seed": "of prompts, arrivals and the order of cases",
    "model": (
        "{name, path, planted, shape}: planted = every answer is checked against the planted rule;"
        " shape: {parameters, embedding_parameters (of the table of input embeddings),"
        " tied_embeddings (it is the output head, too), layers, heads, kv_heads, head_dim,"
        " dtype_bytes (of weights, keys and values)}, null if it is no dense decoder, was not on"
        " this machine, or if no engine needed its weights; absent in older campaigns"
    ),
    "scenarios": "the tables of scenarios.toml that were used, verbatim",
    "simulated": "parameters of the simulated engine, ms and counts",
    "machine_share": (
        "{server_cores, load_cores, shared, threads, workers, load_workers}: who may run where;"
        " threads: of an engine, over all its workers; load_workers: processes that send the load"
    ),
    "search": (
        "of --find-capacity: {slo, duration_s (of --duration), estimates ({scenario: requests/s or"
        " users to begin with}), saturation ({scenario: that of the first case, whose throughput is"
        " where the search begins}), systems ([{server, options, engine, scenario}] that are"
        " searched for)}; null otherwise, and then there is a plan"
    ),
    "gate": (
        "of a gate: {sides: {base, head} in words, systems ([{server, engine, scenario, users,"
        " rate, duration_s, options}] that are compared), seed (of which side comes first),"
        " metrics, tolerance, slo, max_minutes (as they were given)}; null (or absent, in older"
        " campaigns) otherwise"
    ),
    "plan": 'the cases in the order in which they were planned, each as in run.json\'s "case"',
    "manifest": "commit, dirty, python, packages, cpu, memory, kernel, gpus, limits, environment",
}
CALIBRATION_KEYS = {
    "schema": "version of this schema",
    "users": (
        "the campaign's largest number of users, at which `closed` was measured; null without"
        " closed loops"
    ),
    "rate": (
        "the campaign's highest rate, at which `open` was measured, 1/s; null without open loops"
    ),
    "closed": (
        "errors against a server whose times are known: {requests, failed, ttft_error_mean_s,"
        " ttft_error_p99_s (measured from scheduled, as every TTFT here is, minus what the server"
        " did), ttft_from_sent_error_mean_s, ttft_from_sent_error_p99_s (likewise from sent),"
        " stamp_error_mean_s, stamp_error_p99_s (first token seen minus sent), itl_error_p99_s (of"
        " single gaps), itl_true_p50_s, itl_true_p99_s, itl_seen_p50_s, itl_seen_p99_s,"
        " send_lag_p50_s, send_lag_p99_s, events_per_s, cpu_per_event_s (CPU time of the load"
        " workers), waited_share, server_late_mean_s}"
    ),
    "open": "likewise",
    "ladder": (
        "[{asked_per_s, sent_per_s, seen_per_s, gap_p99_s, gap_p99_seen_s, server_kept_up,"
        " sustained}]: events a second, step by step; sustained: the server sent them, and events"
        " and P99 of the gaps were seen within 10%"
    ),
    "sustained_events_per_s": (
        "the last step up to which all were sustained; 0 if not even the first"
    ),
}
RUN_KEYS = {
    "schema": "version of this schema",
    "case": (
        "{index, server, engine, scenario, repetition, users, rate, duration_s, options, side}: the"
        " identity; users or rate (1/s) is null; options: {name: value} of the server that were"
        " chosen by --set; side: of a gate, whose code it was: base, head, or control, which is"
        " base's again; empty (or absent, in older campaigns) otherwise"
    ),
    "status": "running, ok, 'failed: STAGE: REASON' or 'skipped: REASON'",
    "started_utc": "wall clock, for people",
    "clock_zero_s": "monotonic clock at the case's start; zero of every *_s in its rows",
    "summary": "the server's one line from its server.toml",
    "command": "how the server was started; null for --target",
    "stages": "[{name, start_s, end_s}] in the order in which they ran",
    "startup_s": "from the process's start to the first 200 of /health; null for --target",
    "warmup": (
        "{took_s, steady, why}: how long, and what the test of steadiness said at its end"
        " (loadtests/generator/steady_state.py); steady is null where the demand varies by plan"
    ),
    "load_workers": (
        "[{worker, rows, reader, cpu_share, waited_share, stalls, offset_s, estimated_offset_s,"
        " round_trip_s}]: processes that sent the load; reader: c or python, who read its streams"
        " (loadtests/client/reader.py; absent in older campaigns: python); shares of the window in"
        " which it computed, and in which it waited for a core; stalls: [[start_s, end_s]] in which"
        " Python did nothing for 10 ms or longer, clock as in the rows (absent in older campaigns);"
        " offset: its clock minus the driver's, 0 where it is the same clock, whatever the"
        " estimate, which is off by half the round trip at most"
    ),
    "window": (
        "{start_s, end_s}: the measured part of the load, clock as in the rows; null if load"
        " never ran"
    ),
    "verify_before": (
        "[{name, ok, detail}] checks of the contract before the load; null if not reached"
    ),
    "verify_after": "likewise after the load",
    "counts": (
        "{sent, rows, locust_requests, locust_failures}: must agree; cut_off: unanswered when the"
        " drain's bound came; planned: scheduled in the window by an open loop, else null"
    ),
    "served": (
        "{requests, tokens}: that the server itself counted between the load's begin and end, by"
        " its own /metrics: requests to the completion paths answered with status 200, and tokens"
        " answered; null if it does not say"
    ),
    "agreement": (
        "{with, share}: without planted rule: share of fixed prompts answered like the campaign's"
        " first server; else null"
    ),
    "notes": "sentences for the report, such as 'no NVIDIA GPU: GPU columns are null'",
}


def system_label(server: str, options: Mapping[str, str], side: str = "") -> str:
    return " ".join(
        [server, *(f"{name}={value}" for name, value in options.items()), *([side] if side else [])]
    )


@dataclass(frozen=True)
class Case:
    """One server x engine x scenario x repetition. `users` is set for a closed loop, `rate`
    (requests/s) for an open one.
    """

    index: int
    server: str
    engine: str
    scenario: str
    repetition: int
    users: int | None
    rate: float | None
    duration_s: float
    options: dict[str, str] = field(default_factory=dict)
    side: str = ""

    @property
    def label(self) -> str:
        """The server with what was chosen of its options, and whose code it is: another choice is
        another architecture.
        """
        return system_label(self.server, self.options, self.side)

    @property
    def folder(self) -> str:
        label = self.label.replace(" ", ".")
        return f"{self.index:03d}-{label}-{self.engine}-{self.scenario}-r{self.repetition}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """Replaces the file in one step: a reader, or a crash, sees the old text or the new one, never
    half.

    `durable` waits for the disk, which takes milliseconds: nothing that a measurement is waiting
    behind may do so. Nor may it indent: json does that in Python, and leaves cycles behind, which
    in the load generator nobody collects for half an hour.
    """
    partial = path.with_name(path.name + ".partial")
    text = json.dumps(value, indent=1 if durable else None, allow_nan=False)
    try:
        with partial.open("w") as handle:
            handle.write(text + "\n")
            handle.flush()
            if durable:
                os.fsync(handle.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON lines file. A last line that a killed process left unfinished is dropped."""
    return list(iterate_lines(path))


def iterate_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The same, one at a time."""
    with path.open("rb") as handle:
        for line in handle:
            try:
                row = json.loads(line)
            except ValueError:
                if line.endswith(b"\n"):
                    raise ValueError(f"{path} has a broken line: {line[:80]!r}") from None
            else:
                yield row
