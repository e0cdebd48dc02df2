"""What engines report about their device, in the logs of their server."""

import json
from pathlib import Path

import pytest

from servers.__main__ import prepare_device
from servers.runtime import cuda_devices
from servers.runtime.cuda_devices import MARK, EngineDevice, TorchReport


def test_each_device_in_a_server_s_logs_is_read_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = EngineDevice("cuda", "Fake 300", "f0-0", "bfloat16", "engine")
    cpu = EngineDevice("cpu", None, None, "bfloat16", "start")
    for device in (gpu, cpu, gpu):
        cuda_devices.log_device(device)
    first, second, third = capsys.readouterr().err.splitlines(keepends=True)
    # as of a worker, and of a server behind another
    (tmp_path / "server.log").write_text(f"loading\n(Worker pid=7) {first}{third}ready\n")
    later = json.dumps({"type": "cpu", "something": "newer"})
    behind = f"{second}{MARK}{later}\n{MARK}{{half a l"
    (tmp_path / "server.upstream-1.log").write_text(behind)
    (tmp_path / "load.log").write_text(first)
    assert cuda_devices.read_devices(tmp_path) == [gpu, cpu]


def test_a_server_that_logs_nothing_has_no_known_device(tmp_path: Path) -> None:
    assert cuda_devices.read_devices(tmp_path) == []


@pytest.mark.parametrize(
    ("capability", "dtype"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16")]
)
def test_bfloat16_needs_compute_capability_8(capability: tuple[int, int], dtype: str) -> None:
    assert cuda_devices.CudaDevice(0, "a GPU", None, capability, 1, 1).dtype == dtype


def test_a_server_started_by_hand_also_computes_with_the_gpu_s_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turing = cuda_devices.CudaDevice(0, "a T4", None, (7, 5), 1, 1)
    reports = [TorchReport("2.99", "13.0", (), "Error 802"), TorchReport("", "", (turing,), "")]
    monkeypatch.setattr(cuda_devices, "has_driver", lambda: True)
    monkeypatch.setattr(cuda_devices, "ask_torch", lambda: reports.pop(0))
    monkeypatch.delenv("SERVEOFF_DTYPE", raising=False)
    prepare_device()
    assert capsys.readouterr().err == "torch cannot compute on a GPU here: Error 802\n"
    assert cuda_devices.engine_dtype() == "bfloat16"
    prepare_device()
    assert cuda_devices.engine_dtype() == "float16"
