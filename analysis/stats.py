"""Reduces many values to one: percentiles within a case, estimates over cases. The unit of
replication is the case, with a freshly started server.

A percentile is nearest-rank (numpy's "inverted_cdf"): an observed value, never an interpolated one,
so that +inf (a failure) keeps its rank. It needs enough values for the largest of them to lie
beyond it with 95% confidence, 1 - p^n >= 0.95 (the non-parametric bound of the largest order
statistic): 5 for P50, 59 for P95, 299 for P99. With fewer, the percentile is missing.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy  # scipy.stats loads at its first use: that takes most of a second, scipy.special 0.1 s

CONFIDENCE = 0.95
POWER = 0.80
NAN = float("nan")


def percentile(values: np.ndarray, p: float) -> float:
    """The nearest-rank percentile, in the values' unit; nan without values."""
    return float(np.percentile(values, p, method="inverted_cdf")) if len(values) else NAN


def values_needed(p: float) -> int:
    """The number of values that a percentile needs: the least n with 1 - (p/100)^n >= 0.95."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(p / 100))


class Estimate(NamedTuple):
    """The mean of one scalar over `runs` cases. `half` is the half-width of its 95% interval, nan
    if it has none.
    """

    mean: float
    half: float
    runs: int

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high); without a half-width, both are the mean."""
        half = 0.0 if math.isnan(self.half) else self.half
        return self.mean - half, self.mean + half


def estimate_mean(values: Any) -> Estimate:
    """The mean and its Student-t interval over cases: half = t(0.975, n-1) * s / sqrt(n). One run
    has no interval, and neither have runs with a value of +inf. Cases without the value are left
    out.
    """
    v = np.asarray(values, dtype="float64")
    v = v[~np.isnan(v)]
    if len(v) == 0:
        return Estimate(NAN, NAN, 0)
    if len(v) == 1 or np.isinf(v).any():
        return Estimate(float(v.mean()), NAN, len(v))
    quantile = scipy.special.stdtrit(len(v) - 1, (1 + CONFIDENCE) / 2)
    half = quantile * v.std(ddof=1) / math.sqrt(len(v))
    return Estimate(float(v.mean()), float(half), len(v))


class WelchResult(NamedTuple):
    """The difference of two means (a - b), its 95% interval, the two-sided p of no difference, and
    the smallest true difference that two such samples would detect (their interval excludes 0) with
    a probability of 80%: (t(0.975) + t(0.8)) x standard error (H. S. Bloom, "Minimum Detectable
    Effects", Evaluation Review 19(5), 1995).
    """

    difference: float
    low: float
    high: float
    p: float
    detectable: float


def welch_test(a: Any, b: Any) -> WelchResult:
    """Welch's t-test for unequal variances, with Satterthwaite's degrees of freedom. It needs two
    values of each. Where neither varies at all, as simulated values may, the difference is certain.
    """
    a, b = np.asarray(a, dtype="float64"), np.asarray(b, dtype="float64")
    difference = float(a.mean() - b.mean())
    if a.std(ddof=1) == 0 and b.std(ddof=1) == 0:
        return WelchResult(difference, *_without_scatter(difference))
    squared = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    share = squared[0] / sum(squared)
    freedom = 1 / (share**2 / (len(a) - 1) + (1 - share) ** 2 / (len(b) - 1))
    return WelchResult(
        difference, *_student_test(difference, math.sqrt(sum(squared)), freedom, CONFIDENCE)
    )


def _student_test(
    mean: float, standard_error: float, freedom: float, confidence: float
) -> tuple[float, float, float, float]:
    """(low, high, p, detectable) of a mean against 0. scipy.stats has these tests too, but takes 20
    times as long for each, which a gate makes by the hundred.
    """
    quantile, power = scipy.special.stdtrit(freedom, [(1 + confidence) / 2, POWER])
    half = float(quantile * standard_error)
    p = 2 * float(scipy.special.stdtr(freedom, -abs(mean / standard_error)))
    return mean - half, mean + half, p, float((quantile + power) * standard_error)


