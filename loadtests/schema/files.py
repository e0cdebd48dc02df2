"""The JSON files of a campaign, as types: campaign.json, calibration.json and each case's run.json.

The meaning of a key is beside its type, and the page of the results format lists it. Optional keys
are null.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, NotRequired, TypedDict, get_type_hints

JsonObject = dict[str, Any]  # parsed JSON, or an object to write as JSON


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
        """The server with its chosen options and its side of a gate: another choice is another
        architecture.
        """
        return system_label(self.server, self.options, self.side)

    @property
    def folder(self) -> str:
        label = self.label.replace(" ", ".")
        return f"{self.index:03d}-{label}-{self.engine}-{self.scenario}-r{self.repetition}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class SearchedSystem:
    """A system whose capacity is searched."""

    server: str
    options: dict[str, str]
    engine: str
    scenario: str


@dataclass(frozen=True)
class CapacitySearch:
    """campaign.json's "search": the input of --find-capacity. `slo` and `duration_s` are from the
    command line; `estimates` and `saturation` are by scenario.
    """

    slo: str
    duration_s: float | None
    estimates: dict[str, float]
    saturation: dict[str, str]
    systems: list[SearchedSystem]


@dataclass(frozen=True)
class GatedSystem:
    """A system that a gate compares, with its load."""

    server: str
    engine: str
    scenario: str
    users: int | None
    rate: float | None
    duration_s: float
    options: dict[str, str]


@dataclass(frozen=True)
class PairedGate:
    """campaign.json's "gate". `sides` describes base and head in words; `systems` is empty until
    the campaign is planned; the rest are the rules from the command line.
    """

    sides: dict[str, str]
    seed: int
    metrics: str
    tolerance: list[str]
    slo: str
    max_minutes: float
    systems: list[GatedSystem] = field(default_factory=list)


class MachineShare(TypedDict):
    """The cores of the servers and of the load generator, and their threads and processes."""

    server_cores: list[int]
    load_cores: list[int]
    shared: bool  # both lists are the same cores
    threads: int
    workers: NotRequired[int]
    load_workers: NotRequired[int]


@dataclass(frozen=True)
class CampaignFile:
    """campaign.json: written once, when the campaign starts."""

    schema: Annotated[int, "version of this schema"]
    name: Annotated[str, "the folder's name"]
    created_utc: Annotated[str, "wall-clock time of the campaign's start, ISO 8601"]
    command: Annotated[
        list[str],
        "arguments of `python -m loadtests`, including those of a `--config` file, without secrets",
    ]
    seed: Annotated[int, "seed of prompts, arrivals and the order of cases"]
    model: Annotated[
        JsonObject,
        "{name, path, planted, shape}; planted: whether it is the known-answer model, whose every "
        "response is checked by the oracle; shape: {parameters, embedding_parameters (of the table "
        "of input embeddings), tied_embeddings (whether that table is also the output head), "
        "layers, heads, kv_heads, head_dim, dtype_bytes (of weights, keys and values)}; shape is "
        "null if the model is not a dense decoder, was not on this machine, or if no engine needed "
        "its weights; absent in older campaigns",
    ]
    scenarios: Annotated[
        dict[str, JsonObject], "the tables of the campaign's scenarios, verbatim, by name"
    ]
    simulated: Annotated[dict[str, float], "parameters of the simulated engine: ms and counts"]
    machine_share: Annotated[
        MachineShare,
        "{server_cores, load_cores, shared, threads, workers, load_workers}: the cores of the "
        "servers and of the load generator; shared: both have the same cores; threads: of an "
        "engine, over all its workers; load_workers: processes that send the load",
    ]
    search: Annotated[
        CapacitySearch | None,
        "of --find-capacity: {slo, duration_s (from --duration), estimates ({scenario: requests/s "
        "or users at which the search starts}), saturation ({scenario: the scenario of its first "
        "case, whose throughput starts the search}), systems ([{server, options, engine, "
        "scenario}] to search)}; null otherwise: then there is a plan",
    ]
    gate: Annotated[
        PairedGate | None,
        "of a gate: {sides ({base, head} in words), systems ([{server, engine, scenario, users, "
        "rate, duration_s, options}] to compare), seed (of the order of base and head), metrics, "
        "tolerance, slo, max_minutes (as given)}; null otherwise (absent in older campaigns)",
    ]
    plan: Annotated[list[Case], 'the cases in their planned order, each as in run.json\'s "case"']
    manifest: Annotated[
        JsonObject,
        "commit, dirty, python, packages, torch_cuda, cpu, memory, kernel, gpus, limits, "
        "environment",
    ]
    max_errors: Annotated[
        float | None,
        "from --max-errors: the share of failed requests above which a case is invalid; null "
        "(absent in older campaigns) means 0.05",
    ] = None
    targets: Annotated[
        dict[str, JsonObject],
        "of --target, or of a gate between URLs: {name: {url, model, headers (names only), body "
        "(fields from --body)}}, without secrets; empty otherwise (absent in older campaigns)",
    ] = field(default_factory=dict)
    prompts: Annotated[
        JsonObject | None,
        "of --prompts: {file (its name), sha256, form, column (as named after the file), prompts"
        " (in the file; a conversation is one), requests (with each turn), kept (the sample of a"
        " larger file that the campaign uses), left_out (conversations without a question)}; null"
        " for generated prompts; absent in older campaigns",
    ] = None
    engine_device: Annotated[
        JsonObject | None,
        "{type, dtype, devices, torch, torch_cuda}: where the engines of this machine must "
        "compute; type: cuda or cpu; dtype: of weights, keys and values; devices: [{index, name, "
        "uuid, capability, total_bytes}] on which torch computed before the first "
        "case, as it numbers them; torch_cuda: the CUDA version that torch was built for; null "
        "if no engine of ours computes here; absent in older campaigns",
    ] = None

    def to_json(self) -> JsonObject:
        return asdict(self)


@dataclass(frozen=True)
class Stage:
    """A stage of a case. Times are on the rows' clock."""

    name: str
    start_s: float
    end_s: float


