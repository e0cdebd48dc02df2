"""When the requests of an open loop are sent, and how long they are: seeded, pure, and the same on
any number of load workers.

All kinds are one process seen through one change of time. Gaps of mean 1 are drawn (all 1,
exponential, or gamma) and added up to u_1, u_2 ...; with the expected number of arrivals until t,
L(t) = integral of rate x profile, the n-th arrival is at L^-1(u_n). So a ramp, a step or a spike
bends any kind alike (Cinlar, Introduction to Stochastic Processes, 1975, section 4.7: time change).
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loadtests.workload import traces

ScenarioTable = dict[str, Any]  # a table of scenarios.toml, as it stands there

WARMUP_MAX_S = 60.0
DURATION_MAX_S = 120.0  # of a window that is as long as its `requests` need
CONTEXT = 4096  # tokens of prompt and answer together, that of the default model


@dataclass(frozen=True)
class Arrival:
    """`at_s` since the load's start. Lengths in tokens, null where the scenario's ranges decide;
    `blocks` are shared prefixes.
    """

    at_s: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    blocks: tuple[int, ...] = ()


def varies_by_plan(scenario: Mapping[str, Any]) -> bool:
    """Whether the demand itself changes with time by plan, so that no steady state is to be waited
    for.
    """
    return scenario["arrivals"] == "trace" or "profile" in scenario


def warm_up_arrivals(seed: str, scenario: Mapping[str, Any], rate: float | None) -> list[Arrival]:
    """Arrivals before the window, since the load's start: enough for the longest warm-up. Raises
    traces.TraceError.
    """
    if varies_by_plan(scenario):
        return _arrivals(seed, scenario, rate, scenario["warmup_s"])
    return schedule(f"{seed}/warm-up", scenario, rate, longest_warm_up_s(scenario) + 1)


def window_arrivals(
    seed: str, scenario: Mapping[str, Any], rate: float | None, duration_s: float
) -> list[Arrival]:
    """Arrivals in the window, since its start. A process of their own, so that a server that needs
    a longer warm-up is then asked the same; where demand varies by plan, the rest of the warm-up's.
    """
    if not varies_by_plan(scenario):
        return schedule(seed, scenario, rate, duration_s)
    begin_s = scenario["warmup_s"]
    return [
        replace(arrival, at_s=arrival.at_s - begin_s)
        for arrival in schedule(seed, scenario, rate, begin_s + duration_s)
        if arrival.at_s >= begin_s
    ]


def longest_warm_up_s(scenario: Mapping[str, Any]) -> float:
    """The warm-up lasts from warmup_s, if the load is steady then, to this."""
    least = float(scenario["warmup_s"])
    return (
        least
        if varies_by_plan(scenario)
        else float(scenario.get("warmup_max_s", max(least, WARMUP_MAX_S)))
    )


def load_seed(seed: int, scenario: str, repetition: int) -> str:
    """Of a case's prompts and arrivals: the same for all servers."""
    return f"{seed}/{scenario}/{repetition}"


def longest_window_s(scenario: Mapping[str, Any], duration_s: float) -> float:
    """The window lasts from `duration_s`, if that holds `requests`, to this."""
    if "requests" not in scenario:
        return duration_s
    return max(duration_s, float(scenario.get("duration_max_s", DURATION_MAX_S)))


def window_for_requests(
    requests: int, per_s: float, scenario: Mapping[str, Any], duration_s: float
) -> float:
    """How long a window is, in whole seconds, that holds so many requests if `per_s` of them end in
    a second: within `duration_s` and `longest_window_s`. The expected number is three standard
    deviations of a Poisson count more than asked for, so that chance rarely makes it too short.
    """
    longest_s = longest_window_s(scenario, duration_s)
    expected = (1.5 + math.sqrt(2.25 + requests)) ** 2  # n - 3 sqrt(n) = requests
    return min(max(duration_s, math.ceil(expected / per_s)), longest_s) if per_s else longest_s


