"""A case is invalid if others took the server's time on its cores, and only then."""

import math

import pytest

from analysis import checks
from analysis.checks import lost_time
from tests.helpers import synthetic_campaign
from tests.helpers.checked_case import failed


def of_cores(n: int) -> dict[str, object]:
    share = {"server_cores": list(range(n)), "load_cores": [n], "shared": False, "threads": n}
    return {"machine_share": share}


def test_a_server_that_lost_half_of_its_core_is_invalid(observe):
    o = observe(
        samples=synthetic_campaign.telemetry(server_cores=0.5, beside_cores=0.5, waited_cores=0.5)
    )
    assert failed(o) == {"other processes": "invalid"}
    (found,) = (c for c in checks.run_checks(o) if c.name == "other processes")
    assert found.detail == "the server lost up to 50% of its time to other processes on its cores"
    assert found.value == pytest.approx(0.5)
    assert found.remedy == "stop other programs on this machine"


@pytest.mark.parametrize(
    ("used", "beside", "waited", "cores", "lost"),
    [
        (0.95, 0.05, 0.05, 1, 0.05),
        # its threads wait for each other; others used little
        (0.97, 0.03, 14.0, 1, 0.03),
        # the interpreter's lock limits it to a core, and a build fills all 32
        (0.50, 31.5, 0.50, 32, 0.50),
        # a build fills all 8 cores of a server that computes on each
        (4.00, 4.0, 4.0, 8, 0.50),
        # a monitoring agent beside a busy large server whose threads wait for each other
        (63.0, 0.3, 20.0, 64, 0.3 / 63.3),
    ],
)
def test_of_a_server_that_its_cores_limit_the_share_of_its_time_counts(
    observe, used, beside, waited, cores, lost
):
    samples = synthetic_campaign.telemetry(
        server_cores=used, beside_cores=beside, waited_cores=waited
    )
    found = lost_time.lost_to_others(observe(samples=samples, data=of_cores(cores)))
    assert found == pytest.approx(lost)


@pytest.mark.parametrize(
    ("used", "beside", "waited", "cores"),
    [
        (0.08, 0.9, 0.2, 1),  # a simulated engine, which sleeps, beside a program that spins
        (0.50, 0.50, 0.01, 1),  # others used time that it did not need
        (2.0, 0.4, 0.4, 8),  # many short waits for a core of many that are free
    ],
)
def test_of_a_server_with_time_to_spare_the_share_of_the_requests_time_counts(
    observe, used, beside, waited, cores
):
    rows = synthetic_campaign.requests()
    in_flight = 40 * (rows[0]["done_s"] - rows[0]["scheduled_s"])
    assert in_flight == pytest.approx(6)
    samples = synthetic_campaign.telemetry(
        server_cores=used, beside_cores=beside, waited_cores=waited
    )
    found = lost_time.lost_to_others(observe(samples=samples, data=of_cores(cores)))
    assert found == pytest.approx(waited / max(1, used + waited) / 6) and found < 0.05


@pytest.mark.parametrize(("lost", "severity"), [(0.04, None), (0.07, "warning"), (0.12, "invalid")])
def test_a_server_may_lose_a_tenth_of_its_time(observe, lost, severity):
    expected = {} if severity is None else {"other processes": severity}
    beside = {"beside_cores": lost, "waited_cores": lost}
    samples = synthetic_campaign.telemetry(server_cores=1 - lost, **beside)
    assert failed(observe(samples=samples)) == expected
    expected = {"steal": severity} if severity else {}
    samples = synthetic_campaign.telemetry(server_cores=1 - lost, stolen_cores=lost)
    assert failed(observe(samples=samples)) == expected


def test_steal_states_what_the_server_lost(observe):
    samples = synthetic_campaign.telemetry(server_cores=0.7, stolen_cores=0.3)
    (found,) = (c for c in checks.run_checks(observe(samples=samples)) if c.name == "steal")
    assert (found.severity, found.detail) == (
        "invalid",
        "the server lost up to 30% of its time to the hypervisor, which ran others meanwhile",
    )


def test_the_load_generator_on_the_same_core_is_no_other(observe):
    shared = {"server_cores": [0], "load_cores": [0], "shared": True, "threads": 1}
    samples = synthetic_campaign.telemetry(
        server_cores=0.7, load_cores=0.28, beside_cores=0.3, waited_cores=0.3
    )
    o = observe(samples=samples, data={"machine_share": shared})
    assert lost_time.lost_to_others(o) == pytest.approx(0.02)


def test_counters_are_compared_between_the_same_samples(observe):
    """Here those of the core are known in half of the window, in which the server was idle."""
    samples = synthetic_campaign.telemetry(server_cores=0.0, beside_cores=0.9, waited_cores=2.0)
    for sample in samples[24:]:
        sample["server"]["cpu_s"] += 3.0
        sample["server_cores_busy_s"] = None
    found = lost_time.lost_to_others(observe(samples=samples))
    assert found == pytest.approx(0.9)


def test_without_evidence_nothing_is_lost(observe):
    """A server of others, a kernel that does not count waits, a container's own core numbers."""
    uncounted = synthetic_campaign.telemetry(beside_cores=0.5, waited_cores=None)
    other_cores = [
        sample | {"server_cores_busy_s": None, "server_cores_steal_s": None}
        for sample in synthetic_campaign.telemetry(waited_cores=0.5)
    ]
    external = [sample | {"server": None} for sample in other_cores]
    for samples in (uncounted, other_cores, external):
        o = observe(samples=samples)
        assert math.isnan(lost_time.lost_to_others(o)) and failed(o) == {}
