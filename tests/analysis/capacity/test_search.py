"""The capacity search on systems of known capacity, and its SLOs."""

import math
import random
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from analysis import slo
from analysis.capacity import search
from analysis.capacity.search import LoadProbe
from analysis.dataset import InputError


def searched(
    holds: Callable[[float], bool], estimate: float, whole: bool = False
) -> tuple[search.Capacity, list[float]]:
    probes: list[LoadProbe] = []
    while (load := search.next_load(estimate, probes, whole=whole)) is not None:
        probes.append(LoadProbe(load, holds(load)))
    return search.bracket_capacity(probes), [probe.load for probe in probes]


@pytest.mark.parametrize("off", [0.6, 0.8, 0.95, 1.0, 1.05, 1.2, 1.6])
@pytest.mark.parametrize("truth", [0.37, 12.0, 1830.0])
def test_the_capacity_is_found_within_5_percent_in_at_most_8_cases(
    truth: float, off: float
) -> None:
    found, tried = searched(lambda load: load <= truth, truth * off)
    assert found.is_precise and found.holds <= truth < found.fails <= found.holds * 1.05, (
        found,
        tried,
    )
    assert len(tried) < search.MOST_CASES, "one case is for saturation"


@pytest.mark.parametrize("off", [0.1, 0.3, 3.5, 10.0])
def test_an_estimate_far_off_leaves_a_wider_bracket_that_is_not_precise(off: float) -> None:
    found, tried = searched(lambda load: load <= 12.0, 12.0 * off)
    assert len(tried) == search.MOST_CASES and not found.is_precise
    assert found.holds <= 12.0 < found.fails < 1.5 * found.holds, (found, tried)


@pytest.mark.parametrize("truth", [1, 2, 3, 7, 16, 40, 61])
@pytest.mark.parametrize("estimate", [1, 16, 64])
def test_users_are_whole(truth: int, estimate: int) -> None:
    found, tried = searched(lambda load: load <= truth, estimate, whole=True)
    assert all(load == int(load) and load > 0 for load in tried) and len(set(tried)) == len(tried)
    assert found.holds <= truth < found.fails and (
        found.fails - found.holds <= 1 or found.is_precise or len(tried) == 8
    ), (found, tried)


def test_the_bracket_stays_open_if_no_load_or_every_load_meets_the_slo() -> None:
    nothing, _ = searched(lambda load: False, 10.0)
    assert math.isnan(nothing.holds) and not nothing.is_precise
    everything, tried = searched(lambda load: True, 10.0)
    assert (
        math.isnan(everything.fails)
        and everything.holds == max(tried)
        and not everything.is_precise
    )
    assert search.next_load(1, [LoadProbe(1, False)], whole=True) is None, (
        "there is no load below one user"
    )


def test_a_case_that_cannot_decide_ends_the_search() -> None:
    assert search.next_load(10.0, [LoadProbe(10.0, True), LoadProbe(12.5, None)]) is None


def test_a_load_at_which_others_disturbed_the_server_is_tried_once_more() -> None:
    met, disturbed = LoadProbe(10.0, True), LoadProbe(12.5, None, disturbed=True)
    assert search.next_load(10.0, [disturbed]) == 12.5
    assert search.next_load(10.0, [met, disturbed]) == 12.5
    assert search.next_load(10.0, [met, disturbed, disturbed]) is None, "the machine stays busy"
    again = [met, disturbed, LoadProbe(12.5, True)]
    assert search.next_load(10.0, again) == search.next_load(10.0, [met, again[-1]])
    assert search.next_load(10.0, [*again, LoadProbe(19.53, None, disturbed=True)]) == 19.53
    assert search.next_load(10.0, again, most=3) is None
    limited = LoadProbe(19.53, None)
    assert search.next_load(10.0, [*again, limited]) is None


def test_of_contradicting_cases_the_lower_failure_counts() -> None:
    assert search.bracket_capacity(
        [LoadProbe(10, True), LoadProbe(12, False), LoadProbe(14, True)]
    ) == (10, 12)


