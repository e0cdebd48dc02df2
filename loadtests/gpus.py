"""NVIDIA GPUs through NVML, the library that comes with their driver: what they are, and what they do at this moment.

The only importer of pynvml (the package nvidia-ml-py). Without a GPU everything is empty. NVML may
take its time, and hangs when a card is lost: whoever cannot wait calls `sample` from a thread.
"""

from collections.abc import Callable
from typing import Any

from loadtests.records import GPU_FIELDS


class Gpus:
    """All GPUs of the machine, by NVML's index. CUDA_VISIBLE_DEVICES hides none here: another job on a hidden one still heats."""

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        """`say` is told why there is no GPU, and of each kind of error of each card once."""
        self.nvml: Any = None
        self.count = 0
        self.say, self.said = say, set[str]()
        absent = "no NVIDIA GPU"
        try:
            import pynvml as nvml  # type: ignore[import-untyped]

            try:
                nvml.nvmlInit()
                self.nvml, self.count = nvml, nvml.nvmlDeviceGetCount()
            except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded):
                pass
            except nvml.NVMLError as error:  # such as a driver that was updated and not yet loaded
                absent = f"NVML does not start ({error})"
        except ImportError:
            absent = "nvidia-ml-py is not installed"
        if not self.count:
            say(f"{absent}: GPU columns are null")

    def describe(self) -> list[dict[str, Any]]:
        """{name, memory_bytes, driver} of each card."""
        return [
            {
                "name": self.value(index, "name", self.nvml.nvmlDeviceGetName),
                "memory_bytes": self.value(index, "memory", lambda card: int(self.nvml.nvmlDeviceGetMemoryInfo(card).total)),
                "driver": self.value(index, "driver", lambda card: self.nvml.nvmlSystemGetDriverVersion()),
            }
            for index in range(self.count)
        ]

    def unknown(self) -> list[dict[str, Any]]:
        """Rows of GPU_FIELDS for a moment in which NVML gave no answer."""
        return [dict.fromkeys(GPU_FIELDS) | {"index": index} for index in range(self.count)]

    def sample(self) -> list[dict[str, Any]]:
        """A row of GPU_FIELDS for each card."""
        nvml = self.nvml
        readers: dict[str, Callable[[Any], Any]] = {
            "utilization_percent": lambda card: float(nvml.nvmlDeviceGetUtilizationRates(card).gpu),
            "memory_used_bytes": lambda card: int(nvml.nvmlDeviceGetMemoryInfo(card).used),
            "power_w": lambda card: nvml.nvmlDeviceGetPowerUsage(card) / 1000,  # NVML: milliwatts
            "energy_j": lambda card: nvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1000,  # NVML: millijoules
            "sm_clock_mhz": lambda card: float(nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM)),
            "temperature_c": lambda card: float(nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU)),
            "throttle_reasons": lambda card: int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(card)),
        }
        return [row | {name: self.value(row["index"], name, read) for name, read in readers.items()} for row in self.unknown()]

    def value(self, index: int, name: str, read: Callable[[Any], Any]) -> Any:
        """One value of one card; null if its driver does not support it (silently) or if NVML fails (said once, not fatal)."""
        try:
            return read(self.nvml.nvmlDeviceGetHandleByIndex(index))
        except self.nvml.NVMLError_NotSupported:
            return None
        except self.nvml.NVMLError as error:
            text = f"GPU {index}: {error}"
            if text not in self.said:
                self.said.add(text)
                self.say(f"{text} ({name}): null where this happens")
            return None
