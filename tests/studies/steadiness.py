"""How often the check `steadiness` of analysis/checks/load.py fails, on simulated servers with a
known truth. Seeded.

    python -m tests.studies.steadiness [RUNS]       # a Markdown table

400 runs of each server take about three minutes. The servers are those of
tests/studies/steady_state.py, seen through a window of 25 s that opens after 20 s of load. Their
names are part of the seeds: a new name changes its numbers.
"""

import sys
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.case import CaseData
from analysis.checks import load
from loadtests import schema
from loadtests.generator import steady_state
from tests.studies import steady_state as servers

FROM_S, TO_S = 20.0, 45.0


class Case(NamedTuple):
    name: str
    drifts: bool  # the check should fail
    make: Callable[[Random], servers.Trace]


def observed(trace: servers.Trace) -> CaseData:
    """A case with only the columns that the check needs; the first row has all tokens."""
    r = pd.DataFrame(trace.requests)
    rows = pd.DataFrame(
        {
            "scheduled_s": r["scheduled_s"],
            "sent_s": r["scheduled_s"],
            "slot_s": None,
            "first_s": r["scheduled_s"] + r["ttft_s"],
            "last_s": r["done_s"],
            "done_s": r["done_s"],
            "error": None,
            "answer": "exact",
            "tokens": 2.0,
        }
    )
    middles = (np.arange(len(trace.tokens)) + 0.5) * steady_state.SLICE_S
    for name, first in (("token_s", middles), ("token_n", np.array(trace.tokens))):
        rows[name] = pd.Series([first, *[np.empty(0)] * (len(rows) - 1)], dtype="object")
    campaign: dict[str, Any] = {"scenarios": {}}
    return CaseData(
        campaign,
        {"window": {"start_s": FROM_S, "end_s": TO_S}, "case": {"scenario": ""}},
        rows.reindex(columns=list(schema.REQUEST_FIELDS)),
        pd.DataFrame(),
    )


def level(
    change: Callable[[float], float], noise: float = 0.1, rho: float = 0.3
) -> Callable[[Random], servers.Trace]:
    """A server whose throughput is lower and whose latency is higher by the share `change`, a
    function of the seconds since the window's start.
    """
    return lambda source: servers.level(
        source,
        lambda t: 1 - change(t - FROM_S),
        lambda t: 1 + change(t - FROM_S),
        noise,
        rho,
        until_s=50,
    )


def line(share: float) -> Callable[[float], float]:
    return lambda t: share * (t / (TO_S - FROM_S) - 0.5)


def opened(
    engine: Callable[..., servers.Trace], rate: float, burstiness: float | None = None
) -> Callable[[Random], servers.Trace]:
    return lambda source: engine(
        source, servers.opened(source, rate, burstiness, TO_S), until_s=150
    )


CASES = [
    *(
        Case(f"steady, noise that correlates by {rho}", False, level(lambda t: 0.0, rho=rho))
        for rho in (0, 0.3, 0.6, 0.8)
    ),
    *(
        Case(
            f"closed loop, {n} users, {engine.__name__}",
            False,
            lambda source, n=n, engine=engine: engine(source, n),
        )
        for engine in (servers.one_by_one, servers.batching, servers.sharing)
        for n in (1, 16)
    ),
    Case("Poisson 1.5/s, batching", False, opened(servers.batching, 1.5)),
    Case("Poisson 3/s, batching", False, opened(servers.batching, 3)),
    Case("gamma 3/s in bursts, batching", False, opened(servers.batching, 3, 0.25)),
    *(
        Case(
            f"Poisson, one by one, {share:.0%} of what it carries",
            share > 1,
            opened(servers.one_by_one, 4.7 * share),
        )
        for share in (0.5, 0.7, 0.8, 0.9, 1.1, 1.3, 1.5)
    ),
    Case("Poisson, sharing, 80% of what it carries", False, opened(servers.sharing, 4.7 * 0.8)),
    Case("Poisson, sharing, 130% of what it carries", True, opened(servers.sharing, 4.7 * 1.3)),
    *(
        Case(f"drift of {share:.0%} over the window", share > 0.1, level(line(share)))
        for share in (0.05, 0.1, 0.2, 0.3, 0.5)
    ),
    *(
        Case(f"likewise {share:.0%}, a tenth of the noise", share > 0.1, level(line(share), 0.01))
        for share in (0.05, 0.1, 0.2)
    ),
    *(
        Case(
            f"step of {share:.0%} in its middle",
            share > 0.1,
            level(lambda t, share=share: share * (t > 12)),
        )
        for share in (0.1, 0.2, 0.3)
    ),
    *(
        Case(
            f"half the speed at its begin, time constant {tau} s",
            True,
            level(lambda t, tau=tau: 0.5 * 2 ** -(t / tau / 0.693)),
        )
        for tau in (5, 10)
    ),
]


class Rates(NamedTuple):
    """Shares of the runs."""

    warned: float
    invalid: float


def rates(case: Case, runs: int) -> Rates:
    found = [
        load.check_steadiness(observed(case.make(Random(f"{case.name}/{run}"))))
        for run in range(runs)
    ]
    warned, invalid = (
        sum(c.ok is False and c.severity == severity for c in found) / runs
        for severity in ("warning", "invalid")
    )
    return Rates(warned, invalid)


def table(runs: int) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| server | drifts by more than 10% | warning | invalid |"
    yield "| --- | --- | --- | --- |"
    for case in CASES:
        found = rates(case, runs)
        yield (
            f"| {case.name} | {'yes' if case.drifts else 'no'} | {found.warned:.1%} |"
            f" {found.invalid:.1%} |"
        )


if __name__ == "__main__":
    for text in table(int(sys.argv[1]) if len(sys.argv) > 1 else 400):
        print(text, flush=True)
