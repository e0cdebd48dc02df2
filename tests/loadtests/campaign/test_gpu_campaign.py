"""A whole campaign with a fake NVIDIA driver, whose card is scripted, and with a torch that finds
this card. The report's GPU numbers are those of the script, and a card that falls off the bus costs
only its own numbers.
"""

import json
from pathlib import Path

import pytest

from analysis import dataset, summary
from tests.helpers.campaign_process import Bench, is_complete, runs, wait_for
from tests.helpers.fake_nvml import ONE_CARD, TWO_CARDS, compile_driver
from tests.helpers.fake_torch import device, install_torch

pytestmark = [pytest.mark.slow, pytest.mark.alone]
COMMAND = (
    "--servers",
    "flask_gunicorn,fastapi_threadpool",
    "--scenarios",
    "quick",
    "--duration",
    "4",
    "--report",
    "page",
)


@pytest.fixture
def with_card(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.environment |= install_torch(tmp_path / "torch", device()) | {
        "LD_LIBRARY_PATH": compile_driver(tmp_path, ONE_CARD),
        "LOST": str(tmp_path / "lost"),
        "FAKE_ENGINE_DEVICE": "Fake 300",
    }
    return bench


def test_the_report_shows_the_driver_s_numbers(with_card: Bench) -> None:
    # on a busy machine a case may be invalid, and the page then lacks its numbers
    for attempt in range(3):
        out = with_card.folder / f"out-{attempt}"
        done = with_card.run(*COMMAND, "--model", "small", "--out", out.name)
        assert is_complete(done.returncode, done.stderr), done.stdout + done.stderr
        found = summary.summarise(dataset.read_campaign(out))
        if found.table["valid"].all():
            break
    assert list(found.table["valid"]) == [True] * 2, list(found.table["why"])
    assert json.loads((out / "campaign.json").read_text())["manifest"]["gpus"] == [
        {
            "name": "Fake 300",
            "memory_bytes": 80 << 30,
            "driver": "999.1",
            "mig": None,
            "compute_capability": "8.9",
            "power_limit_w": 300.0,
            "driver_cuda": "13.1",
        }
    ]
    assert [run["gpus"] for _, run in runs(out)] == [[0], [0]]
    for _, case in found.table.iterrows():
        assert (case["gpu_utilization_percent"], case["gpu_memory_bytes"], case["gpu_power_w"]) == (
            73,
            20 << 30,
            300,
        )
        assert case["gpu_tokens_per_joule"] == pytest.approx(
            case["output_tokens_per_s"] / 300, rel=0.05
        )
    drawn = [set(frame["gpu_percent"].dropna()) for frame in found.timelines.values()]
    assert drawn == [{73.0}] * 2, "in the figure over time"
    clocks = found.checks[found.checks["name"] == "GPU clocks"]
    assert list(clocks["ok"]) == [False] * 2 and "throttled" in clocks["detail"].iloc[0]
    page = (out / "report.html").read_text()
    assert "GPU utilisation is the share of the time in which any kernel ran" in page
    assert "Fake 300" in page and "throttled" in page and page.count("73.0") >= 2


def test_a_card_that_falls_off_the_bus_costs_its_numbers_only(with_card: Bench) -> None:
    campaign = with_card.start(*COMMAND, "--model", "tiny", "--out", "out")
    wait_for(lambda: any(with_card.folder.glob("out/cases/*/load.json")), "a case under load")
    Path(with_card.environment["LOST"]).touch()
    printed, _ = campaign.communicate(timeout=90)
    assert is_complete(campaign.returncode, printed), printed
    for _, run in runs(with_card.folder / "out"):
        assert run["status"] == "ok"
        assert [
            note
            for note in run["notes"]
            if "GPU is lost" in note and "null where this happens" in note
        ], run["notes"]
    found = summary.summarise(dataset.read_campaign(with_card.folder / "out"))
    assert (
        found.table["gpu_power_w"].isna().all() and found.table["output_tokens_per_s"].gt(0).all()
    )


def test_an_engine_that_fell_back_to_the_cpu_is_invalid(with_card: Bench) -> None:
    del with_card.environment["FAKE_ENGINE_DEVICE"]
    done = with_card.run(*COMMAND, "--servers", "fastapi_threadpool", "--model", "tiny")
    assert done.returncode == 1
    assert "engine device: it computed on the CPU, not on Fake 300" in done.stdout


def test_the_cpu_beside_a_card_is_measured_if_the_card_is_hidden(with_card: Bench) -> None:
    """The report then names no card as the server's."""
    del with_card.environment["FAKE_ENGINE_DEVICE"]
    with_card.environment["CUDA_VISIBLE_DEVICES"] = ""
    one = ("--servers", "fastapi_threadpool", "--model", "tiny", "--out", "out")
    done = with_card.run(*COMMAND, *one)
    assert is_complete(done.returncode, done.stderr), done.stdout + done.stderr
    campaign = json.loads((with_card.folder / "out" / "campaign.json").read_text())
    assert campaign["engine_device"] == {"type": "cpu", "dtype": "bfloat16", "devices": []}
    report = (with_card.folder / "out" / "report.md").read_text()
    about, machine = report.split(r"| engine\_device.type | cpu |")
    assert "Fake 300" not in about and "manifest.gpus" in machine
    [(_, run)] = runs(with_card.folder / "out")
    assert run["gpus"] == []
    assert [(each["type"], each["dtype"]) for each in run["devices"]] == [("cpu", "bfloat16")]


def test_a_server_on_the_second_card_gets_that_card_s_numbers(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.environment |= install_torch(tmp_path / "torch", device("Fake B")) | {
        "LD_LIBRARY_PATH": compile_driver(tmp_path, TWO_CARDS),
        "CUDA_VISIBLE_DEVICES": "1",
        "FAKE_ENGINE_DEVICE": "Fake B",
    }
    done = bench.run(*COMMAND, "--servers", "flask_gunicorn", "--model", "tiny", "--out", "out")
    assert is_complete(done.returncode, done.stderr), done.stdout + done.stderr
    [(_, run)] = runs(bench.folder / "out")
    assert run["gpus"] == [1]
    found = summary.summarise(dataset.read_campaign(bench.folder / "out"))
    [(_, case)] = found.table.iterrows()
    measured = [
        case[f"gpu_{name}"] for name in ("utilization_percent", "power_w", "others_power_w")
    ]
    assert measured == [41, 251.5, 250.5]
    [other] = found.checks.loc[found.checks["name"] == "other GPUs", "detail"]
    assert other == "gpu0 was 40% busy"
