"""The self-test of a machine with GPUs, on a machine without one and beside a fake driver."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests import gpu_selftest
from loadtests.gpu_selftest import FAILED, NOT_TESTED, OK, Check
from loadtests.schema import GPU_FIELDS
from loadtests.telemetry.gpu import Gpus
from servers.runtime import catalog, cuda_toolkit, models
from servers.runtime.cuda_devices import CudaDevice, EngineDevice, TorchReport
from tests.helpers.campaign_process import PATIENCE_S, ROOT, Bench
from tests.helpers.fake_nvml import ONE_CARD, compile_driver

CARD = CudaDevice(0, "NVIDIA H200", "a1", (9, 0), 141 << 30, 139 << 30)
READY = TorchReport("2.11.0", "13.0", (CARD,), "")


def run_selftest(bench: Bench, **environment: str) -> dict[str, Check]:
    """Returns its checks by name, after a failure as a whole that leaves the servers untested."""
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
    parts = ("start", "answers", "device")
    servers = {f"{part} of {name}" for part in parts for name in catalog.CORE.split(",")}
    untested = {"kernel", "vLLM", "telemetry", *servers}
    assert found.keys() == {"driver", "C compiler", "CUDA toolkit", "torch", *untested}
    assert {found[name].state for name in untested} == {NOT_TESTED}
    return found


def test_without_a_gpu_it_names_what_could_not_be_tested(bench: Bench, tmp_path: Path) -> None:
    for name in ("libnvidia-ml.so.1", "libcuda.so.1"):  # hide the driver of a machine that has one
        (tmp_path / name).touch()
    found = run_selftest(bench, LD_LIBRARY_PATH=str(tmp_path))
    assert found["driver"].state == found["torch"].state == NOT_TESTED
    assert found["driver"].facts.startswith("no NVIDIA GPU was found")
    assert found["torch"].facts.endswith("and no GPU to compute on")


def test_a_card_that_torch_cannot_use_fails_with_its_reason(bench: Bench, tmp_path: Path) -> None:
    fake = {"LD_LIBRARY_PATH": compile_driver(tmp_path, ONE_CARD), "LOST": str(tmp_path / "lost")}
    found = run_selftest(bench, **fake)
    assert found["driver"].state == OK and "shows Fake 300 (80 GiB)" in found["driver"].facts
    torch = found["torch"]
    assert torch.state == FAILED and "cannot compute on this machine's GPU" in torch.facts
    if cuda_toolkit.torch_cuda() is None:
        assert "Torch not compiled with CUDA enabled" in torch.facts
        assert "install torch for CUDA, as SERVEOFF_DEVICE=gpu nox -s bench does" in torch.facts
    assert found["start of fastapi_vllm"].facts == "torch did not pass"


@pytest.mark.parametrize(
    ("name", "value"), [("SERVEOFF_DEVICE", "cpu"), ("CUDA_VISIBLE_DEVICES", "")]
)
def test_a_hidden_gpu_is_not_called_missing(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    gpus = Gpus()
    gpus.count = 1
    card, check = gpu_selftest.check_driver(gpus)
    assert card is None and check.state == NOT_TESTED
    assert check.facts == f"{name}={value} hides the GPU: unset it"


def test_each_gpu_must_run_a_kernel() -> None:
    torch = Check("torch", OK, "")
    lost = TorchReport("2.11.0", "13.0", (CARD,), "Error 802: system not yet initialized")
    first, last = gpu_selftest.check_kernels(lost, torch)
    assert first == Check("kernel on GPU 0", OK, "NVIDIA H200, 139.0 of 141.0 GiB free")
    assert last.state == FAILED and last.facts.endswith("Error 802: system not yet initialized")
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


def test_a_report_needs_utilisation_power_and_energy() -> None:
    row: dict[str, Any] = dict.fromkeys(GPU_FIELDS, 1)
    found = gpu_selftest.check_telemetry([[row], [row | {"power_w": 70, "energy_j": None}]])
    facts = "11 of 11 columns have values, utilization_percent at most 1%, power_w at most 70 W"
    assert (found.state, found.facts) == (OK, facts)
    container = gpu_selftest.check_telemetry([[row | {"server_memory_bytes": None}]])
    assert container.state == OK and "the host's process ids" in container.facts
    idle = [[row | {"utilization_percent": None}]]
    assert gpu_selftest.check_telemetry(idle).state == FAILED
    mig = gpu_selftest.check_telemetry(idle, mig=True)
    assert mig.state == OK and mig.facts.endswith("the driver gives no utilization_percent")
    assert gpu_selftest.check_telemetry([[row | {"power_w": None}]]).state == FAILED


def checks_of(name: str, engine: str) -> dict[str, Check]:
    model = models.resolve_model("tiny", needs_weights=engine != "simulated")
    server = catalog.find_server(name)
    found = gpu_selftest.check_server(server, engine, model, Gpus())
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
