"""The gate's verdicts on a metric and on a system, and their rules.

REGRESSED      certainly worse (p after Holm is below alpha, so the interval excludes 0), and by
               more than the tolerance
IMPROVED       certainly better, and by more than the tolerance; it passes
PASS           certainly at most the tolerance worse: the interval's upper end is below it
INCONCLUSIVE   none of these
not judged     the runs do not have this value
INVALID        of a system: something is wrong with the measurement, and no metric has a verdict
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from analysis import slo
from analysis.dataset import InputError
from analysis.metrics import METRICS
from analysis.stats import NAN, PairedResult

TOLERANCES = {
    "output_tokens_per_s": 0.05,
    "ttft_p50_s": 0.05,
    "ttft_p99_s": 0.15,
    "e2e_p50_s": 0.05,
    "e2e_p95_s": 0.10,
    "e2e_p99_s": 0.15,
    "server_cpu_per_request_s": 0.10,
    "server_peak_bytes": 0.10,
    "tokens_per_chunk": 0.05,
    "startup_s": 0.25,
}
# changes that no user notices, in the metric's unit: a tolerance is at least as large
LEAST_CHANGES = {"startup_s": 1.0}
BEYOND = 10  # requests that must lie beyond a percentile to judge it: P99 needs 1,000 in all
EXIT_CODES = {"PASS": 0, "REGRESSED": 1, "INVALID": 2, "INCONCLUSIVE": 3}


class GateRules(NamedTuple):
    """The judged metrics with their tolerances, and the SLO whose attainment must not fall."""

    tolerances: dict[str, float]
    bounds: tuple[slo.Bound, ...] = ()


class MetricVerdict(NamedTuple):
    """The verdict on one metric of one system. `base` and `head`: means in the metric's unit.
    `change`, `low`, `high`: head's change against base and its interval, as shares. `noise`: half
    the width of the interval of equal code, nan without a control. `why`: the reason for the
    verdict, with the remedy.
    """

    metric: str
    base: float
    head: float
    change: float
    low: float
    high: float
    tolerance: float
    verdict: str
    why: str = ""
    p: float = NAN
    p_holm: float = NAN
    noise: float = NAN
    detectable: float = NAN
    p_sign_flip: float = NAN


@dataclass
class SystemVerdict:
    """The verdict on one server under one traffic. `faults`: why it has none; `set_aside`: why
    repetitions do not count.
    """

    name: str
    repetitions: int = 0
    look: int = 0
    rows: list[MetricVerdict] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    needs_more: bool = False

    @property
    def verdict(self) -> str:
        if self.faults:
            return "INVALID"
        verdicts = {row.verdict for row in self.rows}
        return next((v for v in ("REGRESSED", "INCONCLUSIVE") if v in verdicts), "PASS")


@dataclass
class Gate:
    """The gate's result. `sides`: {base, head} in words. `notes`: remarks on the machine and the
    servers that change no verdict.
    """

    sides: dict[str, str]
    systems: list[SystemVerdict]
    notes: list[str]

    @property
    def verdict(self) -> str:
        verdicts = {system.verdict for system in self.systems}
        return next((v for v in ("INVALID", "REGRESSED", "INCONCLUSIVE") if v in verdicts), "PASS")

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    @property
    def not_judged(self) -> list[str]:
        """The labels of the metrics that have no verdict on some system."""
        rows = [row for system in self.systems for row in system.rows]
        labels = [METRICS[row.metric].label for row in rows if row.verdict == "not judged"]
        return list(dict.fromkeys(labels))


def parse_rules(metrics: str = "", tolerance: Iterable[str] = (), bounds: str = "") -> GateRules:
    """Parses "a,b", ["a=20%"] and an SLO. Raises InputError."""
    found = dict(TOLERANCES)
    if metrics:
        names = [name.strip() for name in metrics.split(",")]
        for name in names:
            known = [m.name for m in METRICS.values() if m.better or m.name in TOLERANCES]
            if name not in known:
                raise InputError(f"--metrics: {name!r} is not one of {', '.join(known)}")
        found = {name: TOLERANCES.get(name, 0.05) for name in names}
    for text in tolerance:
        name, _, value = text.partition("=")
        try:
            share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        except ValueError:
            share = math.nan
        if name not in found or not 0 < share < 1:
            raise InputError(
                f"--tolerance {text}: give METRIC=SHARE, such as e2e_p99_s=20%, of one of"
                f" {', '.join(found)}"
            )
        found[name] = share
    return GateRules(found, slo.parse_slo(bounds) if bounds else ())


def widen_tolerance(metric: str, tolerance: float, base: float) -> float:
    """Return the tolerance as a share of `base`, or that of LEAST_CHANGES if it is larger.

    >>> widen_tolerance("startup_s", 0.25, 0.5)
    2.0
    """
    return max(tolerance, LEAST_CHANGES.get(metric, 0.0) / base) if base > 0 else tolerance


def bound_of(metric: str, tolerance: float) -> float:
    """The tolerance as a difference of logarithms: 5% is 5% less throughput, or 5% more latency."""
    return -math.log1p(-tolerance) if METRICS[metric].better == "higher" else math.log1p(tolerance)


def sign_of(metric: str) -> float:
    return -1.0 if METRICS[metric].better == "higher" else 1.0


def judge_metric(
    metric: str,
    tolerance: float,
    means: tuple[float, float],
    d: PairedResult,
    p_holm: float,
    alpha: float,
    noise: float = NAN,
) -> MetricVerdict:
    """Judges one metric. `means`: of base and head; `d`: logarithms of head minus those of base, +
    is worse.
    """
    bound, detectable = bound_of(metric, tolerance), math.expm1(d.detectable)
    verdict, why = (
        "INCONCLUSIVE",
        f"could only detect {detectable:.0%}: allow more time, longer windows or a quieter machine",
    )
    if p_holm < alpha and d.mean > bound:
        verdict, why = (
            "REGRESSED",
            "find the change that caused it; to accept it, set a --tolerance",
        )
    elif p_holm < alpha and d.mean < -bound:
        verdict, why = "IMPROVED", ""
    elif d.high < bound:
        verdict, why = "PASS", ""
    # a share of the metric itself: 10% less throughput is -10%
    if METRICS[metric].better == "higher":
        change = math.expm1(-d.mean), math.expm1(-d.high), math.expm1(-d.low)
    else:
        change = math.expm1(d.mean), math.expm1(d.low), math.expm1(d.high)
    return MetricVerdict(
        metric, *means, *change, tolerance, verdict, why, d.p, p_holm, noise, detectable
    )


def undecided_metric(
    metric: str,
    tolerance: float,
    why: str,
    verdict: str = "INCONCLUSIVE",
    means: tuple[float, float] = (NAN, NAN),
) -> MetricVerdict:
    """A row without an interval. `means`: of base and head."""
    base, head = means
    change = head / base - 1 if base else NAN
    return MetricVerdict(metric, base, head, change, NAN, NAN, tolerance, verdict, why)


def explain_too_few(metric: str, least: float) -> str:
    """Why a percentile cannot be judged if a run has only `least` requests; empty if it can."""
    percent = float(metric.split("_p")[1].split("_")[0])
    needed = round(BEYOND / (1 - percent / 100))
    return (
        f"n too small: a run has {least:.0f} requests, but {needed:,} are needed: give a longer"
        " --duration"
        if least < needed
        else ""
    )


def judge_shares(metric: str, met: tuple[int, int], of: tuple[int, int]) -> MetricVerdict:
    """Judges shares of the requests of base and head by their Clopper-Pearson intervals: a change
    is certain if these do not overlap.
    """
    base, head = (slo.attainment_interval(m, n) for m, n in zip(met, of, strict=True))
    worse, better = head[0] > base[1], head[1] < base[0]
    if METRICS[metric].better == "higher":
        worse, better = better, worse
    seen = met[0] / of[0], met[1] / of[1]
    verdict = "REGRESSED" if worse else "IMPROVED" if better else "PASS"
    return MetricVerdict(
        metric, *seen, seen[1] - seen[0], head[0] - base[1], head[1] - base[0], 0.0, verdict
    )
