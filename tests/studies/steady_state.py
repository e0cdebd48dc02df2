"""How often `loadtests/generator/steady_state.py` is wrong on simulated servers with a known truth.
Seeded, so the numbers are always the same.

    python -m tests.studies.steady_state [RUNS]       # a Markdown table

400 runs of each server take about three minutes. Like the load generator, the study judges a run
every second until it is steady or BOUND_S have passed. The names of the servers are part of the
seeds: a new name changes its numbers. The columns:

- steady after, s: median and 90th percentile of the runs that became steady; 12 is the least
  possible.
- never: share of the runs that were not steady within the bound. That is a false alarm for a steady
  server, and correct for an overloaded one.
- missed: share of the runs whose true mean throughput or latency over the next WINDOW_S was more
  than 5% off its final level. An endlessly growing queue has no final level, so there every run
  that became steady is a miss.
"""

import heapq
import itertools
import math
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from random import Random
from typing import NamedTuple

from loadtests.generator import steady_state
from loadtests.workload import arrivals

BOUND_S, WINDOW_S, BIAS = 60, 25, 0.05
OUTPUT = (16, 48)  # tokens of a response

Shape = Callable[[float], float]  # of seconds; its final level is 1


class Request(NamedTuple):
    scheduled_s: float
    done_s: float
    ttft_s: float
    tpot_s: float


class Trace(NamedTuple):
    """What a load generator sees: the tokens in each slice of SLICE_S, and the requests in the
    order in which they finished.
    """

    tokens: list[float]
    requests: list[Request]


class Server(NamedTuple):
    """A simulated server. `truth` has the shapes of throughput and latency; it is empty if both are
    level from the start, and None if latency grows without end.
    """

    name: str
    make: Callable[[Random], Trace]
    truth: tuple[Shape, ...] | None = ()


# --- -
# Servers


def red(source: Random, n: int, rho: float) -> list[float]:
    """AR(1) noise of variance 1, whose neighbours correlate by `rho`."""
    values, value = [], source.gauss(0, 1)
    for _ in range(n):
        values.append(value)
        value = rho * value + math.sqrt(1 - rho * rho) * source.gauss(0, 1)
    return values


def level(
    source: Random,
    throughput: Shape,
    latency: Shape,
    noise: float = 0.1,
    rho: float = 0.3,
    per_s: float = 20,
    until_s: float = BOUND_S,
) -> Trace:
    """Shapes with noise. `noise` is the coefficient of variation of the tokens per slice and of
    TPOT; that of TTFT is four times as large. `rho` is the correlation from slice to slice and from
    request to request.
    """
    slices, n = round(until_s / steady_state.SLICE_S), round(until_s * per_s)
    tokens = [
        100 * throughput(i * steady_state.SLICE_S) * max(0.0, 1 + noise * e)
        for i, e in enumerate(red(source, slices, rho))
    ]
    requests = []
    for i, (first, later) in enumerate(zip(red(source, n, rho), red(source, n, rho), strict=True)):
        now = i / per_s
        ttft_s, tpot_s = (
            mean * latency(now) * math.exp(sigma * e)
            for mean, sigma, e in ((0.1, 4 * noise, first), (0.01, noise, later))
        )
        requests.append(
            Request(now, now + ttft_s + (source.randint(*OUTPUT) - 1) * tpot_s, ttft_s, tpot_s)
        )
    return Trace(tokens, sorted(requests, key=lambda request: request.done_s))


def engine(
    source: Random,
    load: int | list[float],
    most: int,
    step_s: float,
    each_s: float,
    until_s: float = BOUND_S,
) -> Trace:
    """An engine that adds one token per step to each of at most `most` responses, first come, first
    served. A step takes `step_s`, `each_s` per response and 20 ms per new response, with 5% noise.
    `load` is the users of a closed loop or the times of arrivals.
    """
    due = list(load) if isinstance(load, list) else [0.1 * user for user in range(load)]
    heapq.heapify(due)
    waiting: deque[float] = deque()
    active: list[list[float]] = []  # scheduled, tokens left, first, tokens
    tokens, requests = [0.0] * round(until_s / steady_state.SLICE_S), []
    now = 0.0
    while now < until_s:
        while due and due[0] <= now:
            waiting.append(heapq.heappop(due))
        begun = 0
        while waiting and len(active) < most:
            length = source.randint(*OUTPUT)
            active.append([waiting.popleft(), length, 0.0, length])
            begun += 1
        if not active:
            now = due[0] if due else until_s
            continue
        now += (step_s + each_s * len(active) + 0.02 * begun) * math.exp(source.gauss(0, 0.05))
        if now < until_s:
            tokens[int(now / steady_state.SLICE_S)] += len(active)
        for answer in active:
            answer[1] -= 1
            answer[2] = answer[2] or now
        for scheduled_s, _, first_s, size in (answer for answer in active if not answer[1]):
            requests.append(
                Request(scheduled_s, now, first_s - scheduled_s, (now - first_s) / (size - 1))
            )
            if not isinstance(load, list):
                heapq.heappush(due, now)
        active = [answer for answer in active if answer[1]]
    return Trace(tokens, requests)