def _without_scatter(mean: float) -> tuple[float, float, float, float]:
    """(low, high, p, detectable) of values that do not vary at all."""
    return mean, mean, 1.0 if mean == 0 else 0.0, 0.0


class PairedResult(NamedTuple):
    """The mean of differences, its interval at the chosen confidence, the two-sided p of no
    difference by Student's t-test, and the smallest detectable true mean, as in WelchResult.
    """

    mean: float
    low: float
    high: float
    p: float
    detectable: float


def paired_test(differences: Any, alpha: float = 1 - CONFIDENCE) -> PairedResult:
    """Student's t-test of at least two differences, with an interval at confidence 1 - alpha. A
    mean of differences that do not vary at all is certain.
    """
    d = np.asarray(differences, dtype="float64")
    mean = float(d.mean())
    if d.std(ddof=1) == 0:
        return PairedResult(mean, *_without_scatter(mean))
    standard_error = float(d.std(ddof=1)) / math.sqrt(len(d))
    return PairedResult(mean, *_student_test(mean, standard_error, len(d) - 1, 1 - alpha))


def sign_flip_test(differences: Any) -> float:
    """The two-sided p of no difference by the exact permutation test, which does not assume a
    normal distribution: the share of all 2^n choices of signs whose sum is at least as far from 0
    as the observed one. It is never below 2 / 2^n with n differences, n at most about 20.
    """
    d = np.asarray(differences, dtype="float64")
    sums = np.zeros(1)
    for each in d:
        sums = np.concatenate([sums - each, sums + each])
    rounding = 1e-12 * np.abs(d).sum()
    return float(np.mean(np.abs(sums) >= abs(d.sum()) - rounding))


def holm_adjust(p: Sequence[float], of: int | None = None) -> list[float]:
    """Adjusts p-values for their number, or for `of` tests of which these are some (S. Holm,
    Scandinavian Journal of Statistics 6, 1979).

    >>> holm_adjust([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    found, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, ((of or len(p)) - rank) * p[i]))
        found[i] = highest
    return found


class TrendResult(NamedTuple):
    """`change`: the rise of the fitted line over the whole range, as a share of the values' mean;
    `p`: the two-sided p of no slope.
    """

    change: float
    p: float


def trend_test(times: Any, values: Any, length: float) -> TrendResult:
    """Fits a line by least squares and tests its slope with a t-test of n - 2 degrees of freedom.
    It needs three values. `length` is that of the range, in the times' unit. The slope of values
    without any scatter around the line is certain.
    """
    v = np.asarray(values, dtype="float64")
    if np.ptp(v) == 0:
        return TrendResult(0.0, 1.0)
    t = np.asarray(times, dtype="float64")
    t = t - t.mean()
    slope = float(t @ v / (t @ t))
    freedom = len(v) - 2
    error = float(np.std(v - slope * t) * math.sqrt(len(v) / freedom / (t @ t)))
    p = 2 * float(scipy.special.stdtr(freedom, -abs(slope / error))) if error else 0.0
    return TrendResult(slope * length / float(v.mean()), p)


def mean_ratio(a: Any, b: Any) -> tuple[float, float, float]:
    """(ratio, low, high) of a's geometric mean to b's, with Welch's 95% interval on logarithms. The
    interval is nan with fewer than two runs of either; with a zero, all three are nan.
    """
    a, b = np.asarray(a, dtype="float64"), np.asarray(b, dtype="float64")
    if not ((a > 0).all() and (b > 0).all()):
        return NAN, NAN, NAN
    if min(len(a), len(b)) < 2:
        return float(np.exp(np.log(a).mean() - np.log(b).mean())), NAN, NAN
    w = welch_test(np.log(a), np.log(b))
    return math.exp(w.difference), math.exp(w.low), math.exp(w.high)
