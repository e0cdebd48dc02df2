"""Arrivals follow the requested distributions. Seeds are fixed, so no test fails by chance."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import scipy  # scipy.stats loads at its first use

from loadtests.workload.arrivals import (
    Arrival,
    describe_replay,
    fit_context,
    longest_warm_up_s,
    replay,
    schedule,
    warm_up_arrivals,
    window_arrivals,
    window_for_arrivals,
    window_for_requests,
)
from loadtests.workload.traces import TraceError

POISSON = {"arrivals": "poisson"}


def times(
    scenario: dict[str, object], rate: float, duration_s: float, seed: str = "seed"
) -> list[float]:
    return [arrival.at_s for arrival in schedule(seed, scenario, rate, duration_s)]


def gaps(at: list[float]) -> list[float]:
    return [after - before for before, after in pairwise([0.0, *at])]


def test_the_same_seed_gives_the_same_arrivals_and_a_longer_run_starts_like_a_shorter_one() -> None:
    assert (
        times(POISSON, 5.0, 60.0)
        == times(POISSON, 5.0, 60.0)
        != times(POISSON, 5.0, 60.0, seed="other")
    )
    shorter, longer = times(POISSON, 5.0, 60.0), times(POISSON, 5.0, 90.0)
    assert longer[: len(shorter)] == shorter and len(longer) > len(shorter)


@pytest.mark.parametrize("rate", [0.5, 3.0, 200.0])
@pytest.mark.parametrize("burstiness", [None, 0.25, 4.0])
def test_gaps_have_the_requested_distribution(rate: float, burstiness: float | None) -> None:
    scenario = POISSON if burstiness is None else {"arrivals": "gamma", "burstiness": burstiness}
    at = times(scenario, rate, 4000 / rate)
    assert at == sorted(at) and at[-1] < 4000 / rate
    shape = burstiness or 1.0  # an exponential distribution is a gamma distribution of shape 1
    assert scipy.stats.kstest(gaps(at), "gamma", args=(shape, 0, 1 / (shape * rate))).pvalue > 0.01
    assert (
        scipy.stats.kstest(gaps(at), "gamma", args=(shape, 0, 1.4 / (shape * rate))).pvalue < 1e-3
    ), "the test must notice another distribution"


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_an_open_loop_s_window_ends_once_its_requests_have_arrived(seed: str) -> None:
    scenario = POISSON | {"requests": 299, "duration_max_s": 60.0}
    length_s = window_for_arrivals(seed, scenario, 10.0, 10.0)
    assert length_s == int(length_s) and 25 < length_s < 36
    assert len(window_arrivals(seed, scenario, 10.0, length_s)) >= 299
    assert len(window_arrivals(seed, scenario, 10.0, length_s - 1)) < 299


@pytest.mark.parametrize(
    ("rate", "length_s"), [(100.0, 10.0), (1.0, 60.0)], ids=["at least", "at most"]
)
def test_an_open_loop_s_window_has_bounds(rate: float, length_s: float) -> None:
    scenario = {"arrivals": "constant", "requests": 299, "duration_max_s": 60.0}
    assert window_for_arrivals("seed", scenario, rate, 10.0) == length_s


@pytest.mark.parametrize(
    ("per_s", "length_s"), [(1000.0, 10.0), (20.0, 18.0), (1.0, 60.0), (0.0, 60.0)]
)
def test_a_closed_loop_s_window_follows_from_its_responses(per_s: float, length_s: float) -> None:
    """For 299 requests, 355.6 are expected: 355.6 - 3 sqrt(355.6) = 299."""
    scenario = {"requests": 299, "duration_max_s": 60.0}
    assert window_for_requests(299, per_s, scenario, 10.0) == length_s


def test_constant_arrivals_are_even() -> None:
    assert times({"arrivals": "constant"}, 4.0, 2.0) == pytest.approx(
        [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    )


def test_a_ramp_follows_the_inverse_of_its_integral() -> None:
    """The rate is 10 t, so 5 t^2 requests arrive until t, and the n-th is at sqrt(n / 5)."""
    at = times({"arrivals": "constant", "profile": [[0, 0], [10, 10]]}, 10.0, 10.0)
    assert at == pytest.approx([(n / 5) ** 0.5 for n in range(1, len(at) + 1)]) and len(at) == 499


def test_a_step_and_the_rate_after_it() -> None:
    at = times(
        {"arrivals": "constant", "profile": [[0, 1], [10, 1], [10, 5], [12, 5], [12, 0.5]]},
        10.0,
        20.0,
    )
    counted = [
        sum(low < t <= high + 1e-9 for t in at) for low, high in ((0, 10), (10, 12), (12, 20))
    ]
    assert counted == [100, 100, 39], "the last of 40 would be at the very end, which is outside"


def test_pauses_have_no_arrivals() -> None:
    at = times(POISSON | {"profile": [[0, 1], [5, 1], [5, 0], [15, 0], [15, 1]]}, 20.0, 20.0)
    assert (
        not [t for t in at if 5 < t < 15] and [t for t in at if t < 5] and [t for t in at if t > 15]
    )


def test_a_bent_poisson_process_is_still_one() -> None:
    """On the changed clock its gaps are exponential again (time rescaling: Brown et al., Neural
    Computation 14, 2002).
    """
    at = times(POISSON | {"profile": [[0, 0.5], [100, 2.0]]}, 30.0, 100.0)
    changed = [30 * (0.5 * t + 0.0075 * t * t) for t in at]
    assert scipy.stats.kstest(gaps(changed), "expon").pvalue > 0.01


def test_a_trace_is_replayed_in_its_slice_and_scale_with_clipped_lengths(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(
        "arrival_s,prompt_tokens,output_tokens\n0,10,5\n4,20,6\n5,9000,600\n10,30,7\n"
    )
    scenario = {
        "arrivals": "trace",
        "trace": str(tmp_path / "trace.csv"),
        "trace_start_s": 4,
        "time_scale": 2.0,
    }
    assert replay(scenario, 3.0) == [Arrival(0.0, 20, 6), Arrival(0.5, 3496, 600)]
    assert replay(scenario, 3.1)[-1] == Arrival(3.0, 30, 7)
    with pytest.raises(TraceError, match=r"trace\.csv has no request in the 6 s after second 11"):
        replay(scenario | {"trace_start_s": 11}, 3.0)


def test_a_clipped_prompt_keeps_only_its_blocks(tmp_path: Path) -> None:
    """A load worker gets no more than it needs."""
    (tmp_path / "trace.jsonl").write_text(
        f'{{"timestamp": 0, "input_length": 9000, "output_length": 5, "hash_ids": {[*range(18)]}}}'
    )
    scenario = {"arrivals": "trace", "trace": str(tmp_path / "trace.jsonl"), "context": 1030}
    assert replay(scenario, 1.0) == [Arrival(0.0, 1025, 5, (0, 1, 2), (512, 512, 512))]
    assert describe_replay(scenario, 1.0) == (
        "a trace in the format Mooncake (times in ms, blocks of 512 tokens): 1 request, 1 clipped"
        " to the context of 1,030 tokens"
    )


@pytest.mark.parametrize(
    ("asked", "given"), [((5000, 100), (3996, 100)), ((5000, 5000), (2048, 2048)), ((1, 1), (2, 1))]
)
def test_lengths_fit_into_the_context(asked: tuple[int, int], given: tuple[int, int]) -> None:
    assert fit_context(*asked, 4096) == given and (sum(given) <= 4096)


# --- warm-up and window

KINDS = {
    "poisson": POISSON,
    "constant": {"arrivals": "constant"},
    "gamma": {"arrivals": "gamma", "burstiness": 0.25},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_window_has_the_same_requests_after_any_warm_up(kind: str) -> None:
    asked = [
        window_arrivals("1/s/1", KINDS[kind] | {"warmup_s": warmup_s}, 7.0, 30.0)
        for warmup_s in (0, 0.5, 8.0)
    ]
    assert (
        asked[0] == asked[1] == asked[2] == schedule("1/s/1", KINDS[kind], 7.0, 30.0)
        and len(asked[0]) > 100
    )
    assert asked[0] == window_arrivals(
        "1/s/1", KINDS[kind] | {"warmup_s": 8, "warmup_max_s": 100}, 7.0, 30.0
    )


@pytest.mark.parametrize("kind", ["poisson", "gamma"])
def test_the_warm_up_is_another_part_of_the_same_process(kind: str) -> None:
    """It covers the longest warm-up, and its start does not depend on that length."""
    shorter, longer = (
        warm_up_arrivals("1/s/1", KINDS[kind] | {"warmup_s": 10, "warmup_max_s": most}, 50.0)
        for most in (20, 60)
    )
    assert longer[: len(shorter)] == shorter and len(shorter) > 900
    assert shorter[-1].at_s > 20 and longer[-1].at_s > 60, "it must not end before the window opens"
    both = [arrival.at_s for arrival in longer]
    assert not {*both} & {
        arrival.at_s
        for arrival in window_arrivals("1/s/1", KINDS[kind] | {"warmup_s": 10}, 50.0, 60.0)
    }
    shape = KINDS[kind].get("burstiness", 1.0)
    assert scipy.stats.kstest(gaps(both), "gamma", args=(shape, 0, 1 / (shape * 50))).pvalue > 0.01


def test_with_a_profile_or_a_trace_both_parts_are_the_one_schedule(tmp_path: Path) -> None:
    """There the demand itself varies, and its second 0 is the load's start."""
    rows = "".join(f"{n * 0.37},{n % 50 + 2},5\n" for n in range(100))
    (tmp_path / "trace.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    trace = {"arrivals": "trace", "trace": str(tmp_path / "trace.csv"), "warmup_s": 8.0}
    assert longest_warm_up_s(POISSON | {"warmup_s": 8.0}) > 8 == longest_warm_up_s(trace)
    for scenario, rate in (
        (POISSON | {"profile": [[0, 1], [10, 1], [10, 4], [15, 0.5]], "warmup_s": 8.0}, 5.0),
        (trace, None),
    ):
        recorded = None if rate else replay(scenario, 8.0 + 20.0)
        whole = schedule("1/s/1", scenario, rate, 8.0 + 20.0, recorded)
        before, inside = (
            warm_up_arrivals("1/s/1", scenario, rate, recorded),
            window_arrivals("1/s/1", scenario, rate, 20.0, recorded),
        )
        assert (
            before == [arrival for arrival in whole if arrival.at_s < 8]
            and longest_warm_up_s(scenario) == 8
        )
        assert inside == [
            replace(arrival, at_s=arrival.at_s - 8) for arrival in whole if arrival.at_s >= 8
        ]
        assert len(before) > 15 and len(inside) > 40
    for warmup_s in (0.0, 0.2):
        late = trace | {"trace_start_s": 0.1, "warmup_s": warmup_s}
        recorded = replay(late, warmup_s + 1.0)
        assert warm_up_arrivals("1/s/1", late, None, recorded) == [] and window_arrivals(
            "1/s/1", late, None, 1.0, recorded
        )[0].at_s == pytest.approx(0.27 - warmup_s)
