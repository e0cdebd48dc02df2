"""Arrivals are those that were asked for: tested against their distributions, at fixed seeds so that no test fails by chance."""

from itertools import pairwise
from pathlib import Path

import pytest
from scipy import stats

from loadtests.arrivals import Arrival, fit, schedule
from loadtests.traces import TraceError

POISSON = {"arrivals": "poisson"}


def times(scenario: dict[str, object], rate: float, duration_s: float, seed: str = "seed") -> list[float]:
    return [arrival.at_s for arrival in schedule(seed, scenario, rate, duration_s)]


def gaps(at: list[float]) -> list[float]:
    return [after - before for before, after in pairwise([0.0, *at])]


def test_the_same_seed_gives_the_same_arrivals_and_a_longer_run_begins_like_a_shorter_one() -> None:
    assert times(POISSON, 5.0, 60.0) == times(POISSON, 5.0, 60.0) != times(POISSON, 5.0, 60.0, seed="other")
    shorter, longer = times(POISSON, 5.0, 60.0), times(POISSON, 5.0, 90.0)
    assert longer[: len(shorter)] == shorter and len(longer) > len(shorter)


@pytest.mark.parametrize("rate", [0.5, 3.0, 200.0])
@pytest.mark.parametrize("burstiness", [None, 0.25, 4.0])
def test_gaps_have_the_distribution_asked_for(rate: float, burstiness: float | None) -> None:
    scenario = POISSON if burstiness is None else {"arrivals": "gamma", "burstiness": burstiness}
    at = times(scenario, rate, 4000 / rate)
    assert at == sorted(at) and at[-1] < 4000 / rate
    shape = burstiness or 1.0  # an exponential distribution is a gamma distribution of shape 1
    assert stats.kstest(gaps(at), "gamma", args=(shape, 0, 1 / (shape * rate))).pvalue > 0.01
    assert stats.kstest(gaps(at), "gamma", args=(shape, 0, 1.4 / (shape * rate))).pvalue < 1e-3, "the test must be able to tell"


def test_constant_arrivals_are_even() -> None:
    assert times({"arrivals": "constant"}, 4.0, 2.0) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75])


def test_a_ramp_has_the_inverse_of_its_integral() -> None:
    """Rate 10 t, so 5 t^2 arrivals until t: the n-th is at the root of n / 5."""
    at = times({"arrivals": "constant", "profile": [[0, 0], [10, 10]]}, 10.0, 10.0)
    assert at == pytest.approx([(n / 5) ** 0.5 for n in range(1, len(at) + 1)]) and len(at) == 499


def test_a_step_and_what_comes_after_it() -> None:
    at = times({"arrivals": "constant", "profile": [[0, 1], [10, 1], [10, 5], [12, 5], [12, 0.5]]}, 10.0, 20.0)
    counted = [sum(low < t <= high + 1e-9 for t in at) for low, high in ((0, 10), (10, 12), (12, 20))]
    assert counted == [100, 100, 39], "the last of 40 would come at the very end, which is outside"


def test_pauses_have_no_arrivals() -> None:
    at = times(POISSON | {"profile": [[0, 1], [5, 1], [5, 0], [15, 0], [15, 1]]}, 20.0, 20.0)
    assert not [t for t in at if 5 < t < 15] and [t for t in at if t < 5] and [t for t in at if t > 15]


def test_a_bent_poisson_process_is_still_one() -> None:
    """On the changed clock its gaps are exponential again (time rescaling: Brown et al., Neural Computation 14, 2002)."""
    at = times(POISSON | {"profile": [[0, 0.5], [100, 2.0]]}, 30.0, 100.0)
    changed = [30 * (0.5 * t + 0.0075 * t * t) for t in at]
    assert stats.kstest(gaps(changed), "expon").pvalue > 0.01


def test_a_trace_is_replayed_in_its_slice_and_scale_with_clipped_lengths(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,10,5\n4,20,6\n5,9000,600\n10,30,7\n")
    scenario = {"arrivals": "trace", "trace": str(tmp_path / "trace.csv"), "trace_start_s": 4, "time_scale": 2.0}
    assert schedule("any", scenario, None, 3.0) == [Arrival(0.0, 20, 6), Arrival(0.5, 3496, 600)]
    assert schedule("any", scenario, None, 3.1)[-1] == Arrival(3.0, 30, 7)
    with pytest.raises(TraceError, match=r"trace\.csv has no request in 6 s from second 11 on"):
        schedule("any", scenario | {"trace_start_s": 11}, None, 3.0)


@pytest.mark.parametrize(("asked", "given"), [((5000, 100), (3996, 100)), ((5000, 5000), (2048, 2048)), ((1, 1), (2, 1))])
def test_lengths_fit_into_the_context(asked: tuple[int, int], given: tuple[int, int]) -> None:
    assert fit(*asked, 4096) == given and (sum(given) <= 4096)
