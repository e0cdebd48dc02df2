"""The JSON files of a campaign, as types: campaign.json, calibration.json and each case's run.json.

A key's meaning stands beside its type; results/README.md lists them. Optional keys are null.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, NotRequired, TypedDict, get_type_hints

JsonObject = dict[str, Any]  # parsed JSON, or what is about to be written as JSON


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


@dataclass(frozen=True)
class SearchedSystem:
    """A system whose capacity is searched for."""

    server: str
    options: dict[str, str]
    engine: str
    scenario: str


@dataclass(frozen=True)
class CapacitySearch:
    """campaign.json's "search": what --find-capacity looks for. `slo` and `duration_s` are those of
    the command line; `estimates` and `saturation` are by scenario.
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
    """campaign.json's "gate". `sides` are base and head in words; `systems` is empty until the
    campaign is planned; the rest are the rules, as they stand on the command line.
    """

    sides: dict[str, str]
    seed: int
    metrics: str
    tolerance: list[str]
    slo: str
    max_minutes: float
    systems: list[GatedSystem] = field(default_factory=list)


class MachineShare(TypedDict):
    """Which cores the servers and the load generator get, and how many threads and processes."""

    server_cores: list[int]
    load_cores: list[int]
    shared: bool  # both lists are the same cores
    threads: int
    workers: NotRequired[int]
    load_workers: NotRequired[int]


@dataclass(frozen=True)
class CampaignFile:
    """campaign.json: written once, when the campaign begins."""

    schema: Annotated[int, "version of this schema"]
    name: Annotated[str, "the folder's name"]
    created_utc: Annotated[str, "ISO 8601; the only wall-clock time of the measurements"]
    command: Annotated[
        list[str],
        "arguments of `python -m loadtests`, those of a `--config` file among them, without "
        "secrets",
    ]
    seed: Annotated[int, "of prompts, arrivals and the order of cases"]
    model: Annotated[
        JsonObject,
        "{name, path, planted, shape}: planted = every answer is checked against the planted "
        "rule; shape: {parameters, embedding_parameters (of the table of input embeddings), "
        "tied_embeddings (it is the output head, too), layers, heads, kv_heads, head_dim, "
        "dtype_bytes (of weights, keys and values)}, null if it is no dense decoder, was not on "
        "this machine, or if no engine needed its weights; absent in older campaigns",
    ]
    scenarios: Annotated[
        dict[str, JsonObject], "the tables of scenarios.toml that were used, verbatim"
    ]
    simulated: Annotated[dict[str, float], "parameters of the simulated engine, ms and counts"]
    machine_share: Annotated[
        MachineShare,
        "{server_cores, load_cores, shared, threads, workers, load_workers}: who may run where; "
        "threads: of an engine, over all its workers; load_workers: processes that send the "
        "load",
    ]
    search: Annotated[
        CapacitySearch | None,
        "of --find-capacity: {slo, duration_s (of --duration), estimates ({scenario: requests/s "
        "or users to begin with}), saturation ({scenario: that of the first case, whose "
        "throughput is where the search begins}), systems ([{server, options, engine, "
        "scenario}] that are searched for)}; null otherwise, and then there is a plan",
    ]
    gate: Annotated[
        PairedGate | None,
        "of a gate: {sides: {base, head} in words, systems ([{server, engine, scenario, users, "
        "rate, duration_s, options}] that are compared), seed (of which side comes first), "
        "metrics, tolerance, slo, max_minutes (as they were given)}; null (or absent, in older "
        "campaigns) otherwise",
    ]
    plan: Annotated[
        list[Case],
        'the cases in the order in which they were planned, each as in run.json\'s "case"',
    ]
    manifest: Annotated[
        JsonObject,
        "commit, dirty, python, packages, cpu, memory, kernel, gpus, limits, environment",
    ]
    max_errors: Annotated[
        float | None,
        "of --max-errors: the share of failed requests above which a case is invalid; null (or"
        " absent, in older campaigns): 0.05",
    ] = None

    def to_json(self) -> JsonObject:
        return asdict(self)


@dataclass(frozen=True)
class Stage:
    """A stage of a case; times are on the clock of its rows."""

    name: str
    start_s: float
    end_s: float


