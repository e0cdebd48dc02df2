"""The GPUs on which the engines of this machine will compute: those of NVML that
CUDA_VISIBLE_DEVICES names, tried out by torch before anything is measured.

An engine computes on the CPU without a word if torch cannot use the GPU.
"""

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Collection, MutableMapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

from loadtests.schema import JsonObject
from loadtests.telemetry.gpu import Gpus
from servers.runtime import cuda_devices
from servers.runtime.catalog import ROOT
from servers.runtime.cuda_devices import CudaDevice, TorchReport, on_cpu
from servers.runtime.errors import LaunchError

GIB = 2**30
VISIBLE, DTYPE = "CUDA_VISIBLE_DEVICES", "SERVEOFF_DTYPE"
# values of CUDA_VISIBLE_DEVICES that show no GPU; batch systems set the last for a job without one
NO_GPU = ("", "-1", "NoDevFiles")
ON_CPU = "set SERVEOFF_DEVICE=cpu to measure the CPU"
VLLM_NEEDS = (7, 5)  # compute capability


class VisibleGpu(NamedTuple):
    """A GPU that CUDA sees. `name`: its entry in CUDA_VISIBLE_DEVICES; `card`: NVML's index;
    `part`: in MIG mode CUDA sees only a part of the card.
    """

    name: str
    card: int
    part: bool


class Card(NamedTuple):
    """The GPU that the engines will use, and the number of GPUs that they see. Both sizes are 0
    until torch was asked if NVML does not give them: for a part of a card in MIG mode, and where
    GPU and CPU share memory. `indices`: NVML's, of all GPUs that engines see; the first is used.
    """

    name: str
    total_bytes: int
    free_bytes: int
    cards: int = 1
    indices: tuple[int, ...] = ()
    report: TorchReport | None = None


def find_card(strict: bool = True) -> Card | None:
    """The card that the engines will use, as NVML describes it; None if they see none. If the
    machine's GPUs cannot be known, raises LaunchError, or returns None unless `strict`.
    """
    if _hidden():
        return None
    gpus = Gpus()
    visible = list_visible(gpus)
    if reason := _refusal(gpus, visible):
        if strict:
            raise LaunchError(f"{reason}, or {ON_CPU}")
        return None
    if not visible:
        return _find_without_nvml()
    first = visible[0]
    described = gpus.describe()[first.card]
    free = gpus.value(
        first.card, "memory", lambda handle: int(gpus.nvml.nvmlDeviceGetMemoryInfo(handle).free)
    )
    total = described["memory_bytes"]
    if not total or free is None or first.part:
        total = free = 0
    return Card(
        described["name"] or "a GPU",
        total,
        free,
        len(visible),
        tuple(each.card for each in visible),
    )


def _refusal(gpus: Gpus, visible: Sequence[VisibleGpu]) -> str:
    """Why the engines' GPU cannot be known, with a remedy; empty if it is."""
    if gpus.failure:
        # after an update, the loaded driver is older than its library
        updated = "mismatch" in gpus.failure
        return f"{gpus.failure}: {'restart the machine' if updated else 'repair the NVIDIA driver'}"
    if visible or not gpus.count:
        return ""
    known = ", ".join(
        f"{index}: {gpus.value(index, 'name', gpus.nvml.nvmlDeviceGetName)}"
        for index in range(gpus.count)
    )
    return (
        f"{VISIBLE}={os.environ.get(VISIBLE)} names no GPU of this machine ({known}): give one of"
        " these numbers"
    )


def _hidden() -> bool:
    """Whether the user hides the machine's GPUs from the engines."""
    return on_cpu(os.environ) or os.environ.get(VISIBLE, "all").strip() in NO_GPU


