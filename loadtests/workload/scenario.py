"""Scenarios: named workloads, read from TOML and checked.

The models define the keys of each kind of arrivals. They only check: a scenario remains the table
from the file, and the results store it verbatim. The docstring below a key is its meaning in
docs/scenarios.md; "(default: ...)" in it is the meaning of a missing key.
"""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    model_validator,
)
from pydantic_core import ErrorDetails

from loadtests.errors import UsageError
from loadtests.workload import arrivals
from loadtests.workload.arrivals import ScenarioTable
from servers.runtime.catalog import check_name

SCENARIOS_FILE = Path(__file__).with_name("scenarios.toml")

Tables = dict[str, ScenarioTable]  # by name


def refuse_with(sentence: str) -> WrapValidator:
    """Replaces pydantic's message about a value; the key and the value precede `sentence`."""

    def validate(value: Any, check: Callable[[Any], Any]) -> Any:
        try:
            return check(value)
        except ValidationError:
            raise ValueError(sentence) from None

    return WrapValidator(validate)


def check_range(value: Any, info: ValidationInfo) -> Any:
    # a chat's prompt is at least a role's marker and a word
    chat = info.data.get("endpoint") == "chat"
    least = 2 if info.field_name == "prompt_tokens" and chat else 1
    numbers = isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value)
    if not (numbers and least <= value[0] <= value[1]):
        raise ValueError(f"is not [least, most], two whole numbers from {least} up")
    return value


