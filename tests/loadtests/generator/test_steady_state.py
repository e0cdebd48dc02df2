"""The test for a steady state, by hand and on simulated servers. Seeds are fixed, so the error
rates are exact: a bound breaks only if the rule changes, never by chance.
"""

import math
import random
from functools import cache

import pytest

from loadtests.generator.steady_state import (
    IN_A_ROW,
    Finding,
    SteadyJudge,
    batch_means,
    examine_series,
    least_squares_slope,
    mser_cut,
    trend_p_value,
)
from tests.studies import steady_state as study

RUNS = 25
PRECISE = "a tenth of the noise"


def test_mser_by_hand() -> None:
    """For 9 1 3 1 3 1 3, all values have the mean 3 and the squares 48: 48/49. Without the 9 it is
    mean 2 and squares 6: 6/36. Without two it is 4.8/25.
    """
    assert mser_cut([9, 1, 3, 1, 3, 1, 3]) == 1
    # 8/64; with the 4 it would be 40/81, without the first 9 it would be 6.9/49
    assert mser_cut([0, 4, 9, 11, 9, 11, 9, 11, 9, 11]) == 2
    assert mser_cut([1, 3, 1, 3, 1, 3, 9]) == 0, "an outlier at the end is no transient"


def test_mser_leaves_five() -> None:
    assert mser_cut(range(100)) == 95, "a straight line is all transient"
    assert mser_cut([9, 1, 1, 1]) == 0


def test_mser_follows_its_definition() -> None:
    source = random.Random(1)
    for _ in range(200):
        means = [1e6 + source.gauss(0, 1) + 5 * (i < 4) for i in range(source.randint(10, 20))]
        kept = [means[d:] for d in range(len(means) - 4)]
        errors = [sum((v - sum(k) / len(k)) ** 2 for v in k) / len(k) ** 2 for k in kept]
        assert mser_cut(means) == errors.index(min(errors))


def test_trend_by_hand() -> None:
    """Six values in order give S = 15, variance 6 * 5 * 17 / 18 and z = 14 / 5.323. Four values
    with one tie give S = 5.
    """
    assert (
        trend_p_value([1, 2, 3, 4, 5, 6])
        == trend_p_value([6, 5, 4, 3, 2, 1])
        == pytest.approx(math.erfc(14 / math.sqrt(85 / 3) / math.sqrt(2)))
    )
    assert trend_p_value([1, 2, 2, 3]) == pytest.approx(
        math.erfc(4 / math.sqrt((156 - 18) / 18) / math.sqrt(2))
    )
    assert trend_p_value([1, 3, 3, 1]) == trend_p_value([7, 7, 7]) == trend_p_value([7]) == 1
    assert trend_p_value([1, 2, 3, 4, 5, 1000]) == trend_p_value([1, 2, 3, 4, 5, 6]), (
        "with ranks, the size of an outlier does not matter"
    )


def test_slope_and_batches() -> None:
    assert (
        least_squares_slope([5, 7, 9, 11]) == pytest.approx(2)
        and least_squares_slope([4, 4]) == 0
        and least_squares_slope([0, 0, 3]) == pytest.approx(1.5)
    )
    assert (
        batch_means([9, 9, 1, 3, 5, 7], 2) == [9, 2, 6]
        and batch_means([9, 1, 3], 2) == [2]
        and batch_means([1], 2) == []
    )


def test_there_are_10_to_20_batches_of_at_least_5_values() -> None:
    assert [
        examine_series([1.0] * n, 1).batches for n in (0, 49, 50, 54, 99, 100, 101, 2000, 2001)
    ] == [0, 9, 10, 10, 19, 20, 16, 20, 19]


def test_the_drift_is_that_of_the_coming_window() -> None:
    """100 values rise by 0.1% each; over a window three times as long that is 30% of the first
    value, and 30% / 1.07 of the kept values' mean.
    """
    assert examine_series([1 + i / 1000 for i in range(100)], 3).drift == pytest.approx(
        0.3 / (1 + 0.0005 + 0.072), rel=0.01
    )


def test_constant_series_are_steady() -> None:
    for value in (0.0, 0.1, 1e9):
        assert examine_series([value] * 60, 2.5) == Finding(True, 12, 0, 1.0, 0.0)
    assert examine_series([0.0] * 20 + [0.1] * 40, 2.5)[:3] == (True, 12, 4)
    assert examine_series([0.0] * 40 + [0.1] * 20, 2.5)[:3] == (False, 12, 0), (
        "the trend test sees a recent step, MSER does not"
    )


def test_a_tiny_drift_without_noise_is_tolerated_and_a_large_one_is_not() -> None:
    for share, steady in ((0.01, True), (0.04, True), (0.06, False), (-0.06, False)):
        found = examine_series([100 + share * i for i in range(100)], 1)
        assert found.steady == steady and found.cut >= 10 and found.p is not None and found.p < 0.01