def _find_without_nvml() -> Card | None:
    """Asks torch where there is CUDA's driver without NVML: on some boards and in some
    containers.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    if importlib.util.find_spec("torch") is None:
        return None
    report = cuda_devices.ask_torch()
    if not report.devices:
        return None
    first = report.devices[0]
    return Card(first.name, first.total_bytes, first.free_bytes, len(report.devices), (), report)


def list_visible(gpus: Gpus) -> list[VisibleGpu]:
    """Lists the cards in CUDA_VISIBLE_DEVICES, in its order. As in CUDA, an entry is a number, the
    start of a UUID or the UUID of a part, and the list ends at the first entry that matches none.
    """
    described = gpus.describe()
    visible = os.environ.get(VISIBLE)
    names = visible.split(",") if visible is not None else map(str, range(gpus.count))
    uuids = [
        gpus.value(index, "UUID", gpus.nvml.nvmlDeviceGetUUID) or "" for index in range(gpus.count)
    ]
    found: list[VisibleGpu] = []
    for name in map(str.strip, names):
        if name.startswith("MIG-") and not name.startswith("MIG-GPU-"):
            index = gpus.card_of_part(name)
        else:
            # drivers before 470 name a part MIG-GPU-UUID/INSTANCE/INSTANCE
            start = name.removeprefix("MIG-").partition("/")[0]
            index = next(
                (
                    i
                    for i, uuid in enumerate(uuids)
                    if start == str(i) or (start and uuid.startswith(start))
                ),
                None,
            )
        if index is None:
            break
        found.append(VisibleGpu(name, index, bool(described[index]["mig"])))
    return found


def try_card(card: Card, vllm: Collection[str]) -> Card:
    """Computes on the card with torch, in a child process. Returns it with torch's sizes where NVML
    gives none, and sets the environment of all servers: the type of numbers, and GPUs as vLLM can
    read them. `vllm`: the servers that will run vLLM. Raises LaunchError if the engines would
    compute elsewhere or not at all.
    """
    _check_dtype()
    if vllm:
        if cuda_devices.vllm_for_cpu():
            raise LaunchError(
                f"the installed vLLM is a build for CPUs, and this machine has a GPU ({card.name}):"
                f" install vLLM for CUDA, as SERVEOFF_DEVICE=gpu nox -s bench does, leave out"
                f" {', '.join(vllm)}, or {ON_CPU}"
            )
        number_gpus(os.environ)
    report = card.report or cuda_devices.ask_torch()
    if not report.devices:
        raise LaunchError(_explain(card, report))
    first = report.devices[0]
    if vllm and first.capability < VLLM_NEEDS:
        raise LaunchError(
            f"vLLM needs a GPU of compute capability {_dotted(VLLM_NEEDS)}, and the {first.name}"
            f" has {_dotted(first.capability)}: leave out {', '.join(vllm)}"
        )
    if vllm and "MIG-" in os.environ.get(VISIBLE, ""):
        _check_vllm(vllm)
    os.environ.setdefault(DTYPE, first.dtype)
    return _combine(card, report, first)


def _combine(card: Card, report: TorchReport, first: CudaDevice) -> Card:
    """Returns NVML's description of the card that torch uses, with torch's sizes where NVML has
    none. A different order of CUDA's GPUs shows in the UUID.
    """
    indices = card.indices
    gpus = Gpus()
    by_uuid = {
        str(gpus.value(index, "UUID", gpus.nvml.nvmlDeviceGetUUID)).removeprefix("GPU-"): index
        for index in range(gpus.count)
    }
    seen = [by_uuid.get(device.uuid or "") for device in report.devices]
    if None not in seen:
        indices = tuple(index for index in seen if index is not None)
    name, total, free = card.name, card.total_bytes, card.free_bytes
    if indices[:1] != card.indices[:1] or not total:
        name, total, free = first.name, first.total_bytes, first.free_bytes
    return Card(name, total, free, len(report.devices), indices[: len(report.devices)], report)


def check_cpu(vllm: Collection[str]) -> None:
    """Raises LaunchError if the engines shall compute on the CPU beside a hidden GPU, and vLLM
    cannot.
    """
    _check_dtype()
    if vllm and _hidden() and Gpus().count and not cuda_devices.vllm_for_cpu():
        raise LaunchError(
            "this machine's GPU is hidden, and the installed vLLM computes on GPUs only: leave out"
            f" {', '.join(vllm)}, or install vLLM for CPUs, as SERVEOFF_DEVICE=cpu nox -s bench"
            " does"
        )


def describe(card: Card) -> str:
    """What was found, in one line for the terminal."""
    assert card.report and card.report.devices
    report, first = card.report, card.report.devices[0]
    number = f" (GPU {card.indices[0]})" if card.indices else ""
    return (
        f"the engines compute on {first.name}{number}: {card.free_bytes / GIB:.1f} of"
        f" {card.total_bytes / GIB:.1f} GiB free, compute capability {_dotted(first.capability)},"
        f" {cuda_devices.engine_dtype()}, torch {report.torch} for CUDA {report.cuda}"
        + (f"; not on every GPU: {report.reason}" if report.reason else "")
    )


def expected_device(card: Card | None) -> JsonObject:
    """campaign.json's "engine_device"."""
    report = card.report if card else None
    if not report:
        return {"type": "cpu", "dtype": cuda_devices.engine_dtype(), "devices": []}
    return {
        "type": "cuda",
        "dtype": cuda_devices.engine_dtype(),
        # without the memory that was free, which differs when a campaign continues
        "devices": [
            {key: value for key, value in asdict(device).items() if key != "free_bytes"}
            for device in report.devices
        ],
        "torch": report.torch,
        "torch_cuda": report.cuda,
    }


