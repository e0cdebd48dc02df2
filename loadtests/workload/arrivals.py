"""Arrivals of an open loop: when each request is sent, and how long it is. Pure and seeded: every
load worker computes the same ones. Those of a replay are read once, by the driver (`replay`), and
passed on as `recorded`.

Every kind of arrivals is one process under a change of time. Draw gaps of mean 1 (all 1,
exponential, or gamma) and add them up to u_1, u_2 ... The integral of rate x profile, L(t), is the
expected number of arrivals until t, and the n-th arrival is at L^-1(u_n). So a ramp, a step or a
spike bends every kind in the same way (Cinlar, Introduction to Stochastic Processes, 1975, section
4.7: time change).
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from loadtests.workload import traces

ScenarioTable = dict[str, Any]  # a table of scenarios.toml, verbatim

WARMUP_MAX_S = 60.0
DURATION_MAX_S = 120.0  # of a window that is extended to hold `requests`
CONTEXT = 4096  # tokens of prompt and response together; that of the default model


@dataclass(frozen=True)
class Arrival:
    """One request: `at_s` is seconds since the start of the load, or of the window. Lengths are in
    tokens, None where the scenario's ranges decide. The prompt starts with `blocks` of
    `block_tokens` tokens each; blocks with equal ids have equal text.
    """

    at_s: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    blocks: tuple[int, ...] = ()
    block_tokens: tuple[int, ...] = ()

    def to_list(self) -> list[Any]:
        """Returns the fields in order, for JSON."""
        return [*vars(self).values()]

    @classmethod
    def from_list(cls, fields: Sequence[Any]) -> Self:
        at_s, prompt_tokens, output_tokens, blocks, block_tokens = fields
        return cls(at_s, prompt_tokens, output_tokens, tuple(blocks), tuple(block_tokens))


def varies_by_plan(scenario: Mapping[str, Any]) -> bool:
    """Whether the plan itself changes the demand over time, so there is no steady state to wait
    for.
    """
    return scenario["arrivals"] == "trace" or "profile" in scenario


def warm_up_arrivals(
    seed: str,
    scenario: Mapping[str, Any],
    rate: float | None,
    recorded: Sequence[Arrival] | None = None,
) -> list[Arrival]:
    """Returns the arrivals before the window, timed from the load's start: enough for the longest
    warm-up.
    """
    if varies_by_plan(scenario):
        return schedule(seed, scenario, rate, scenario["warmup_s"], recorded)
    return schedule(f"{seed}/warm-up", scenario, rate, longest_warm_up_s(scenario) + 1)


def window_arrivals(
    seed: str,
    scenario: Mapping[str, Any],
    rate: float | None,
    duration_s: float,
    recorded: Sequence[Arrival] | None = None,
) -> list[Arrival]:
    """Returns the arrivals in the window, timed from its start.

    They are a process of their own: a server that needs a longer warm-up gets the same requests in
    its window. Where the demand varies by plan, they continue the warm-up's.
    """
    if not varies_by_plan(scenario):
        return schedule(seed, scenario, rate, duration_s)
    begin_s = scenario["warmup_s"]
    return [
        replace(arrival, at_s=arrival.at_s - begin_s)
        for arrival in schedule(seed, scenario, rate, begin_s + duration_s, recorded)
        if arrival.at_s >= begin_s
    ]


def longest_warm_up_s(scenario: Mapping[str, Any]) -> float:
    """Returns the upper bound of the warm-up. `warmup_s` is the lower bound: the warm-up ends there
    if the load is steady.
    """
    least = float(scenario["warmup_s"])
    return (
        least
        if varies_by_plan(scenario)
        else float(scenario.get("warmup_max_s", max(least, WARMUP_MAX_S)))
    )


def load_seed(seed: int, scenario: str, repetition: int) -> str:
    """Returns the seed of a case's prompts and arrivals: the same for all servers."""
    return f"{seed}/{scenario}/{repetition}"


def longest_window_s(scenario: Mapping[str, Any], duration_s: float) -> float:
    """Returns the upper bound of the window. `duration_s` is the lower bound: the window ends there
    if it holds the scenario's `requests`.
    """
    if "requests" not in scenario:
        return duration_s
    return max(duration_s, float(scenario.get("duration_max_s", DURATION_MAX_S)))


def window_for_requests(
    requests: int, per_s: float, scenario: Mapping[str, Any], duration_s: float
) -> float:
    """Returns the length of a window that holds `requests` requests if `per_s` of them end per
    second: whole seconds, between `duration_s` and `longest_window_s`.

    The expected number is three standard deviations of a Poisson count above `requests`, so chance
    rarely makes the window too short.
    """
    longest_s = longest_window_s(scenario, duration_s)
    expected = (1.5 + math.sqrt(2.25 + requests)) ** 2  # n - 3 sqrt(n) = requests
    return min(max(duration_s, math.ceil(expected / per_s)), longest_s) if per_s else longest_s


def window_for_arrivals(
    seed: str, scenario: Mapping[str, Any], rate: float, duration_s: float
) -> float:
    """Returns the length of an open loop's window that holds the scenario's `requests`: whole
    seconds, between `duration_s` and `longest_window_s`. It is exact: the arrivals are known.
    """
    longest_s = longest_window_s(scenario, duration_s)
    planned = window_arrivals(seed, scenario, rate, longest_s)
    wanted = scenario.get("requests", 0)
    if not wanted or len(planned) < wanted:
        return longest_s
    return max(duration_s, math.floor(planned[wanted - 1].at_s) + 1.0)


