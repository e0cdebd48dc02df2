"""The committed searches on the simulated engine, compared with its time model's true capacity.

They were made one after the other, by

    nox -s bench -- --find-capacity --servers fastapi_vllm --engines simulated --simulated
    prefill_ms=10,step_ms=5,max_batch=1 \\
        --scenarios-file tests/analysis/capacity/scenario.toml --scenarios three-tokens --slo
        ttft_p95=90ms \\
        --out results/reference-capacity-serial

and the same with prefill_ms=80,step_ms=40,max_batch=8, ttft_p95=200ms and
results/reference-capacity-batched.
"""

import heapq
from pathlib import Path

import numpy as np
import pytest

from analysis import dataset, slo
from analysis.capacity import search

RESULTS = Path(__file__).parents[3] / "results"
REQUESTS = 200_000


def late_share(rate: float, slots: int, service_s: float, first_s: float, bound_s: float) -> float:
    """The share of requests whose first token arrives later than `bound_s`, with Poisson arrivals
    and `slots` servers that serve in order (Kiefer and Wolfowitz's recursion).
    """
    arrivals = np.random.default_rng(3).exponential(1 / rate, REQUESTS).cumsum()
    free = [0.0] * slots
    late = 0
    for at in arrivals:
        begun = max(at, free[0])
        heapq.heapreplace(free, begun + service_s)
        late += begun - at + first_s > bound_s
    return late / REQUESTS


def truth(slots: int, service_s: float, first_s: float, bound: slo.Bound) -> float:
    low, high = 0.5 * slots / service_s, slots / service_s
    for _ in range(9):
        middle = (low + high) / 2
        meets = late_share(middle, slots, service_s, first_s, bound.seconds) <= 1 - bound.share
        low, high = (middle, high) if meets else (low, middle)
    return low


@pytest.mark.parametrize("name", ["serial", "batched"])
def test_the_capacity_is_within_5_percent_of_the_truth_in_at_most_8_cases(name: str) -> None:
    campaign = dataset.read_campaign(RESULTS / f"reference-capacity-{name}")
    times, (tokens, _) = (
        campaign.data["simulated"],
        campaign.data["scenarios"]["three-tokens"]["output_tokens"],
    )
    first_s, step_s, slots = times["prefill_ms"] / 1e3, times["step_ms"] / 1e3, times["max_batch"]
    (bound,) = slo.parse_slo(campaign.data["search"]["slo"])
    true = truth(slots, first_s + (tokens - 1) * step_s, first_s, bound)
    (found,) = search.find_capacities(campaign)
    assert found.is_precise and len(campaign.cases) <= search.MOST_CASES
    assert found.capacity.holds == pytest.approx(true, rel=0.05), (found.capacity, true)