def window_for_arrivals(
    seed: str, scenario: Mapping[str, Any], rate: float, duration_s: float
) -> float:
    """How long the window of an open loop is, in whole seconds, that `requests` arrivals fall into:
    within `duration_s` and `longest_window_s`. Its arrivals are known, so it is exact.
    """
    longest_s = longest_window_s(scenario, duration_s)
    planned = window_arrivals(seed, scenario, rate, longest_s)
    wanted = scenario.get("requests", 0)
    if not wanted or len(planned) < wanted:
        return longest_s
    return max(duration_s, math.floor(planned[wanted - 1].at_s) + 1.0)


def schedule(
    seed: str, scenario: Mapping[str, Any], rate: float | None, duration_s: float
) -> list[Arrival]:
    """All arrivals of [0, duration_s), in order. `rate`: requests/s, unused by a trace, which must
    have some: raises traces.TraceError.
    """
    found = _arrivals(seed, scenario, rate, duration_s)
    if scenario["arrivals"] == "trace" and not found:
        scale, start = scenario.get("time_scale", 1.0), scenario.get("trace_start_s", 0.0)
        raise traces.TraceError(
            f"{scenario['trace']} has no request in {duration_s * scale:g} s from second {start:g}"
            " on: choose another trace_start_s or a longer --duration"
        )
    return found


def _arrivals(
    seed: str, scenario: Mapping[str, Any], rate: float | None, duration_s: float
) -> list[Arrival]:
    if scenario["arrivals"] == "trace":
        return _replay(scenario, duration_s)
    assert rate is not None
    gaps = _gaps(
        random.Random(f"{seed}/arrivals"), scenario["arrivals"], scenario.get("burstiness", 1.0)
    )
    return [
        Arrival(at) for at in _bent(gaps, rate, scenario.get("profile", ((0.0, 1.0),)), duration_s)
    ]


def _gaps(source: random.Random, kind: str, burstiness: float) -> Iterator[float]:
    """Mean 1. `burstiness` is the gamma distribution's shape, as in vLLM's benchmark: 1 is Poisson,
    smaller is burstier.
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
    """Arrival times. `profile`: [second, factor] points with straight lines between, the last
    factor holds on; two points at one second are a step.
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


def _replay(scenario: Mapping[str, Any], duration_s: float) -> list[Arrival]:
    """A slice of the trace: `time_scale` 2 replays twice as fast. Lengths beyond the context are
    clipped: see `clipped`.
    """
    scale, context = scenario.get("time_scale", 1.0), scenario.get("context", CONTEXT)
    start = scenario.get("trace_start_s", 0.0)
    found = [
        Arrival(
            (row.at_s - start) / scale,
            *fit_context(row.prompt_tokens, row.output_tokens, context),
            row.blocks,
        )
        for row in traces.read_trace(Path(scenario["trace"]))
        if row.at_s >= start
    ]
    return [arrival for arrival in found if arrival.at_s < duration_s]


def fit_context(prompt_tokens: int, output_tokens: int, context: int) -> tuple[int, int]:
    """Both lengths, cut so that they fit into the context together: the answer to half of it at
    most, then the prompt to the rest.

    >>> fit(4000, 600, 4096), fit(100, 9000, 4096), fit(10, 5, 4096)
    ((3496, 600), (100, 3996), (10, 5))
    """
    # 2: a chat's role marker and a word
    prompt = max(2, min(prompt_tokens, context - min(output_tokens, context // 2)))
    return prompt, max(1, min(output_tokens, context - prompt))


def count_clipped(scenario: Mapping[str, Any]) -> int:
    """How many requests of the trace do not fit into the context, in the whole trace."""
    context = scenario.get("context", CONTEXT)
    rows = traces.read_trace(Path(scenario["trace"]))
    return sum(
        fit_context(row.prompt_tokens, row.output_tokens, context)
        != (row.prompt_tokens, row.output_tokens)
        for row in rows
    )