def schedule(
    seed: str,
    scenario: Mapping[str, Any],
    rate: float | None,
    duration_s: float,
    recorded: Sequence[Arrival] | None = None,
) -> list[Arrival]:
    """Returns all arrivals of [0, duration_s), in order. `rate` is in requests/s. A replay has no
    rate: its arrivals are the `recorded` ones, at least those of this time.
    """
    if scenario["arrivals"] == "trace":
        assert recorded is not None, "the driver reads a replay's arrivals"
        return [arrival for arrival in recorded if arrival.at_s < duration_s]
    assert rate is not None
    gaps = _gaps(
        random.Random(f"{seed}/arrivals"), scenario["arrivals"], scenario.get("burstiness", 1.0)
    )
    return [
        Arrival(at) for at in _bent(gaps, rate, scenario.get("profile", ((0.0, 1.0),)), duration_s)
    ]


def _gaps(source: random.Random, kind: str, burstiness: float) -> Iterator[float]:
    """Yields gaps of mean 1. `burstiness` is the gamma distribution's shape, as in vLLM's
    benchmark: 1 is Poisson, smaller is burstier.
    """
    while True:
        if kind == "constant":
            yield 1.0
        elif kind == "poisson":
            yield source.expovariate(1.0)
        else:
            yield source.gammavariate(burstiness, 1 / burstiness)


def _bent(
    gaps: Iterator[float], rate: float, profile: Sequence[Sequence[float]], duration_s: float
) -> Iterator[float]:
    """Yields arrival times. `profile` has [second, factor] points with straight lines between them;
    after the last point its factor stays. Two points at one second are a step.
    """
    points = [(at, rate * factor) for at, factor in profile]
    points.append((max(duration_s, points[-1][0]), points[-1][1]))
    due = next(gaps)
    passed = 0.0  # expected arrivals before the current segment
    for (start, low), (end, high) in itertools.pairwise(points):
        length, slope = end - start, (high - low) / (end - start) if end > start else 0.0
        expected = (low + high) / 2 * length
        while due <= passed + expected and length > 0:
            within = due - passed  # solve low * t + slope * t^2 / 2 = within
            t = (
                2 * within / (low + math.sqrt(max(0.0, low * low + 2 * slope * within)))
                if within > 0
                else 0.0
            )
            if start + t >= duration_s:
                return
            yield start + t
            due += next(gaps)
        passed += expected


def read_replay(scenario: Mapping[str, Any], duration_s: float) -> traces.TraceSlice:
    """Reads the part of the scenario's trace that is replayed in [0, duration_s); `time_scale` 2
    replays twice as much. Raises traces.TraceError, also if the trace has no request in that time.
    """
    start_s, length_s = _replayed_part(scenario, duration_s)
    found = traces.read_trace(Path(scenario["trace"]), start_s, start_s + length_s)
    if not found.rows:
        raise traces.TraceError(
            f"{scenario['trace']} has no request in the {length_s:g} s after second {start_s:g}:"
            " choose another trace_start_s or a longer --duration"
        )
    return found


def replay(scenario: Mapping[str, Any], duration_s: float) -> list[Arrival]:
    """Returns the arrivals of [0, duration_s) of a replay, in order. `fit_context` clips lengths
    beyond the context. Raises traces.TraceError.
    """
    scale, context = scenario.get("time_scale", 1.0), scenario.get("context", CONTEXT)
    start_s, _ = _replayed_part(scenario, duration_s)
    found = []
    for row in read_replay(scenario, duration_s).rows:
        at_s = (row.at_s - start_s) / scale
        prompt, output = fit_context(row.prompt_tokens, row.output_tokens, context)
        starts = itertools.accumulate(row.block_tokens, initial=0)
        needed = sum(start < prompt for start, _ in zip(starts, row.blocks, strict=False))
        found.append(Arrival(at_s, prompt, output, row.blocks[:needed], row.block_tokens[:needed]))
    return found


def _replayed_part(scenario: Mapping[str, Any], duration_s: float) -> tuple[float, float]:
    """Returns where the replayed part of a trace starts and how long it is, in its own seconds."""
    return scenario.get("trace_start_s", 0.0), duration_s * scenario.get("time_scale", 1.0)


def fit_context(prompt_tokens: int, output_tokens: int, context: int) -> tuple[int, int]:
    """Clips both lengths so that together they fit the context. The prompt leaves room for the
    response, up to half of the context; the response gets the rest.

    >>> fit_context(4000, 600, 4096), fit_context(100, 9000, 4096), fit_context(10, 5, 4096)
    ((3496, 600), (100, 3996), (10, 5))
    """
    # at least 2: a chat's role marker and a word
    prompt = max(2, min(prompt_tokens, context - min(output_tokens, context // 2)))
    return prompt, max(1, min(output_tokens, context - prompt))


def describe_replay(scenario: Mapping[str, Any], duration_s: float) -> str:
    """Describes the replayed part of a trace: its requests, and those that were changed."""
    context = scenario.get("context", CONTEXT)
    part = read_replay(scenario, duration_s)
    clipped = sum(
        fit_context(row.prompt_tokens, row.output_tokens, context)
        != (row.prompt_tokens, row.output_tokens)
        for row in part.rows
    )
    count = len(part.rows)
    failed = f", {part.failed:,} left out that had failed when recorded" * bool(part.failed)
    return (
        f"a trace in the format {part.format}: {count:,} request{'s' * (count != 1)},"
        f" {clipped:,} clipped to the context of {context:,} tokens{failed}"
    )
