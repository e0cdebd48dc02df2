"""The statistics of paired differences compared with scipy's, and verdicts on simulated gates."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy  # scipy.stats loads at its first use, not in each process that collects tests

from analysis import stats
from analysis.gate import paired, verdicts
from analysis.gate.verdicts import EXIT_CODES, SystemVerdict

# --- statistics


@pytest.mark.parametrize("n", [2, 5, 10, 15])
def test_paired_differences_are_judged_as_scipy_does(n: int) -> None:
    d = np.random.default_rng(n).normal(0.02, 0.03, n)
    found, theirs = stats.paired_test(d, 0.022), scipy.stats.ttest_1samp(d, 0)
    interval = theirs.confidence_interval(0.978)
    assert (found.mean, found.low, found.high, found.p) == pytest.approx(
        (d.mean(), interval.low, interval.high, theirs.pvalue)
    )


@pytest.mark.parametrize("n", [2, 5, 10])
def test_signs_are_flipped_in_every_way(n: int) -> None:
    d = np.random.default_rng(n).normal(0.02, 0.03, n)
    flips = np.array(
        [abs((d * [1 if bits >> i & 1 else -1 for i in range(n)]).mean()) for bits in range(2**n)]
    )
    assert stats.sign_flip_test(d) == pytest.approx(np.mean(flips >= abs(d.mean()) - 1e-12))
    assert stats.sign_flip_test(np.full(n, 0.1)) == pytest.approx(2 / 2**n)


def test_differences_that_do_not_vary_are_certain() -> None:
    assert (
        stats.paired_test([0.0, 0.0, 0.0]).p == 1.0 and stats.paired_test([0.5, 0.5, 0.5]).p == 0.0
    )
    assert stats.paired_test([0.5, 0.5])[:3] == pytest.approx((0.5, 0.5, 0.5))


def test_holm_adjusts_as_published() -> None:
    # R: p.adjust(..., "holm")
    assert stats.holm_adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm_adjust([0.01], of=4) == pytest.approx([0.04]) and stats.holm_adjust([]) == []
    assert stats.holm_adjust([0.5, 0.9]) == [1.0, 1.0]


# --- simulated decisions

COLUMNS = pd.MultiIndex.from_product([paired.SIDES, [*verdicts.TOLERANCES, "requests_scheduled"]])


def decision(
    random: np.random.Generator, slower: float, noise: float, systems: int = 1, drift: float = 0.0
) -> list[SystemVerdict]:
    """One gate. `noise` is the standard deviation of a run's logarithm, `slower` is head's true
    difference, `drift` is the machine's from the first run to the last. Throughput falls as much as
    latencies rise.
    """
    found = []
    for _ in range(systems):
        rows = []
        for repetition in range(15):
            sides = paired.SIDES if repetition % 2 else paired.SIDES[::-1]
            row: dict[tuple[str, str], float] = {}
            for place, side in enumerate(sides):
                level = (
                    random.normal(0, noise)
                    + (slower if side == "head" else 0)
                    + drift * (3 * repetition + place) / 45
                )
                for metric in verdicts.TOLERANCES:
                    row[side, metric] = math.exp(
                        verdicts.sign_of(metric) * level + random.normal(0, noise / 4)
                    )
                row[side, "requests_scheduled"] = 2000.0
            rows.append(row)
        values = pd.DataFrame(rows, columns=COLUMNS, dtype="float64")
        found.append(paired.Repetitions(SystemVerdict("it"), values, pd.DataFrame()))
    paired.decide_verdicts(found, verdicts.parse_rules())
    return [each.system for each in found]


def rates(n: int, **conditions: Any) -> dict[str, float]:
    found = [decision(np.random.default_rng(seed), **conditions)[0].verdict for seed in range(n)]
    return {verdict: found.count(verdict) / n for verdict in EXIT_CODES}


@pytest.mark.parametrize("noise", [0.002, 0.02, 0.08])
def test_equal_code_rarely_regresses(noise: float) -> None:
    found = rates(150, slower=0.0, noise=noise)
    assert found["REGRESSED"] + found["INVALID"] <= 0.02, found
    if noise <= 0.02:
        assert found["PASS"] >= 0.95, found


def test_a_drift_of_the_machine_is_no_regression() -> None:
    found = rates(100, slower=0.0, noise=0.01, drift=0.3)
    assert found["PASS"] >= 0.95, found


def test_a_slowdown_beyond_the_tolerance_is_found_and_one_within_passes() -> None:
    assert rates(100, slower=0.12, noise=0.02)["REGRESSED"] >= 0.95
    assert rates(100, slower=0.01, noise=0.01)["PASS"] >= 0.95
    assert rates(100, slower=-0.12, noise=0.02)["PASS"] >= 0.95


def test_at_the_edge_of_the_tolerance_neither_is_certain() -> None:
    found = rates(60, slower=math.log1p(0.05), noise=0.02)
    # a true change of exactly the tolerance rarely passes: alpha, one-sided
    assert found["PASS"] <= 0.05, found


def test_looks_end_as_soon_as_every_metric_has_its_verdict() -> None:
    (clear,) = decision(np.random.default_rng(1), slower=0.3, noise=0.01)
    (loud,) = decision(np.random.default_rng(1), slower=0.0, noise=0.2)
    assert (clear.look, loud.look) == (5, 15)
    assert all(
        row.detectable > 0 and "could only detect" in row.why
        for row in loud.rows
        if row.verdict == "INCONCLUSIVE"
    )