@dataclass
class CaseFile:
    """run.json: written when the case starts, and again when it has ended."""

    schema: Annotated[int, "version of this schema"]
    case: Annotated[
        Case,
        "{index, server, engine, scenario, repetition, users, rate, duration_s, options, side}: "
        "the identity; users or rate (requests/s) is null; options: {name: value} of the server "
        "from --set; side: in a gate, the code that ran: base, head, or control (base again); "
        "empty otherwise (absent in older campaigns)",
    ]
    status: Annotated[str, "running, ok, 'failed: STAGE: REASON' or 'skipped: REASON'"]
    started_utc: Annotated[str, "wall-clock time of the case's start, ISO 8601"]
    clock_zero_s: Annotated[
        float, "monotonic clock at the case's start; the zero of every *_s in its rows"
    ]
    summary: Annotated[str | None, "the summary in the server's server.toml"] = None
    family: Annotated[
        str | None,
        "the family in the server's server.toml; null for --target, absent in older campaigns",
    ] = None
    command: Annotated[
        list[str] | None, "the command that started the server; null for --target"
    ] = None
    environment: Annotated[
        dict[str, str] | None,
        "{name: value} of the variables that Serveoff set for the server, of the kinds in the"
        " manifest's environment; null for --target; absent in older campaigns",
    ] = None
    stages: Annotated[list[Stage], "[{name, start_s, end_s}] in the order in which they ran"] = (
        field(default_factory=list)
    )
    gpus: Annotated[
        list[int] | None,
        "NVML's indices of the GPUs that the server uses: where NVML saw its processes during the "
        "load, otherwise the first of those that it sees (CUDA_VISIBLE_DEVICES), as many as its "
        "engine takes; [] if its engine uses none; null if unknown, as with --target; absent in "
        "older campaigns; if null or absent, the numbers are of all GPUs; with --gpu-metrics, the "
        "cards of server_machine.gpus; [] if the server runs on another machine without them",
    ] = None
    server_machine: Annotated[
        JsonObject | None,
        "{here, hidden, gpu_exporters, gpus, host_exporter, cores, memory_bytes}: here: whether the"
        " server runs on the machine of the manifest: Serveoff started it, or its URL has an"
        " address of this machine; hidden: gpu or host if that option is none; gpu_exporters,"
        " host_exporter: the URLs of --gpu-metrics and --host-metrics, whose values then fill the"
        " columns; gpus: [{index, gpu, uuid, name, memory_bytes}] of these exporters, where gpu is"
        " their own number; cores, memory_bytes: of the server's machine, by its exporter; absent"
        " in older campaigns",
    ] = None
    startup_s: Annotated[
        float | None, "from the start of the process to the first 200 of /health; null for --target"
    ] = None
    warmup: Annotated[
        JsonObject | None,
        "{took_s, steady, why}: its length, and the result of the test for a steady state at its "
        "end (loadtests/generator/steady_state.py); steady is null if that was not tested",
    ] = None
    load_workers: Annotated[
        list[JsonObject],
        "[{worker, rows, reader, cpu_share, waited_share, stalls, offset_s, estimated_offset_s, "
        "round_trip_s}]: the processes that sent the load; reader: c or python, the reader of "
        "its sockets (loadtests/client/reader.py; absent in older campaigns: python); cpu_share, "
        "waited_share: the shares of the window in which it computed, and in which it waited for "
        "a core; stalls: [[start_s, end_s]] in which it read nothing for 10 ms or longer, on the "
        "rows' clock (absent in older campaigns); offset_s: its clock minus the coordinator's, 0 "
        "if both are the same clock; estimated_offset_s: the estimate from the quickest round "
        "trip, off by at most half of round_trip_s",
    ] = field(default_factory=list)
    window: Annotated[
        JsonObject | None,
        "{start_s, end_s}: the measured part of the load, on the rows' clock; null if the load "
        "never ran",
    ] = None
    profile: Annotated[
        JsonObject | None,
        "the findings about an endpoint that is not checked strictly"
        " (servers/profile/profile.py): {base_url, dialect, model, models, endpoints, fields,"
        " usage, tokens_per_chunk, reasoning, early_chunks, repeats_alone, repeats_under_load,"
        " tokens_per_word, template_tokens, context, metrics, notes, lengths (as in prompt_lengths,"
        " of this server)}; null otherwise; absent in older campaigns",
    ] = None
    prompt_lengths: Annotated[
        JsonObject | None,
        "{source, words, per_word, chat, completion, system, turn, context}: the lengths with which"
        " prompts were made, the same for all servers of a model; source: known-answer model (a"
        " word is one token), tokenizer (the model's), /tokenize (the server's),"
        " usage.prompt_tokens (measured), or assumed (one token per word); words: number of"
        " different ones; per_word: tokens of a word; chat, completion, system, turn: tokens that"
        " the server adds to a user's message, to a prompt, further ones to a system message, and"
        " to each earlier question and response; context: most tokens of prompt and response, null"
        " if unknown; null if the load never ran; absent in older campaigns",
    ] = None
    verify_before: Annotated[
        list[JsonObject] | None,
        "[{name, ok, detail, notes}]: checks of the contract before the load (no notes in older "
        "campaigns); null if not reached",
    ] = None
    verify_after: Annotated[list[JsonObject] | None, "the same after the load"] = None
    counts: Annotated[
        dict[str, int | None] | None,
        "{sent, rows, locust_requests, locust_failures, cut_off, planned}; sent, rows and "
        "locust_requests must agree; cut_off: requests that were incomplete when the drain ended; "
        "planned: requests that an open loop scheduled in the window, otherwise null",
    ] = None
    served: Annotated[
        dict[str, int] | None,
        "{requests, tokens}: the server's own counts between the load's start and end, from its "
        "/metrics: requests to the completion paths with status 200, and generated tokens; without "
        "requests if it does not count them (llama.cpp); null if it does not report tokens",
    ] = None
    devices: Annotated[
        list[JsonObject] | None,
        "[{type, name, uuid, dtype, source}]: where the processes of the server's engines "
        "computed; type: cuda or cpu; source: 'engine' if the engine reported where its weights "
        "are, 'start' if its server was started for this device; null if unknown, as with "
        "--target; absent in older campaigns",
    ] = None
    agreement: Annotated[
        JsonObject | None,
        "{with, share}: for a model other than the known-answer model, the share of fixed prompts "
        "with the same response as from the campaign's first server; null otherwise",
    ] = None
    notes: Annotated[
        list[str], "sentences for the report, such as 'no NVIDIA GPU: GPU columns are null'"
    ] = field(default_factory=list)

    def to_json(self) -> JsonObject:
        return asdict(self)