def check_profile(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    times = [at for at, _ in points]
    if not points or times[0] != 0 or times != sorted(times) or not any(f for _, f in points):
        raise ValueError
    return points


Text = Annotated[str, refuse_with("is not a string")]
Count = Annotated[int, Field(strict=True, gt=0), refuse_with("is not a whole number above 0")]
Above0 = Annotated[
    float, Field(strict=True, gt=0, allow_inf_nan=False), refuse_with("is not a number above 0")
]
From0 = Annotated[
    float,
    Field(strict=True, ge=0, allow_inf_nan=False),
    refuse_with("is not a number above or equal to 0"),
]
Range = Annotated[list[int], BeforeValidator(check_range)]
Profile = Annotated[
    list[tuple[From0, From0]],
    AfterValidator(check_profile),
    refuse_with("is not a list of [second, factor] that starts at second 0"),
]
Endpoint = Annotated[Literal["chat", "completions"], refuse_with("is neither chat nor completions")]
Transport = Annotated[Literal["sse", "websocket"], refuse_with("is not one of sse, websocket")]


class Scenario(BaseModel):
    """The keys of every scenario."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    summary: Text
    """One line that describes the scenario."""
    endpoint: Endpoint
    """Where requests go: `/v1/chat/completions` or `/v1/completions`."""
    transport: Transport = "sse"
    """How a response streams. With `websocket` each user has one connection, opened before its
    first request, and each event is one message; servers without WebSockets are skipped."""
    context: Count = arrivals.CONTEXT
    """Longest prompt and response together. Longer requests of a trace are clipped, and the report
    shows how many."""
    warmup_s: From0
    """Load before the window opens, at least. Requests of the warm-up are not measured; users start
    one after another in its first half. With a `profile` or a trace the demand itself varies, and
    the warm-up is exactly this long."""
    warmup_max_s: From0 | None = None
    """How long the warm-up may wait for a steady load (default: 60, or `warmup_s` if that is
    longer)."""
    duration_s: Above0
    """Length of the measured window; `--duration` overrides it."""
    drain_s: From0
    """How long requests in flight may take after the load ends."""
    timeout_s: Above0
    """Timeout of one request."""

    @model_validator(mode="after")
    def check_together(self) -> Self:
        if self.warmup_max_s is not None and self.warmup_max_s < self.warmup_s:
            raise ValueError(f"warmup_max_s = {self.warmup_max_s:g} is less than warmup_s")
        return self


class GeneratedPrompts(Scenario):
    """A scenario with generated prompts: their lengths, and the text that they share."""

    prompt_tokens: Range
    """Length of a prompt, uniformly distributed; at least 2 for a chat."""
    output_tokens: Range
    """Length of a response, uniformly distributed."""
    requests: Count | None = None
    """How many requests the window must hold; it becomes longer than `duration_s` if needed. A P99
    needs 299. In an open loop the window ends at the first whole second by which they have arrived.
    In a closed loop the responses of the warm-up decide its length when it opens. `--duration` and
    the gate ignore this key."""
    duration_max_s: Above0 | None = None
    """Longest window that `requests` may cause (default: 120, or `duration_s` if that is
    longer)."""
    shared_tokens: Count | None = None
    """Length of a prefix that prompts share, before their own `prompt_tokens`. In a chat it is the
    system message."""
    shared_prefixes: Count | None = None
    """How many different shared prefixes there are; each prompt gets one at random (default: 1)."""
    distinct_prompts: Count | None = None
    """How many different prompts there are. Requests draw from them, lengths included, so prompts
    repeat."""
    zipf: From0 | None = None
    """How unequally often the distinct prompts are drawn: the k-th in proportion to 1/k^zipf
    (default: 0, all equally often)."""

    @model_validator(mode="after")
    def check_window(self) -> Self:
        if self.duration_max_s is not None and self.requests is None:
            raise ValueError("duration_max_s needs requests, the number that extends a window")
        if self.duration_max_s is not None and self.duration_max_s < self.duration_s:
            raise ValueError(f"duration_max_s = {self.duration_max_s:g} is less than duration_s")
        return self

    @model_validator(mode="after")
    def check_prompts(self) -> Self:
        if self.shared_prefixes is not None and self.shared_tokens is None:
            raise ValueError("shared_prefixes needs shared_tokens, the length of a prefix")
        if self.zipf is not None and self.distinct_prompts is None:
            raise ValueError("zipf needs distinct_prompts, the number of prompts to draw from")
        if self.endpoint == "chat" and self.shared_tokens == 1:
            raise ValueError(
                "shared_tokens = 1 is too short for a chat's system message, whose role marker is"
                " one token: use at least 2"
            )
        return self


class ClosedLoopScenario(GeneratedPrompts):
    """Each user waits for its response, thinks, and sends its next request."""

    arrivals: Literal["closed"]
    """Each user waits for its response, then thinks, then sends the next request."""
    users: Count
    """How many users there are; `--users` overrides it."""
    think_s: From0 = 0.0
    """Pause between a response and the user's next request."""
    turns: Range | None = None
    """Questions in a conversation, with `endpoint = "chat"`. Each is sent with all messages before
    it, and a new conversation starts when `context` would be exceeded."""

    @model_validator(mode="after")
    def check_turns(self) -> Self:
        if self.turns is not None and self.endpoint != "chat":
            raise ValueError('turns needs conversations: use endpoint = "chat"')
        if self.turns is not None and self.distinct_prompts is not None:
            raise ValueError(
                "distinct_prompts does not apply with turns: a question follows a different"
                " conversation each time, so no request repeats"
            )
        return self


class OpenLoopScenario(GeneratedPrompts):
    """Requests are sent at their scheduled times, whether or not the server keeps up."""

    rate: Above0
    """Mean arrivals per second; `--rate` overrides it."""
    profile: Profile | None = None
    """Factors that multiply the rate, from the load's start, with straight lines between the
    points; two points at one second are a step."""
    max_in_flight: Count | None = None
    """Cap on concurrent requests. A request above it waits for a slot, and the wait counts as
    latency."""


class RegularOpenLoop(OpenLoopScenario):
    arrivals: Literal["constant", "poisson"]
    """Requests arrive at equal gaps (`constant`) or at random (`poisson`), whether or not the
    server keeps up."""


class BurstyOpenLoop(OpenLoopScenario):
    arrivals: Literal["gamma"]
    """Requests arrive in bursts, whether or not the server keeps up."""
    burstiness: Above0
    """Shape of the gamma-distributed gaps: 1 is Poisson; 0.25 has four times its variance."""


class Replay(Scenario):
    """Recorded traffic with its own lengths and prefixes; --trace may name the file."""

    arrivals: Literal["trace"]
    """Requests arrive as they were recorded, with the recorded lengths and shared prefixes. The
    prompt of a session's later turn starts as the trace's `hash_ids` state. Without them it starts
    with the prompt of the turn before it and generated text as long as the recorded response, or
    shares nothing if it is too short for both. Each turn is sent at its recorded time, whether or
    not the response to the turn before it has arrived."""
    trace: Text | None = None
    """File of the recorded traffic, in any order: a CSV file in the form of Azure, BurstGPT or
    ours, or JSON lines in the form of Mooncake, Bailian or ours, as `loadtests/workload/traces.py`
    describes them. The form decides the unit of times and the size of blocks. `--trace` overrides
    it."""
    trace_start_s: From0 = 0.0
    """Where in the trace the replay starts."""
    time_scale: Above0 = 1.0
    """Speed of the replay: 2 is twice as fast; `--time-scale` overrides it."""
    max_in_flight: Count | None = None
    """Cap on concurrent requests. A request above it waits for a slot, and the wait counts as
    latency."""


MODELS = (ClosedLoopScenario, RegularOpenLoop, BurstyOpenLoop, Replay)
KINDS = ("closed", "constant", "poisson", "gamma", "trace")
CHECK: TypeAdapter[Scenario] = TypeAdapter(
    Annotated[
        ClosedLoopScenario | RegularOpenLoop | BurstyOpenLoop | Replay,
        Field(discriminator="arrivals"),
    ]
)
KEYS = tuple(dict.fromkeys(key for model in MODELS for key in model.model_fields))


def read_scenarios(file: Path = SCENARIOS_FILE) -> Tables:
    """Reads and checks a file of scenarios. Raises UsageError, which names the file and the line or
    key, and CatalogError for an unknown key, with the nearest one.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not valid TOML: {error}") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(
                f"{file}: the key {name!r} is outside a table: put it below a [scenario]"
            )
        if not re.fullmatch(r"[\w-]+", name):
            raise UsageError(
                f"{file}: the scenario name {name!r} becomes part of folder names: use only"
                " letters, digits, - and _"
            )
        check_scenario(f"{file}: [{name}]", table)
    return tables


def check_scenario(where: str, table: ScenarioTable) -> None:
    """Checks one table. Raises UsageError or CatalogError with `where`, the file and the table."""
    for key in table:
        check_name(key, KEYS, f"key in {where}")
    try:
        CHECK.validate_python(table)
    except ValidationError as refused:
        error = refused.errors()[0]
        raise UsageError(f"{where}: {_describe_error(error, table)}") from None


def _describe_error(error: ErrorDetails, table: ScenarioTable) -> str:
    kind, message = table.get("arrivals"), error["msg"].removeprefix("Value error, ")
    key = error["loc"][-1] if len(error["loc"]) > 1 else None  # the first is the kind of arrivals
    match error["type"]:
        case "union_tag_not_found":
            return "the key 'arrivals' is missing"
        case "union_tag_invalid":
            return f"arrivals = {kind!r} is not one of {', '.join(KINDS)}"
        case "missing" if key in Scenario.model_fields:
            return f"the key {key!r} is missing"
        case "missing":
            return f"{kind} arrivals need the key {key!r}"
        case "extra_forbidden":
            return f"{key} does not apply with arrivals = {kind!r}: remove it"
    return f"{key} = {error['input']!r} {message}" if key else message


def with_fixed_window(table: ScenarioTable) -> ScenarioTable:
    """Returns the table without the keys that extend a window beyond its duration."""
    return {key: value for key, value in table.items() if key not in ("requests", "duration_max_s")}


def with_trace(
    name: str,
    table: ScenarioTable,
    trace: Path | None = None,
    time_scale: float | None = None,
    duration_s: float | None = None,
) -> ScenarioTable:
    """Completes the table of a replay with --trace, --time-scale, the trace's checksum, and its
    mean rate in the window of --duration. Other tables are returned unchanged. Raises UsageError
    and TraceError.
    """
    if table["arrivals"] != "trace":
        return table
    file = trace or table.get("trace")
    if not file:
        raise UsageError(f"the scenario {name!r} replays a trace: name one with --trace FILE")
    table = {
        **table,
        "trace": str(Path(file).absolute()),
        "time_scale": time_scale or table.get("time_scale", 1.0),
    }
    start_s, length_s = table["warmup_s"], duration_s or table["duration_s"]
    part = arrivals.read_replay(table, start_s + length_s)
    in_window = [
        arrival for arrival in arrivals.replay(table, start_s + length_s) if arrival.at_s >= start_s
    ]
    if not in_window:
        raise UsageError(
            f"{file} has no request in the window: choose another trace_start_s, or a longer"
            " --duration"
        )
    return {
        **table,
        "rate": round(len(in_window) / length_s, 6),
        "trace_format": part.format,
        "trace_sha256": part.sha256,
    }
