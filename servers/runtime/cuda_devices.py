"""Finds out which GPUs torch can compute on, in a child process: importing torch takes seconds, and
a CUDA context takes memory as long as its process lives.

    python -m servers.runtime.cuda_devices      # prints the TorchReport as JSON
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from servers.runtime.catalog import ROOT
from servers.runtime.limits import PROBE_S

# numbers GPUs as NVML does; by default CUDA's GPU 0 is the fastest one
BY_BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
LONGEST_REASON = 300  # characters; torch's longer messages go on with advice


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
        """The 16-bit type for weights: bfloat16 from compute capability 8.0, which first has it in
        hardware.
        """
        return "bfloat16" if self.capability >= (8, 0) else "float16"


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
        reason = f"it had not answered after {PROBE_S:g} s"
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


if __name__ == "__main__":
    print(json.dumps(asdict(inspect_torch())))
