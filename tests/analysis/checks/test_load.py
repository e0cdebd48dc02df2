"""Load: whether it was steady, and which delays are not the load generator's."""

import pytest

from analysis import metrics
from analysis.checks import load
from tests.helpers import synthetic_campaign
from tests.helpers.checked_case import COUNTS, drifting, failed, growing
from tests.studies import steadiness


def test_bursts_are_no_drift(observe):
    """A response of very many tokens in the second half: the halves' means differ, but by chance,
    as the slices' spread shows.
    """
    rows = synthetic_campaign.requests()
    rows[300] |= {"token_n": [*rows[300]["token_n"][:-1], 3000], "tokens": 3010, "max_tokens": 3010}
    assert "steadiness" not in failed(observe(rows))


def test_a_small_drift_passes(observe):
    for rows in (drifting(0.0), growing(0.05)):  # TTFT is a third of E2E and grows by 15%
        assert "steadiness" not in failed(observe(rows))


def test_a_demand_that_varies_by_plan_is_not_tested(observe):
    for scenario in ({"arrivals": "poisson", "profile": [[0, 1], [5, 4]]}, {"arrivals": "trace"}):
        o = observe(drifting(0.5), data={"scenarios": {"chat": scenario}})
        assert load.check_steadiness(o)[1:4] == (
            None,
            "invalid",
            "not tested: the scenario varies the demand",
        )


def test_few_requests_are_tested_by_their_tokens_only(observe):
    rows = [row for i, row in enumerate(synthetic_campaign.requests()) if i % 80 == 0]
    assert "TTFT" not in load.check_steadiness(observe(rows)).detail
    assert "TTFT" in load.check_steadiness(observe(synthetic_campaign.requests()[::20])).detail


@pytest.mark.parametrize(
    ("names", "least", "most"),
    [
        (
            (
                "steady, noise that correlates by 0.8",
                "closed loop, 16 users, one_by_one",
                "closed loop, 16 users, sharing",
                "gamma 3/s in bursts, batching",
                "drift of 5% over the window",
            ),
            0,
            0,
        ),
        (("Poisson, one by one, 90% of what it carries",), 0.04, 0.12),
        (("drift of 20% over the window",), 0.6, 0.8),
        (
            (
                "drift of 30% over the window",
                "step of 20% in its middle",
                "half the speed at its begin, time constant 5 s",
            ),
            0.96,
            1,
        ),
        (
            (
                "Poisson, one by one, 130% of what it carries",
                "Poisson, sharing, 130% of what it carries",
            ),
            0.96,
            1,
        ),
    ],
)
def test_the_error_rates_of_steadiness(names, least, most):
    """On simulated servers, 25 runs each. The seeds are fixed, so the counts are exact."""
    cases = [case for case in steadiness.CASES if case.name in names]
    assert len(cases) == len(names)
    for case in cases:
        assert least <= sum(steadiness.rates(case, 25)) <= most, case.name


def test_load_share_counts_the_cores_that_workers_can_use(observe):
    share = {"server_cores": [0], "load_cores": [1, 2, 3], "shared": False, "threads": 1}
    o = observe(samples=synthetic_campaign.telemetry(load_cores=1.0), data={"machine_share": share})
    assert metrics.resources.load_cpu_share(o) == pytest.approx(0.5)  # two load workers


def test_a_wait_for_a_slot_is_not_the_client_s(observe):
    """A cap on concurrency delays sending on purpose, here even past the window. Only the client's
    own part counts.
    """

    def waiting(own_s):
        rows = [
            row | {"slot_s": row["scheduled_s"] + 30, "sent_s": row["scheduled_s"] + 30 + own_s}
            for row in synthetic_campaign.requests()
        ]
        return observe(rows=rows, users=None, rate=40.0, counts=COUNTS | {"planned": 320})

    assert not {"send lag", "arrivals"} & failed(waiting(0.001)).keys()
    assert {"send lag", "arrivals"} & failed(waiting(0.1)).keys() == {"send lag"}
    rows = synthetic_campaign.requests()
    del rows[100:120]
    assert "arrivals" in failed(
        observe(
            rows=[row | {"slot_s": row["sent_s"]} for row in rows],
            users=None,
            rate=40.0,
            counts=COUNTS | {"planned": 320},
        )
    )