# --- SLO


def requests(
    ttft_s: list[float], failed: list[bool] | None = None, tpot_s: list[float] | None = None
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "ttft_s": ttft_s,
            "failed": failed or [False] * len(ttft_s),
            "tpot_s": tpot_s or [math.nan] * len(ttft_s),
        }
    )


@pytest.mark.parametrize(
    ("late", "of", "holds", "certain"),
    [
        (0, 367, True, False),
        (0, 368, True, True),
        (5, 500, True, False),
        (6, 500, False, False),
        (20, 500, False, True),
        (10, 1000, True, False),
    ],
)
def test_a_bound_is_met_by_the_observed_share_and_certain_by_the_interval(
    late: int, of: int, holds: bool, certain: bool
) -> None:
    (kept,) = slo.judge_bounds(
        requests([0.1] * (of - late) + [2.0] * late), slo.parse_slo("ttft_p99=1s")
    )
    assert (kept.holds, kept.is_certain) == (holds, certain) and (kept.met, kept.of) == (
        of - late,
        of,
    )
    assert kept.low < kept.met / kept.of <= kept.high and (kept.seen <= 1) is holds


def test_the_interval_has_its_confidence() -> None:
    """The interval contains the true share in at least 95 of 100 samples."""
    chance = np.random.default_rng(1)
    intervals = [
        slo.attainment_interval(int(met), 1000) for met in chance.binomial(1000, 0.99, 4000)
    ]
    assert 0.95 <= np.mean([low <= 0.99 <= high for low, high in intervals]) < 0.99


@pytest.mark.parametrize(
    ("late", "of", "holds"),
    [(0, 298, None), (0, 299, True), (3, 100, None), (20, 100, False), (4, 299, False)],
)
def test_too_small_a_sample_decides_only_a_certain_miss(
    late: int, of: int, holds: bool | None
) -> None:
    case = search.MeasuredCase(10.0, 1, requests([0.1] * (of - late) + [2.0] * late), True, "")
    found = search.judge_probe(case, slo.parse_slo("ttft_p99=1s"))
    assert found.holds is holds and (
        holds is not None
        or f"n too small: {of} requests for TTFT P99 ≤ 1000 ms, which needs 299" in found.why
    )


def test_responses_without_such_a_latency_decide_nothing() -> None:
    case = search.MeasuredCase(10.0, 1, requests([0.1] * 500), True, "")
    assert search.judge_probe(case, slo.parse_slo("tpot_p99=1s")).holds is None, (
        "responses of one token"
    )
    assert search.judge_probe(case, slo.parse_slo("ttft_p99=1s,tpot_p99=1s")).holds is True


def test_the_certain_range_is_wider_than_the_observed_one() -> None:
    def probe(load: float, late: int) -> LoadProbe:
        kept = tuple(
            slo.judge_bounds(
                requests([0.1] * (1000 - late) + [2.0] * late), slo.parse_slo("ttft_p99=1s")
            )
        )
        return LoadProbe(load, all(each.holds for each in kept), bound_results=kept)

    probes = [probe(10, 0), probe(11, 9), probe(12, 11), probe(13, 40)]
    assert search.bracket_capacity(probes) == (11, 12) and search.bracket_capacity(
        probes, certain=True
    ) == (10, 13)


def test_failures_miss_the_bounds_and_have_no_tpot() -> None:
    frame = requests(
        [0.1] * 500 + [math.nan] * 10, [False] * 500 + [True] * 10, [0.01] * 500 + [math.nan] * 10
    )
    ttft, tpot, errors = slo.judge_bounds(frame, slo.parse_slo("ttft=1s,tpot=20ms,errors=1%"))
    assert (ttft.met, ttft.of, ttft.holds) == (500, 510, False) and math.isinf(ttft.seen)
    assert (tpot.met, tpot.of, tpot.holds) == (500, 500, True)
    assert (errors.met, errors.holds) == (500, False) and errors.seen == pytest.approx(10 / 510)