# A case is invalid if the load generator may have changed a value by more than the first share, or
# if the P99 of its send lag exceeds both the time and the share of the median E2E.
CLIENT_ERROR_BOUND = 0.05
SEND_LAG_BOUND_S, SEND_LAG_BOUND_SHARE = 0.005, 0.01


class CalibrationFile(TypedDict):
    """calibration.json."""

    schema: Annotated[int, "version of this schema"]
    users: Annotated[
        int | None,
        "the campaign's largest number of users, at which `closed` was measured; null without "
        "closed loops",
    ]
    rate: Annotated[
        float | None,
        "the campaign's highest rate, at which `open` was measured, requests/s; null without "
        "open loops",
    ]
    closed: Annotated[
        JsonObject | None,
        "errors against a server whose times are known: {requests, failed, ttft_error_mean_s, "
        "ttft_error_p99_s (TTFT from scheduled, like every TTFT here, minus the server's true "
        "TTFT), ttft_from_sent_error_mean_s, ttft_from_sent_error_p99_s (the same from sent), "
        "stamp_error_mean_s, stamp_error_p99_s (the first token's arrival minus the time at "
        "which the server sent it), itl_error_p99_s (of single gaps), itl_true_p50_s, "
        "itl_true_p99_s, itl_seen_p50_s, itl_seen_p99_s, send_lag_p50_s, send_lag_p99_s, "
        "events_per_s, cpu_per_event_s (CPU time of the load workers), waited_share, "
        "server_late_mean_s}",
    ]
    open: Annotated[JsonObject | None, "the same for an open loop"]
    ladder: Annotated[
        list[JsonObject],
        "[{asked_per_s, sent_per_s, seen_per_s, gap_p99_s, gap_p99_seen_s, server_kept_up, "
        "sustained}]: events per second, step by step; sustained: the server sent them, and "
        "the load generator saw events and P99 of the gaps within 10%",
    ]
    sustained_events_per_s: Annotated[
        float, "the last step up to which every step was sustained; 0 if the first was not"
    ]


def key_meanings(file: type) -> dict[str, str]:
    """Returns the meaning of each key of one of these files."""
    hints = get_type_hints(file, include_extras=True)
    return {key: hint.__metadata__[0] for key, hint in hints.items()}


CAMPAIGN_KEYS = key_meanings(CampaignFile)
RUN_KEYS = key_meanings(CaseFile)
CALIBRATION_KEYS = key_meanings(CalibrationFile)
