"""Judges whether the load is steady and the warm-up may end. Pure, standard library only, under a
millisecond per verdict.

    judge = SteadyJudge()
    verdict = judge.judge({"tokens/s": counts, "TTFT": ttft_s, "TPOT": tpot_s}, covered_s, window_s)

The coordinator asks once per second. Each series starts when the whole load is on (all users have
started) and lasts until now: tokens in each slice of SLICE_S seconds, and TTFT and TPOT of each
finished request in the order in which they finished. TTFT shows growing queues and warming caches;
TPOT shows growing batches, finished compilers and falling clocks. E2E is left out: it varies with
the lengths of responses, short ones finish first, and in a closed loop it is the reciprocal of
throughput. If no response has a TPOT (each arrives in one piece), that series is left out.

A series is steady if the part that MSER keeps has no trend, or one that is too small to matter:

1. It is cut into 10 to 20 batches of equal numbers of values, at least 5, and each batch is
   replaced by its mean.
2. `mser_cut` gives the number of batches to cut off at the start. If that is half of them or more,
   the transient is not over and more data are needed; until then the last half is kept.
3. `trend_p_value` tests the kept part: p < 0.1 is a trend.
4. A trend, or a transient that is not over, is tolerated if the straight line through the kept part
   changes by at most 5% of its mean over the length of the window. Otherwise very regular servers,
   whose smallest drift is significant, would never be steady.

All series must be steady three times in a row. `python -m tests.studies.steady_state` measures how
often the verdict is wrong on simulated servers with a known truth; docs/methodology.md has the
results.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

SLICE_S = 0.2  # the fewest values, 50, then take 10 s
LEAST, MOST = 10, 20  # batches
BATCH = 5  # fewest values in a batch
TAIL = 5  # batches that are never cut off: the spread of fewer is not meaningful
ALPHA = 0.1
DRIFT = 0.05
IN_A_ROW = 3  # verdicts: with one test per second, a single one would soon pass by chance


class Finding(NamedTuple):
    """The result of the test on one series. The first `cut` of its `batches` are the transient. `p`
    is the p-value of no trend in the rest; `drift` is the change over the coming window, as a share
    of the mean, if the rest's line continued. Both are None if there are too few values.
    """

    steady: bool
    batches: int
    cut: int
    p: float | None
    drift: float | None

    def __str__(self) -> str:
        if self.batches < LEAST:
            return f"too few values: {self.batches} batches of {LEAST}"
        return (
            f"{self.cut} of {self.batches} batches cut, then {self.drift:+.1%} over the window, p ="
            f" {self.p:.2g}"
        )


class SteadyVerdict(NamedTuple):
    """The verdict on the load; `why` is one sentence in either case."""

    steady: bool
    why: str
    findings: dict[str, Finding]

    def describe_wait(self) -> str | None:
        """Describes in a few words what the warm-up waits for; None if the load is steady."""
        if self.steady:
            return None
        few = [name for name, each in self.findings.items() if each.drift is None]
        waits = [f"too few values of {', '.join(few)}"] if few else []
        waits += [
            f"{name} would change by {each.drift:+.0%} over the window"
            for name, each in self.findings.items()
            if not each.steady and each.drift is not None
        ]
        return "; ".join(waits) or f"it is steady, but not yet {IN_A_ROW} times in a row"


class SeriesCollector:
    """Makes the series from the load workers' reports. Tokens/s follow from the bytes of all
    responses so far, which are known at once; tokens are counted only when a response has ended.
    The whole load is on from `begin_s`.
    """

    def __init__(self, begin_s: float):
        self.begin_s = begin_s
        # of each worker: (time in s, bytes until then), in order
        self.received: dict[int, list[tuple[float, int]]] = {}
        # (done_s, ttft_s, tpot_s) of each response
        self.ended: list[tuple[float, float, float | None]] = []

    def add(
        self,
        worker: int,
        at_s: float,
        received: int,
        ended: Iterable[tuple[float, float, float | None]],
    ) -> None:
        """Adds a worker's report: bytes received until `at_s`, and responses that have ended."""
        self.received.setdefault(worker, []).append((at_s, received))
        for done_s, ttft_s, tpot_s in ended:
            if done_s >= self.begin_s:
                self.ended.append((done_s, ttft_s, tpot_s))

    def responses_per_s(self, until_s: float) -> float:
        """Returns the rate of responses that ended in the later half of the collected time."""
        since_s = (self.begin_s + until_s) / 2
        ended = sum(done_s >= since_s for done_s, _, _ in self.ended)
        return ended / (until_s - since_s) if until_s > since_s else 0.0

    def series(self) -> tuple[dict[str, list[float]], float]:
        """Returns the series for `SteadyJudge.judge`, and the seconds that they cover."""
        until_s = min((points[-1][0] for points in self.received.values()), default=self.begin_s)
        count = max(0, int((until_s - self.begin_s) / SLICE_S))
        edges = [self.begin_s + i * SLICE_S for i in range(count + 1)]
        sums = [
            sum(each)
            for each in zip(
                *(interpolate_at(points, edges) for points in self.received.values()), strict=True
            )
        ]
        self.ended.sort()
        series = {
            "tokens/s": [after - before for before, after in pairwise(sums)],
            "TTFT": [ttft_s for _, ttft_s, _ in self.ended],
        }
        if tpot := [tpot_s for _, _, tpot_s in self.ended if tpot_s is not None]:
            series["TPOT"] = tpot
        return series, max(until_s - self.begin_s, SLICE_S)


