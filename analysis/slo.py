"""Service-level objectives (SLOs): bounds on latencies and errors, and whether a case met them.

    ttft_p99=500ms,tpot_p99=50ms,errors=1%      or a preset's name

A bound without a percentile applies to each request: goodput counts the requests that meet it.
Where a share of the requests is needed, it stands for P99.
"""

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy

from analysis.dataset import InputError
from analysis.stats import CONFIDENCE, percentile, values_needed

PRESETS = {
    # MLPerf Inference, datacenter, Server and Interactive: P99 of TTFT and of TPOT
    # (mlcommons.org/benchmarks/inference-datacenter)
    "llama3.1-8b": "ttft_p99=2000ms,tpot_p99=100ms",
    "llama3.1-8b-interactive": "ttft_p99=500ms,tpot_p99=30ms",
    "llama2-70b": "ttft_p99=2000ms,tpot_p99=200ms",
    "llama2-70b-interactive": "ttft_p99=450ms,tpot_p99=40ms",
    # the alert that most teams configure first
    "classic": "e2e_p99=2s,errors=1%",
}
FORM = "write it as ttft_p99=500ms,tpot_p99=50ms,e2e_p95=5s,errors=1%, or give one of " + ", ".join(
    PRESETS
)


class Bound(NamedTuple):
    """For `share` of the requests, `latency` is at most `seconds`. With "failed" as the latency,
    `share` of the requests do not fail.
    """

    latency: str  # ttft_s, tpot_s, e2e_s or failed
    share: float
    seconds: float

    def __str__(self) -> str:
        if self.latency == "failed":
            return f"errors ≤ {100 * (1 - self.share):g}%"
        return (
            f"{self.latency.removesuffix('_s').upper()} P{100 * self.share:g} ≤"
            f" {self.seconds * 1000:g} ms"
        )


class BoundResult(NamedTuple):
    """How far a case met a bound: `met` of `of` requests did. [low, high] is the 95% interval of
    their share (Clopper, Pearson, "The use of confidence or fiducial limits illustrated in the case
    of the binomial", 1934). `seen` is the observed percentile, s (for errors, their share), or nan
    if it falls on one of the `unmeasured` requests, which may or may not have met the bound.
    """

    bound: Bound
    met: int
    of: int
    low: float
    high: float
    seen: float
    unmeasured: int = 0

    @property
    def holds(self) -> bool:
        """Whether the observed share meets the bound."""
        return self.met >= self.bound.share * self.of - 1e-9

    @property
    def is_known(self) -> bool:
        """Whether `holds` is the same whatever the unmeasured requests did."""
        return self.holds or self.met + self.unmeasured < self.bound.share * self.of - 1e-9

    @property
    def needed(self) -> int:
        """The number of requests that this percentile needs (stats.py)."""
        return values_needed(100 * self.bound.share)

    @property
    def is_certain(self) -> bool:
        """Whether `holds` has 95% confidence. The interval assumes that requests miss the bound
        independently of each other; in a queue they miss it in clusters.
        """
        return self.low >= self.bound.share or self.high < self.bound.share


def parse_slo(text: str) -> tuple[Bound, ...]:
    """Parses bounds, or a preset's name. Raises InputError.

    >>> [str(bound) for bound in parse_slo("ttft_p95=0.5s,errors=1%")]
    ['TTFT P95 ≤ 500 ms', 'errors ≤ 1%']
    """
    found = []
    for part in PRESETS.get(text.strip(), text).split(","):
        latency = re.fullmatch(
            r"\s*(ttft|tpot|e2e)(?:_p(\d{1,2}(?:\.\d+)?))?\s*=\s*(\d+(?:\.\d+)?)\s*(ms|s)\s*", part
        )
        errors = re.fullmatch(r"\s*errors\s*=\s*(\d{1,2}(?:\.\d+)?)\s*%\s*", part)
        if latency and float(latency[3]) > 0:
            seconds = float(latency[3]) / (1000 if latency[4] == "ms" else 1)
            found.append(Bound(f"{latency[1]}_s", float(latency[2] or 99) / 100, seconds))
        elif errors:
            found.append(Bound("failed", 1 - float(errors[1]) / 100, 0.0))
        else:
            raise InputError(f"cannot read the SLO {part!r}: {FORM}")
    if len({bound.latency for bound in found}) < len(found):
        raise InputError(f"the SLO {text!r} has two bounds for one latency: {FORM}")
    return tuple(found)


def parse_max_errors(text: str) -> float:
    """Parses a share of requests from "5%" or "0.05". Raises InputError."""
    number = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    share = float(number[1]) / (100 if number[2] else 1) if number else math.nan
    if not 0 <= share <= 1:
        raise InputError(f"--max-errors {text}: give a share of the requests, such as 5%")
    return share


def request_bounds(bounds: Sequence[Bound]) -> dict[str, float]:
    """The bounds of a single request: latency's name -> seconds."""
    return {bound.latency: bound.seconds for bound in bounds if bound.latency != "failed"}


def judge_bounds(requests: pd.DataFrame, bounds: Sequence[Bound]) -> list[BoundResult]:
    """Judges the requests scheduled in the window, with the columns of CaseData.rows, by each
    bound. A failure misses every bound of TTFT and E2E. A failure and a response of one token have
    no TPOT, and do not count there. A response of several tokens without a TPOT (`tpot_missing`)
    misses every bound of TPOT.
    """
    missing = requests.get("tpot_missing", pd.Series(False, requests.index))
    found = []
    for bound in bounds:
        unmeasured = int(missing.sum()) if bound.latency == "tpot_s" else 0
        if bound.latency == "failed":
            met = (~requests["failed"]).to_numpy()
            seen = 1 - float(met.mean()) if len(met) else math.nan
        else:
            values = requests[bound.latency]
            values = (
                values.mask(missing, np.inf).dropna()
                if bound.latency == "tpot_s"
                else values.where(~requests["failed"], np.inf).fillna(np.inf)
            )
            met = (values <= bound.seconds).to_numpy()
            seen = percentile(values.to_numpy(), 100 * bound.share)
            seen = math.nan if unmeasured and math.isinf(seen) else seen
        found.append(
            BoundResult(
                bound,
                int(met.sum()),
                len(met),
                *attainment_interval(int(met.sum()), len(met)),
                seen,
                unmeasured,
            )
        )
    return found


@cache  # studies call it thousands of times
def attainment_interval(met: int, of: int) -> tuple[float, float]:
    """The two-sided 95% Clopper-Pearson interval of the share met / of; [0, 1] if `of` is 0."""
    if not of:
        return 0.0, 1.0
    tail, missed = (1 - CONFIDENCE) / 2, of - met
    low = scipy.special.betaincinv(met, missed + 1, tail) if met else 0.0
    high = scipy.special.betaincinv(met + 1, missed, 1 - tail) if missed else 1.0
    return float(low), float(high)


def count_requests_needed(bounds: Sequence[Bound]) -> int:
    """The number of requests with which a case without a miss certainly meets every bound: 368 for
    P99. Raises InputError above 100,000.
    """
    strictest = max(bound.share for bound in bounds)
    of = math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(strictest))
    if of > 100_000:
        raise InputError(
            f"a share of {strictest:.4%} needs more than 100,000 requests in a case: give a lower"
            " percentile"
        )
    return of