def test_an_outlier_at_the_end_is_no_transient() -> None:
    source = random.Random(1)
    assert examine_series([*(source.gauss(100, 5) for _ in range(99)), 1000.0], 1)[:3] == (
        True,
        20,
        0,
    )


def test_the_judge_requires_every_series_three_times_in_a_row() -> None:
    flat, rising = [1.0] * 50, [1.0 + i for i in range(50)]
    judge = SteadyJudge()
    assert [
        judge.judge({"a": flat, "b": series}, 10, 25).steady
        for series in (flat, flat, rising, flat, flat, flat, flat, rising, flat)
    ] == [False, False, False, False, False, True, True, False, False]
    assert IN_A_ROW == 3


def test_the_judge_gives_its_reason() -> None:
    judge, flat = SteadyJudge(), [1.0] * 50
    assert (
        judge.judge({"tokens/s": flat, "TTFT": []}, 10, 25).why
        == "not yet steady: TTFT: too few values: 0 batches of 10"
    )
    found = judge.judge({"tokens/s": [1.0 + i for i in range(50)], "TTFT": flat}, 10, 25)
    assert (
        found.why
        == "not yet steady: tokens/s: 5 of 10 batches cut, then +328.9% over the window, p = 0.027"
    )
    assert found.findings["TTFT"].steady and not found.findings["tokens/s"].steady
    every = "tokens/s: 0 of 10 batches cut, then +0.0% over the window, p = 1"
    assert [judge.judge({"tokens/s": flat}, 10, 25).why for _ in range(3)] == [
        f"steady 1 of 3 times: {every}",
        f"steady 2 of 3 times: {every}",
        f"steady: {every}",
    ]


def test_the_judge_describes_what_it_waits_for() -> None:
    judge, flat, rising = SteadyJudge(), [1.0] * 50, [1.0 + i for i in range(50)]
    assert judge.judge({"tokens/s": rising, "TTFT": [], "TPOT": []}, 10, 25).describe_wait() == (
        "too few values of TTFT, TPOT; tokens/s would change by +329% over the window"
    )
    assert [judge.judge({"tokens/s": flat}, 10, 25).describe_wait() for _ in range(3)] == [
        *["it is steady, but not yet 3 times in a row"] * 2,
        None,
    ]


@cache
def rates(server: study.Server) -> study.Rates:
    return study.rates(server, RUNS)


def worst(*parts: str) -> study.Rates:
    """Returns the largest of each rate among the servers whose names contain one of the parts."""
    found = [
        rates(server) for server in study.SERVERS if any(part in server.name for part in parts)
    ]
    assert len(found) >= len(parts)
    return study.Rates(*(max(one[i] for one in found) for i in range(4)))


def test_a_steady_server_is_recognized() -> None:
    seen = worst("steady, noise", "steady, a tenth", "steady, waves", "closed loop", "ten slow")
    assert seen.median_s <= 22 and seen.p90_s <= 39 and seen.never == 0
    seen = worst("Poisson 3/s", "gamma", "Poisson 1.5/s")  # 50 requests take 17 and 33 s
    assert seen.median_s <= 37 and seen.p90_s <= 47 and seen.never <= 0.08


def test_the_judge_waits_for_a_transient_to_end() -> None:
    """It misses only changes after 12 s, when the test could already have ended: nothing announces
    them.
    """
    decaying = [f"time constant {tau} s" for tau in (1, 2, 5, 10, 20)] + [
        f"likewise {tau} s, {PRECISE}" for tau in (2, 5, 10)
    ]
    assert worst(*decaying, "until second 5", "until second 10").missed == 0
    assert worst("time constant 5 s").never == 0 and worst("time constant 5 s").median_s <= 41
    assert 0.1 < worst("half the speed until second 15").missed <= 0.2
    assert 0.2 < worst("half the speed until second 20").missed <= 0.4


def test_slow_drifts_are_seen_only_if_noise_permits() -> None:
    assert worst(f"drift of 20% in 60 s, {PRECISE}").never == 1
    assert worst("drift of 5% in 60 s").never == 0
    assert 0.5 < worst("drift of 10% in 60 s", "drift of 20% in 60 s").missed <= 0.72


def test_an_overload_is_mostly_never_steady() -> None:
    assert worst("130%").missed <= 0.16
    assert 0.5 < worst("110%").missed <= 0.68  # within the noise of the arrivals


def test_mser_alone_would_be_worse() -> None:
    """The trend test and three verdicts in a row are there for these servers."""
    with study.mser_alone():
        for server in (
            server
            for server in study.SERVERS
            if "time constant 20 s" in server.name or "130%" in server.name
        ):
            assert study.rates(server, RUNS).missed >= 0.4, server.name


def test_the_table_is_markdown() -> None:
    head, line, row = study.table(2, study.SERVERS[:1])
    assert head.count("|") == line.count("|") == row.count("|") == 8 and row.startswith(
        "| steady, noise that correlates by 0 | "
    )