def interpolate_at(points: Sequence[tuple[float, float]], edges: Sequence[float]) -> list[float]:
    """Returns a counter's value at each time, in order, on straight lines between its points.

    >>> interpolate_at([(0, 0), (2, 10), (3, 10)], [1, 2, 2.5])
    [5.0, 10.0, 10.0]
    """
    values, i = [], 1
    for at in edges:
        while i < len(points) - 1 and points[i][0] < at:
            i += 1
        (before_s, before), (after_s, after) = (
            points[max(i - 1, 0)],
            points[min(i, len(points) - 1)],
        )
        share = (at - before_s) / (after_s - before_s) if after_s > before_s else 1.0
        values.append(before + (after - before) * share)
    return values


class SteadyJudge:
    """Gives a verdict once per second during the warm-up. It remembers only how many times in a row
    all series were steady.
    """

    def __init__(self) -> None:
        self.in_a_row = 0

    def judge(
        self, series: Mapping[str, Sequence[float]], covered_s: float, window_s: float
    ) -> SteadyVerdict:
        """Judges the series. `covered_s` > 0 is the time from their start until now; `window_s` is
        the length of the window that would open now. No value may be nan.
        """
        findings = {
            name: examine_series(values, window_s / covered_s) for name, values in series.items()
        }
        drifting = {name: each for name, each in findings.items() if not each.steady}
        self.in_a_row = 0 if drifting else self.in_a_row + 1
        steady = self.in_a_row >= IN_A_ROW
        what = (
            "steady"
            if steady
            else "not yet steady"
            if drifting
            else f"steady {self.in_a_row} of {IN_A_ROW} times"
        )
        return SteadyVerdict(
            steady,
            f"{what}: "
            + "; ".join(f"{name}: {each}" for name, each in (drifting or findings).items()),
            findings,
        )


def examine_series(values: Sequence[float], ahead: float) -> Finding:
    """Tests one series. `ahead` is the window's length as a multiple of the time that the values
    cover.
    """
    size = max(BATCH, math.ceil(len(values) / MOST))
    means = batch_means(values, size)
    if len(means) < LEAST:
        return Finding(False, len(means), 0, None, None)
    cut = mser_cut(means)
    ended = 2 * cut < len(means)
    kept = means[cut if ended else len(means) // 2 :]
    p, mean = trend_p_value(kept), sum(kept) / len(kept)
    change = least_squares_slope(kept) * len(values) / size * ahead
    drift = change / mean if change else 0.0  # a series of zeros has no mean to divide by
    return Finding((ended and p >= ALPHA) or abs(drift) <= DRIFT, len(means), cut, p, drift)


def batch_means(values: Sequence[float], size: int) -> list[float]:
    """Returns the means of `size` values each. Left-over values are dropped at the start, because
    the newest matter most.

    >>> batch_means([9, 1, 3, 5, 7], 2)
    [2.0, 6.0]
    """
    return [sum(values[i : i + size]) / size for i in range(len(values) % size, len(values), size)]


def mser_cut(means: Sequence[float]) -> int:
    """Returns the number of batches to cut off at the start: the d, the smallest if several, that
    minimizes the marginal standard error of the mean of the n - d others, sum of squared deviations
    / (n - d)^2. At least TAIL batches are left.

    On means of 5 values this is MSER-5: White, "An effective truncation heuristic for bias
    reduction in simulation output", Simulation 69(6), 1997; White, Cobb and Spratt, "A comparison
    of five steady-state truncation heuristics for simulation", Winter Simulation Conference 2000.
    A cut in the second half means "more data": Hoad, Robinson and Davies, "Automating warm-up
    length estimation", Journal of the Operational Research Society 61(9), 2010.

    >>> mser_cut([9, 1, 3, 1, 3, 1, 3])
    1
    """
    n, cut, least = len(means), 0, math.inf
    total = squares = 0.0
    for d in range(n - 1, -1, -1):  # backwards, so both sums grow by one value: O(n)
        value = means[d] - means[-1]  # subtracting a near value keeps the squares exact
        total, squares = total + value, squares + value * value
        error = max(0.0, squares - total * total / (n - d)) / (n - d) ** 2
        if n - d >= TAIL and error <= least:
            cut, least = d, error
    return cut


def trend_p_value(values: Sequence[float]) -> float:
    """Returns the two-sided p-value of no trend: Mann-Kendall, normal approximation with continuity
    and ties corrected (Mann, "Nonparametric tests against trend", Econometrica 13, 1945; Kendall,
    Rank Correlation Methods). It uses ranks, because latencies have outliers. O(n^2).

    >>> round(trend_p_value([1, 2, 3, 4, 5, 6]), 4), trend_p_value([1, 1, 1, 1])
    (0.0085, 1.0)
    """
    n = len(values)
    score = sum((b > a) - (b < a) for a, b in combinations(values, 2))
    variance = (
        n * (n - 1) * (2 * n + 5) - sum(t * (t - 1) * (2 * t + 5) for t in Counter(values).values())
    ) / 18
    if score == 0:
        return 1.0
    return math.erfc((abs(score) - 1) / math.sqrt(2 * variance))


def least_squares_slope(values: Sequence[float]) -> float:
    """Returns the slope, per step, of the least-squares line through equally spaced values. Needs
    at least two.
    """
    n, mean = len(values), sum(values) / len(values)
    return (
        sum((i - (n - 1) / 2) * (value - mean) for i, value in enumerate(values))
        * 12
        / (n * (n * n - 1))
    )