def test_the_bounds_of_a_single_request() -> None:
    assert slo.request_bounds(slo.parse_slo("ttft=1000ms, tpot_p95=0.1s,e2e=5s,errors=1%")) == {
        "ttft_s": 1.0,
        "tpot_s": 0.1,
        "e2e_s": 5.0,
    }


def test_presets_and_unreadable_slos() -> None:
    assert [str(bound) for bound in slo.parse_slo("llama3.1-8b")] == [
        "TTFT P99 ≤ 2000 ms",
        "TPOT P99 ≤ 100 ms",
    ]
    assert [str(bound) for bound in slo.parse_slo("classic")] == [
        "E2E P99 ≤ 2000 ms",
        "errors ≤ 1%",
    ]
    assert (
        slo.count_requests_needed(slo.parse_slo("ttft_p99=1s,e2e_p50=1s")) == 368
        and slo.count_requests_needed(slo.parse_slo("ttft_p95=1s")) == 72
    )
    for text in (
        "",
        "ttft",
        "ttft=5",
        "ttft_p100=5s",
        "latency=5s",
        "ttft=0s",
        "llama",
        "ttft=1s,ttft_p95=1s",
        "errors=1",
    ):
        with pytest.raises(InputError, match="ttft_p99=500ms"):
            slo.parse_slo(text)
    with pytest.raises(InputError, match="lower percentile"):
        slo.count_requests_needed(slo.parse_slo("ttft_p99.9999=1s"))


def test_a_queue_s_capacity_is_found() -> None:
    """Poisson arrivals, one server, 50 ms of service. The truth is from Lindley's recursion over
    many requests. Each probe has 4,000 requests, whose share of late ones scatters.
    """

    def waits(rate: float, count: int, seed: int) -> np.ndarray:
        gaps = np.random.default_rng(seed).exponential(1 / rate, count)
        steps = np.concatenate([[0.0], 0.05 - gaps[1:]]).cumsum()
        return steps - np.minimum.accumulate(np.minimum(steps, 0.0))

    bounds = slo.parse_slo("ttft_p99=500ms")
    low, high = 5.0, 20.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if np.percentile(waits(middle, 300_000, 7) + 0.05, 99) <= 0.5
            else (low, middle)
        )
    found = []
    for seed in range(40):
        chance = random.Random(seed)

        def holds(load: float, chance: random.Random = chance) -> bool:
            return slo.judge_bounds(
                requests(list(waits(load, 4000, chance.randrange(10**9)) + 0.05)), bounds
            )[0].holds

        capacity, tried = searched(holds, 0.8 * 20)
        found.append(capacity.holds / low)
        assert len(tried) < search.MOST_CASES
    assert 0.96 <= float(np.median(found)) <= 1.02, found


def test_an_unknown_tpot_decides_nothing() -> None:
    frame = requests([0.1] * 500, tpot_s=[0.01] * 400 + [math.nan] * 100)
    frame["tpot_missing"] = [False] * 400 + [True] * 100
    (kept,) = slo.judge_bounds(frame, slo.parse_slo("tpot_p99=50ms"))
    assert (kept.met, kept.of, kept.unmeasured) == (400, 500, 100)
    assert not kept.holds and not kept.is_known and math.isnan(kept.seen)

    def probe(bounds: str, rows: pd.DataFrame = frame) -> LoadProbe:
        case = search.MeasuredCase(10.0, 1, rows, True, "")
        return search.judge_probe(case, slo.parse_slo(bounds))

    unknown = probe("tpot_p99=50ms")
    assert unknown.holds is None and unknown.why.startswith("100 of 500 responses have no TPOT")
    assert probe("ttft_p99=50ms,tpot_p99=50ms").holds is False, "TTFT misses its bound"
    assert probe("ttft_p99=500ms").holds is True
    few = frame.assign(tpot_missing=[True] * 3 + [False] * 497, tpot_s=0.01)
    assert probe("tpot_p99=50ms", few).holds is True, "the unknown ones change nothing"