@dataclass
class CaseFile:
    """run.json: written when the case begins, and again when it has ended."""

    schema: Annotated[int, "version of this schema"]
    case: Annotated[
        Case,
        "{index, server, engine, scenario, repetition, users, rate, duration_s, options, side}: "
        "the identity; users or rate (1/s) is null; options: {name: value} of the server that "
        "were chosen by --set; side: of a gate, whose code it was: base, head, or control, "
        "which is base's again; empty (or absent, in older campaigns) otherwise",
    ]
    status: Annotated[str, "running, ok, 'failed: STAGE: REASON' or 'skipped: REASON'"]
    started_utc: Annotated[str, "wall clock, for people"]
    clock_zero_s: Annotated[
        float, "monotonic clock at the case's start; zero of every *_s in its rows"
    ]
    summary: Annotated[str | None, "the server's one line from its server.toml"] = None
    command: Annotated[list[str] | None, "how the server was started; null for --target"] = None
    stages: Annotated[list[Stage], "[{name, start_s, end_s}] in the order in which they ran"] = (
        field(default_factory=list)
    )
    startup_s: Annotated[
        float | None, "from the process's start to the first 200 of /health; null for --target"
    ] = None
    warmup: Annotated[
        JsonObject | None,
        "{took_s, steady, why}: how long, and what the test of steadiness said at its end "
        "(loadtests/generator/steady_state.py); steady is null where the demand varies by plan",
    ] = None
    load_workers: Annotated[
        list[JsonObject],
        "[{worker, rows, reader, cpu_share, waited_share, stalls, offset_s, estimated_offset_s, "
        "round_trip_s}]: processes that sent the load; reader: c or python, who read its "
        "streams (loadtests/client/reader.py; absent in older campaigns: python); shares of the "
        "window in which it computed, and in which it waited for a core; stalls: [[start_s, "
        "end_s]] in which Python did nothing for 10 ms or longer, clock as in the rows (absent "
        "in older campaigns); offset: its clock minus the driver's, 0 where it is the same "
        "clock, whatever the estimate, which is off by half the round trip at most",
    ] = field(default_factory=list)
    window: Annotated[
        JsonObject | None,
        "{start_s, end_s}: the measured part of the load, clock as in the rows; null if load "
        "never ran",
    ] = None
    profile: Annotated[
        JsonObject | None,
        "what was found out about an endpoint that is not checked strictly"
        " (servers/profile/profile.py): {base_url, dialect, model, models, endpoints, fields,"
        " usage, tokens_per_chunk, reasoning, early_chunks, repeats_alone, repeats_under_load,"
        " tokens_per_word, template_tokens, context, metrics, notes}; null otherwise, absent in"
        " older campaigns",
    ] = None
    verify_before: Annotated[
        list[JsonObject] | None,
        "[{name, ok, detail, notes}] checks of the contract before the load (older campaigns have "
        "no notes); null if not reached",
    ] = None
    verify_after: Annotated[list[JsonObject] | None, "likewise after the load"] = None
    counts: Annotated[
        dict[str, int | None] | None,
        "{sent, rows, locust_requests, locust_failures}: must agree; cut_off: unanswered when "
        "the drain's bound came; planned: scheduled in the window by an open loop, else null",
    ] = None
    served: Annotated[
        dict[str, int] | None,
        "{requests, tokens}: that the server itself counted between the load's begin and end, "
        "by its own /metrics: requests to the completion paths answered with status 200, and "
        "tokens answered; null if it does not say",
    ] = None
    agreement: Annotated[
        JsonObject | None,
        "{with, share}: without planted rule: share of fixed prompts answered like the "
        "campaign's first server; else null",
    ] = None
    notes: Annotated[
        list[str], "sentences for the report, such as 'no NVIDIA GPU: GPU columns are null'"
    ] = field(default_factory=list)

    def to_json(self) -> JsonObject:
        return asdict(self)


def key_meanings(file: type) -> dict[str, str]:
    """What each key of CampaignFile or CaseFile means."""
    hints = get_type_hints(file, include_extras=True)
    return {key: hint.__metadata__[0] for key, hint in hints.items()}


CAMPAIGN_KEYS = key_meanings(CampaignFile)
RUN_KEYS = key_meanings(CaseFile)
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