def one_by_one(source: Random, load: int | list[float], until_s: float = BOUND_S) -> Trace:
    """About 4.7 requests/s and 150 tokens/s, like Flask with a sync worker."""
    return engine(source, load, 1, 0.006, 0, until_s)


def batching(source: Random, load: int | list[float], until_s: float = BOUND_S) -> Trace:
    """Up to about 1,500 tokens/s, like continuous batching."""
    return engine(source, load, 64, 0.006, 0.0004, until_s)


def sharing(source: Random, load: int | list[float], until_s: float = BOUND_S) -> Trace:
    """About 165 tokens/s, shared evenly by all responses, like a thread pool on one core."""
    return engine(source, load, 10**6, 0, 0.006, until_s)


def opened(
    source: Random, rate: float, burstiness: float | None = None, until_s: float = BOUND_S
) -> list[float]:
    kind = (
        {"arrivals": "poisson"}
        if burstiness is None
        else {"arrivals": "gamma", "burstiness": burstiness}
    )
    return [
        arrival.at_s for arrival in arrivals.schedule(str(source.random()), kind, rate, until_s)
    ]


def cold(source: Random) -> Trace:
    """No token for 2 s, and the first ten requests take twenty times as long as later ones."""
    tokens, requests = level(source, flat, flat)
    slow = [
        Request(0.0, 2.0 + 0.01 * i, 20 * r.ttft_s, 20 * r.tpot_s)
        for i, r in enumerate(requests[:10])
    ]
    return Trace(
        [0.0 if i * steady_state.SLICE_S < 2 else n for i, n in enumerate(tokens)],
        slow + [r for r in requests[10:] if r.done_s > 2.1],
    )


def flat(_: float) -> float:
    return 1.0


def decaying(amplitude: float, tau_s: float) -> Shape:
    return lambda t: 1 + amplitude * math.exp(-t / tau_s)


def step(before: float, at_s: float) -> Shape:
    return lambda t: before if t < at_s else 1.0


def line(before: float, until_s: float = BOUND_S) -> Shape:
    return lambda t: 1 + (before - 1) * max(0.0, 1 - t / until_s)


def wave(amplitude: float, period_s: float) -> Shape:
    return lambda t: 1 + amplitude * math.sin(2 * math.pi * t / period_s)


def changing(name: str, throughput: Shape, latency: Shape, noise: float = 0.1) -> Server:
    return Server(
        name, lambda source: level(source, throughput, latency, noise), (throughput, latency)
    )


