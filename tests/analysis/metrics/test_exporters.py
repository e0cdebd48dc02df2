"""Numbers of a machine that exporters describe: only as exact as the samples that they gave."""

import math

import pytest

from analysis import checks, hardware, metrics
from tests.helpers import synthetic_campaign

GIB = synthetic_campaign.GIB
OF_THE_SERVER = ("server", "cpu_busy_s", "cpu_steal_s", "memory_available_bytes")
NAMES = ("utilization_percent", "memory_bytes", "power_w", "tokens_per_joule")


def machine(here=False, gpus=(0, 1), host=False):
    cards = [
        {"index": n, "gpu": str(n), "uuid": None, "name": "NVIDIA L4", "memory_bytes": 24 * GIB}
        for n in gpus
    ]
    return {
        "here": here,
        "hidden": [],
        "gpu_exporters": ["http://10.0.0.5:9400/metrics"] * bool(gpus),
        "gpus": cards,
        "host_exporter": "http://10.0.0.5:9100/metrics" if host else None,
        "cores": 4 if host else None,
        "memory_bytes": 16 * GIB if host else None,
    }


def samples(period_s=1.0, until_s=12.0, **changes):
    """The sampler's own rows without this machine's values, and rows of an exporter in between."""
    rows = synthetic_campaign.telemetry(gpus=2)
    own = [
        row | dict.fromkeys(OF_THE_SERVER) | {"gpus": [], "client_steal_s": 0.16 * row["time_s"]}
        for row in rows
    ]
    every = round(4 * period_s)
    of_exporter = [
        row
        | {"server": None, "load": None, "gpus": [card | changes for card in row["gpus"]]}
        | {"time_s": row["time_s"] + 0.01}
        for row in rows[::every]
        if row["time_s"] <= until_s
    ]
    return [row for pair in (own, of_exporter) for row in pair]


@pytest.fixture
def measured(observe):
    def measure(telemetry, **where):
        case = observe(
            samples=telemetry, command=None, server_machine=machine(**where), gpus=[0, 1]
        )
        found = {check.name: check for check in checks.run_checks(case)}
        return metrics.measure_case(case), found

    return measure


def gpu_numbers(values):
    watts = values["output_tokens_per_s"] / values["gpu_tokens_per_joule"]
    return [*(values[f"gpu_{name}"] for name in NAMES[:3]), pytest.approx(watts, rel=1e-3)]


def test_numbers_of_an_exporter_are_those_of_local_cards(measured):
    values, found = measured(samples())
    assert gpu_numbers(values) == [80, 4 * GIB, 600, 600]
    assert found["exporters"].ok is True
    assert found["other processes"].ok is None, "unknown"
    assert found["steal"].detail.endswith("took 4.0% of the load generator's machine")


def test_too_few_samples_have_no_mean_and_a_reason(measured):
    """The window is 8 s long, and the exporter measures every 3 s, or ends in the middle."""
    for telemetry in (samples(period_s=3), samples(until_s=5)):
        values, found = measured(telemetry)
        assert math.isnan(values["gpu_utilization_percent"]) and math.isnan(values["gpu_power_w"])
        assert found["exporters"].ok is False and found["exporters"].severity == "warning"
        assert found["exporters"].detail.startswith("gpu0, gpu1: ")
        assert "--collect-interval 1000" in found["exporters"].remedy
    watts = gpu_numbers(measured(samples(period_s=3))[0])[3]
    assert watts == 600, "the counter needs only two samples that span half of the window"
    nothing, found = measured(samples(until_s=-1))
    assert all(math.isnan(nothing[f"gpu_{name}"]) for name in NAMES)
    assert "0 new samples" in found["exporters"].detail


def test_energy_is_the_counter_s_or_else_the_power_s(measured):
    assert gpu_numbers(measured(samples(energy_j=None))[0])[3] == 600
    values, found = measured(samples(power_w=100.0))
    assert math.isnan(values["gpu_tokens_per_joule"]), "the counter's unit is not what it should be"
    assert "gpu0 counts 300 J per second, but draws 100 W" in found["exporters"].detail


def test_cards_of_two_exporters_are_summed_although_their_rows_differ(measured):
    telemetry = samples()
    for number, row in enumerate([row for row in telemetry if row["gpus"]]):
        row["gpus"] = [row["gpus"][number % 2]]
    values, _ = measured(telemetry)
    assert values["gpu_memory_bytes"] == 4 * GIB


def test_the_machine_s_cores_are_without_the_load_generator_if_it_runs_there(observe):
    def cores(here, host=True):
        found = observe(command=None, server_machine=machine(here, gpus=(), host=host))
        values = metrics.measure_case(found)
        return values["machine_cores"], values["machine_memory_bytes"]

    assert cores(here=True) == (pytest.approx(0.5), 8 * GIB)
    assert cores(here=False)[0] == pytest.approx(0.75)
    started = metrics.measure_case(observe(server_machine=machine(here=True, gpus=())))
    assert math.isnan(started["machine_cores"]), "it has its own processes"


def test_names_for_the_peaks_are_the_server_s():
    client = {"manifest": {"gpus": [{"name": "NVIDIA H100 80GB HBM3"}]}}
    run = {"server_machine": machine(), "gpus": [0, 1]}
    assert hardware.used_gpu_names(client, run) == ("NVIDIA L4", "NVIDIA L4")
    nowhere = {"server_machine": machine(gpus=()), "gpus": []}
    assert hardware.used_gpu_names(client, nowhere) == ()
    here = {"server_machine": machine(here=True, gpus=()), "gpus": None}
    assert hardware.used_gpu_names(client, here) == ("NVIDIA H100 80GB HBM3",), "the only card"
