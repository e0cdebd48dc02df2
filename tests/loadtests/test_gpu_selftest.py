"""The self-test of a machine with GPUs, on a machine without one and beside a fake driver."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests import gpu_selftest
from loadtests.gpu_selftest import FAILED, NOT_TESTED, OK, Check
from loadtests.options import CORE
from loadtests.schema import GPU_FIELDS
from loadtests.telemetry.gpu import Gpus
from servers.runtime import catalog, cuda_toolkit, models
from servers.runtime.cuda_devices import CudaDevice, EngineDevice, TorchReport
from tests.helpers.campaign_process import PATIENCE_S, ROOT, Bench
from tests.helpers.fake_nvml import ONE_CARD, compile_driver

CARD = CudaDevice(0, "NVIDIA H200", "a1", (9, 0), 141 << 30, 139 << 30)
READY = TorchReport("2.11.0", "13.0", (CARD,), "")


def run_selftest(bench: Bench, **environment: str) -> dict[str, Check]:
    """Returns its checks by name, after a failure as a whole."""
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.gpu_selftest"],
        cwd=ROOT,
        env=bench.environment | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1 and done.stderr == "", done.stdout + done.stderr
    lines, _, end = done.stdout.partition("\n\n")
    assert end.splitlines()[1].startswith("Next: "), end
    found = {}
    for line in lines.splitlines():
        state, _, text = line.partition("  ")
        name, _, facts = text.strip().partition(": ")
        found[name] = Check(name, state, facts)
    servers = {f"start, answers and device of {name}" for name in CORE.split(",")}
    untested = {"kernel", "telemetry", *servers}
    assert found.keys() == {"driver", "C compiler", "CUDA toolkit", "torch", *untested}
    assert all(found[name].state == NOT_TESTED for name in untested - {"kernel"})
    return found


def test_without_a_gpu_it_names_what_could_not_be_tested(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").touch()  # hides the driver of a machine that has one
    found = run_selftest(bench, LD_LIBRARY_PATH=str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert found["driver"].state == NOT_TESTED
    assert found["driver"].facts.startswith("NVML finds no NVIDIA GPU")
    assert found["torch"].state == found["kernel"].state == NOT_TESTED
    assert found["torch"].facts.endswith("and there is no GPU")


def test_a_card_that_torch_cannot_use_fails_with_the_reason(bench: Bench, tmp_path: Path) -> None:
    found = run_selftest(
        bench,
        LD_LIBRARY_PATH=compile_driver(tmp_path, ONE_CARD),
        LOST=str(tmp_path / "lost"),
        CUDA_VISIBLE_DEVICES="",
    )
    assert found["driver"].state == OK and "shows Fake 300 (80 GiB)" in found["driver"].facts
    failed = found["kernel" if cuda_toolkit.torch_cuda() else "torch"]
    assert failed.state == FAILED
    if failed.name == "torch":
        assert failed.facts.startswith("torch 2.")
        remedy = "without CUDA: `SERVEOFF_DEVICE=gpu nox -s gpu` installs one with CUDA"
        assert failed.facts.endswith(remedy)


@pytest.mark.parametrize(
    ("report", "driver", "state", "facts"),
    [
        (READY, (13, 1), OK, "torch 2.11.0 is built for CUDA 13.0, which the driver supports"),
        (READY, None, OK, "torch 2.11.0 is built for CUDA 13.0"),
        (READY, (12, 8), OK, "torch 2.11.0 is built for CUDA 13.0"),  # with cuda-compat
        (
            TorchReport("2.11.0", "13.0", (), "the driver is too old"),
            (12, 8),
            FAILED,
            "torch 2.11.0 is built for CUDA 13.0, more than the driver supports: install driver 580"
            " or newer",
        ),
        (
            TorchReport(None, None, (), "libcudart.so.13: cannot open shared object file"),
            (13, 0),
            FAILED,
            "it does not start (libcudart.so.13: cannot open shared object file):"
            " `SERVEOFF_DEVICE=gpu nox -s gpu` installs one with CUDA",
        ),
    ],
)
def test_torch_must_fit_the_driver(
    report: TorchReport, driver: tuple[int, int] | None, state: str, facts: str
) -> None:
    assert gpu_selftest.check_torch(report, 1, driver) == Check("torch", state, facts)


def test_each_gpu_must_run_a_kernel_that_vllm_has() -> None:
    torch = Check("torch", OK, "")
    old = CudaDevice(1, "Tesla P100", None, (6, 0), 16 << 30, 16 << 30)
    lost = TorchReport("2.11.0", "13.0", (CARD, old), "Error 802: system not yet initialized")
    first, second, last = gpu_selftest.check_kernels(lost, torch)
    assert first == Check(
        "kernel on GPU 0", OK, "NVIDIA H200, compute capability 9.0, 139.0 of 141.0 GiB free"
    )
    assert second.state == FAILED and "vLLM needs 7.5" in second.facts
    assert last == Check("kernel", FAILED, "torch reports: Error 802: system not yet initialized")
    (none,) = gpu_selftest.check_kernels(TorchReport("2.11.0", "13.0", (), ""), torch)
    assert none.state == FAILED and "CUDA_VISIBLE_DEVICES" in none.facts
    assert [check.state for check in gpu_selftest.check_kernels(READY, torch)] == [OK]


def test_an_engine_on_the_processor_fails() -> None:
    gpu = EngineDevice("cuda", "NVIDIA H200", "a1", "bfloat16", "engine")
    processor = EngineDevice("cpu", None, None, "bfloat16", "engine")
    assert gpu_selftest.check_device("x", [gpu]) == Check(
        "device of x", OK, "NVIDIA H200 with bfloat16"
    )
    both = gpu_selftest.check_device("x", [gpu, processor])
    assert (both.state, both.facts) == (
        FAILED,
        "NVIDIA H200 with bfloat16, cpu with bfloat16, not the GPU",
    )
    assert gpu_selftest.check_device("x", []).state == FAILED


def test_columns_without_a_value_fail_except_the_processes_memory() -> None:
    row: dict[str, Any] = dict.fromkeys(GPU_FIELDS, 1)
    idle = row | {"utilization_percent": 70, "pcie_rx_bytes_per_s": None}
    found = gpu_selftest.check_telemetry([[row], [idle]])
    assert (found.state, found.facts) == (OK, "11 of 11 columns have values; at most 70% and 1 W")
    container = gpu_selftest.check_telemetry([[row | {"server_memory_bytes": None}]])
    assert container.state == OK and "server_memory_bytes is null" in container.facts
    mig = gpu_selftest.check_telemetry([[row | {"utilization_percent": None}]])
    assert mig.state == FAILED and mig.facts.endswith("the driver gives no utilization_percent")


def checks_of(name: str, engine: str) -> dict[str, Check]:
    model = models.resolve_model("tiny", needs_weights=engine != "simulated")
    server = catalog.find_server(name)
    found = gpu_selftest.check_server(server, engine, model, Gpus(), watched=True)
    return {check.name: check for check in found}


def test_a_server_s_start_answers_and_device_are_checked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulated engine computes nowhere."""
    monkeypatch.setenv("TMPDIR", str(bench.temporary))
    found = checks_of("fastapi_vllm", "simulated")
    assert found["start of fastapi_vllm"].state == found["answers of fastapi_vllm"].state == OK
    assert found["answers of fastapi_vllm"].facts.startswith("completion and chat exact; ")
    assert found["device of fastapi_vllm"].state == FAILED
    monkeypatch.setattr(gpu_selftest, "READY_S", 0.001)
    late = checks_of("fastapi_vllm", "simulated")
    assert late["start of fastapi_vllm"].state == FAILED
    assert "was not ready after" in late["start of fastapi_vllm"].facts
    assert late["telemetry"].state == NOT_TESTED


@pytest.mark.slow
@pytest.mark.skipif(cuda_toolkit.torch_cuda() is not None, reason="torch may find a GPU")
def test_transformers_on_the_processor_is_found() -> None:
    found = checks_of("flask_gunicorn", "hf")
    assert found["answers of flask_gunicorn"].state == OK
    assert found["device of flask_gunicorn"].facts == "cpu with bfloat16, not the GPU"