SERVERS = [
    *(
        Server(
            f"steady, noise that correlates by {rho}",
            lambda s, rho=rho: level(s, flat, flat, rho=rho),
        )
        for rho in (0, 0.3, 0.6, 0.8)
    ),
    Server(
        "steady, a tenth of that noise, waves of 0.5% in 60 s",
        lambda s: level(s, wave(0.005, 60), wave(0.005, 60), 0.01),
    ),
    Server("steady, waves of 10% in 8 s", lambda s: level(s, wave(0.1, 8), wave(-0.1, 8))),
    Server("closed loop, 16 users, one by one", lambda s: one_by_one(s, 16)),
    Server("closed loop, 16 users, batching", lambda s: batching(s, 16)),
    Server("closed loop, 16 users, sharing", lambda s: sharing(s, 16)),
    Server("Poisson 3/s, batching", lambda s: batching(s, opened(s, 3))),
    Server("gamma 3/s in bursts, batching", lambda s: batching(s, opened(s, 3, 0.25))),
    Server("Poisson 1.5/s, batching", lambda s: batching(s, opened(s, 1.5))),
    Server(
        "Poisson 3/s, one by one (64% of what it carries)", lambda s: one_by_one(s, opened(s, 3))
    ),
    Server("ten slow first requests", cold),
    *(
        changing(
            f"half the speed at first, time constant {tau} s", decaying(-0.5, tau), decaying(1, tau)
        )
        for tau in (1, 2, 5, 10, 20)
    ),
    *(
        changing(
            f"likewise {tau} s, a tenth of the noise", decaying(-0.5, tau), decaying(1, tau), 0.01
        )
        for tau in (2, 5, 10)
    ),
    *(
        changing(f"half the speed until second {at}", step(0.5, at), step(2, at))
        for at in (5, 10, 15, 20)
    ),
    *(
        changing(f"drift of {share:.0%} in 60 s", line(1 - share), line(1 + share))
        for share in (0.05, 0.1, 0.2)
    ),
    *(
        changing(
            f"drift of {share:.0%} in 60 s, a tenth of the noise",
            line(1 - share),
            line(1 + share),
            0.01,
        )
        for share in (0.1, 0.2)
    ),
    Server(
        "Poisson 5.2/s, one by one (110% of what it carries)",
        lambda s: one_by_one(s, opened(s, 5.2)),
        None,
    ),
    Server(
        "Poisson 6.1/s, one by one (130% of what it carries)",
        lambda s: one_by_one(s, opened(s, 6.1)),
        None,
    ),
    Server(
        "Poisson 6.1/s, sharing (130% of what it carries)",
        lambda s: sharing(s, opened(s, 6.1)),
        None,
    ),
]


# --- -
# Rates


class Rates(NamedTuple):
    median_s: float
    p90_s: float
    never: float
    missed: float


def steady_after(trace: Trace) -> float:
    """Seconds until the trace is judged steady; inf if it is not within the bound."""
    judge, done = steady_state.SteadyJudge(), 0
    for now in range(1, BOUND_S + 1):
        while done < len(trace.requests) and trace.requests[done].done_s <= now:
            done += 1
        seen = trace.requests[:done]
        if judge.judge(
            {
                "tokens/s": trace.tokens[: int(now / steady_state.SLICE_S + 1e-9)],
                "TTFT": [r.ttft_s for r in seen],
                "TPOT": [r.tpot_s for r in seen],
            },
            now,
            WINDOW_S,
        ).steady:
            return now
    return math.inf


def missed(server: Server, after_s: float) -> bool:
    if after_s == math.inf:
        return False
    ahead = [after_s + (i + 0.5) / 4 for i in range(4 * WINDOW_S)]
    return server.truth is None or any(
        abs(statistics.fmean(map(shape, ahead)) - 1) > BIAS for shape in server.truth
    )


def rates(server: Server, runs: int) -> Rates:
    after = sorted(steady_after(server.make(Random(f"{server.name}/{run}"))) for run in range(runs))
    became = [s for s in after if s < math.inf] or [math.nan]
    return Rates(
        statistics.median_low(became),
        became[int(0.9 * len(became))],
        after.count(math.inf) / runs,
        sum(missed(server, s) for s in after) / runs,
    )


@contextmanager
def mser_alone() -> Iterator[None]:
    """Use plain MSER: no test of trend, no tolerance for drift, and one look is enough."""
    before = steady_state.ALPHA, steady_state.DRIFT, steady_state.IN_A_ROW
    steady_state.ALPHA, steady_state.DRIFT, steady_state.IN_A_ROW = 0.0, 0.0, 1
    try:
        yield
    finally:
        steady_state.ALPHA, steady_state.DRIFT, steady_state.IN_A_ROW = before


def table(runs: int, servers: Iterable[Server] = SERVERS) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| server | steady after, s | never | missed | MSER alone: after, s | never | missed |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for server in servers:
        ours = rates(server, runs)
        with mser_alone():
            alone = rates(server, runs)
        yield (
            f"| {server.name} | "
            + " | ".join(
                itertools.chain.from_iterable(
                    (f"{r.median_s:.0f} to {r.p90_s:.0f}", f"{r.never:.0%}", f"{r.missed:.0%}")
                    for r in (ours, alone)
                )
            )
            + " |"
        )


if __name__ == "__main__":
    for text in table(int(sys.argv[1]) if len(sys.argv) > 1 else 400):
        print(text, flush=True)