def number_gpus(environment: MutableMapping[str, str]) -> None:
    """Replaces UUIDs of whole cards by NVML's numbers: many versions of vLLM read nothing else."""
    visible = environment.get(VISIBLE, "")
    gpus = Gpus()
    found = list_visible(gpus) if gpus.count and "GPU-" in visible else []
    if found and not any(each.name.startswith("MIG-") for each in found):
        environment[VISIBLE] = ",".join(str(each.card) for each in found)
        environment.update(cuda_devices.BY_BUS)


def _check_dtype() -> None:
    if (dtype := cuda_devices.engine_dtype()) not in cuda_devices.DTYPES:
        raise LaunchError(
            f"{DTYPE} is {dtype!r}: set it to {' or '.join(cuda_devices.DTYPES)}, or unset it"
        )


def _explain(card: Card, report: TorchReport) -> str:
    """Why torch cannot compute on the card, with a remedy only where the cause is known."""
    gpu = f"this machine's GPU ({card.name})"
    if report.torch is None:
        return f"torch could not be asked about {gpu}: {report.reason}; repair it, or {ON_CPU}"
    driver = Gpus().cuda_driver()
    remedy = ""
    if report.cuda is None:
        remedy = "install torch for CUDA, as SERVEOFF_DEVICE=gpu nox -s bench does, or "
    elif "Error 802" in report.reason:
        remedy = "start the driver's daemons (nvidia-fabricmanager on a machine with NVSwitch), or "
    elif driver and driver < tuple(map(int, report.cuda.split(".")[:1])):
        remedy = (
            f"this torch needs a driver for CUDA {report.cuda}, and the installed one is for CUDA"
            f" {_dotted(driver)}: update the driver, or "
        )
    return f"torch {report.torch} cannot compute on {gpu}: {report.reason}: {remedy}{ON_CPU}"


def _check_vllm(servers: Collection[str]) -> None:
    """Raises LaunchError if the installed vLLM cannot read a part's UUID. Takes seconds."""
    code = "from vllm.platforms import current_platform as p; p.get_device_capability()"
    environment = {**cuda_devices.BY_BUS, **os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    # with another error, vLLM's own log explains it
    if re.search(r"invalid literal for int|Invalid Argument", done.stderr * bool(done.returncode)):
        raise LaunchError(
            f"the installed vLLM cannot read {VISIBLE}={os.environ[VISIBLE]}: leave out"
            f" {', '.join(servers)}, or start a container that sees only this part of the GPU, with"
            f" {VISIBLE} unset"
        )


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
