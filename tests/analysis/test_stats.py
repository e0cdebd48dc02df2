"""Statistics against values computed by hand and by SciPy."""

import math

import numpy as np
import pytest
import scipy  # scipy.stats loads at its first use, not in each process that collects tests

from analysis import slo, stats


def test_percentiles_are_observed_values():
    values = np.array([4.0, 1.0, 3.0, 2.0])
    assert [stats.percentile(values, p) for p in (25, 50, 51, 99)] == [1, 2, 3, 4]
    assert stats.percentile(np.array([1.0, math.inf, math.inf]), 50) == math.inf
    assert stats.percentile(np.array([1.0, 2.0, math.inf]), 50) == 2
    assert math.isnan(stats.percentile(np.empty(0), 50))


def test_estimate_is_students_interval():
    values = [10.0, 12.0, 17.0]
    e = stats.estimate_mean([*values, math.nan])
    low, high = scipy.stats.t.interval(0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (e.mean, e.runs) == (13, 3)
    assert e.interval == pytest.approx((low, high))
    assert stats.estimate_mean([10.0]).runs == 1 and math.isnan(stats.estimate_mean([10.0]).half)
    assert stats.estimate_mean([1.0, math.inf]).mean == math.inf
    assert stats.estimate_mean([]).runs == 0


def test_trend():
    times, values = [0.0, 1.0, 3.0, 4.0, 6.0], [5.0, 6.0, 5.5, 8.0, 7.0]
    expected = scipy.stats.linregress(times, values)
    assert stats.trend_test(times, values, 6.0) == pytest.approx(
        (expected.slope * 6.0 / 6.3, expected.pvalue)
    )
    assert stats.trend_test([1, 2, 3], [4, 4, 4], 2.0) == (0, 1)
    assert stats.trend_test([1, 2, 3], [1, 2, 3], 2.0) == (1, 0)


@pytest.mark.parametrize("of", [1, 5, 299])
def test_attainment_is_clopper_and_pearsons_interval(of):
    for met in {0, 1, of // 2, of - 1, of}:
        expected = scipy.stats.binomtest(met, of).proportion_ci(0.95, method="exact")
        assert slo.attainment_interval(met, of) == pytest.approx((expected.low, expected.high))
    assert slo.attainment_interval(0, 0) == (0, 1)


def test_welch():
    a, b = [10.0, 12.0, 17.0, 11.0], [20.0, 29.0, 22.0]
    expected = scipy.stats.ttest_ind(a, b, equal_var=False)
    assert stats.welch_test(a, b)[1:4] == pytest.approx(
        (*expected.confidence_interval(0.95), expected.pvalue)
    )
    assert (
        stats.welch_test([1.0, 1.0], [1.0, 1.0]).p == 1
        and stats.welch_test([1.0, 1.0], [2.0, 2.0]).p == 0
    )


def test_ratio():
    point, low, high = stats.mean_ratio([20.0, 22.0], [10.0, 11.0])
    assert point == pytest.approx(2) and low < 2 < high
    assert stats.mean_ratio([20.0], [10.0])[0] == pytest.approx(2) and math.isnan(
        stats.mean_ratio([20.0], [10.0])[1]
    )
    assert math.isnan(stats.mean_ratio([20.0], [0.0])[0])
