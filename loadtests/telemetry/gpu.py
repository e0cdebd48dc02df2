"""NVIDIA GPUs and their current state, through NVML, the library of their driver.

The only importer of pynvml (the package nvidia-ml-py). Without a GPU all lists are empty. NVML may
be slow, and it hangs when a card is lost: a caller that cannot wait calls `sample` in a thread.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from loadtests.schema import GPU_FIELDS, JsonObject


class Gpus:
    """All GPUs of the machine, by NVML's index. CUDA_VISIBLE_DEVICES hides none of them: a job on a
    hidden GPU still heats the machine.
    """

    def __init__(
        self, report: Callable[[str], None] = lambda text: None, is_wanted: bool = True
    ) -> None:
        """Calls `report` with the reason for having no GPU, and once for each kind of error.
        `failure` is set if there is a driver that does not work. Unless `is_wanted`, there are
        none.
        """
        self.nvml: Any = None
        self.count, self.failure = 0, ""
        self.report, self.reported = report, set[str]()
        if not is_wanted:
            return
        absent = "no NVIDIA GPU"
        try:
            import pynvml as nvml  # type: ignore[import-untyped]

            try:
                nvml.nvmlInit()
                self.nvml, self.count = nvml, nvml.nvmlDeviceGetCount()
            except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded):
                pass
            except nvml.NVMLError as error:  # for example, an updated driver is not loaded yet
                absent = self.failure = f"NVML does not start ({error})"
        except ImportError:
            absent = "nvidia-ml-py is not installed"
        if not self.count:
            report(f"{absent}: GPU columns are null")

    def describe(self) -> list[JsonObject]:
        """Returns {name, memory_bytes, driver, mig, compute_capability, power_limit_w, driver_cuda}
        of each card. `mig` is whether it is in MIG mode, in which NVML reports no utilisation of
        the card; None if it has no such mode. `power_limit_w`: the limit in force; `driver_cuda`:
        the newest CUDA that the driver runs.
        """
        newest = self.cuda_driver()
        return [
            {
                "name": self.value(index, "name", self.nvml.nvmlDeviceGetName),
                "memory_bytes": self.value(
                    index, "memory", lambda card: int(self.nvml.nvmlDeviceGetMemoryInfo(card).total)
                ),
                "driver": self.value(
                    index, "driver", lambda card: self.nvml.nvmlSystemGetDriverVersion()
                ),
                "mig": self.value(
                    index,
                    "MIG",
                    lambda card: (
                        self.nvml.nvmlDeviceGetMigMode(card)[0] == self.nvml.NVML_DEVICE_MIG_ENABLE
                    ),
                ),
                "compute_capability": self.value(
                    index,
                    "compute capability",
                    lambda card: "{}.{}".format(
                        *self.nvml.nvmlDeviceGetCudaComputeCapability(card)
                    ),
                ),
                "power_limit_w": self.value(
                    index,
                    "power limit",  # NVML: milliwatts
                    lambda card: self.nvml.nvmlDeviceGetEnforcedPowerLimit(card) / 1000,
                ),
                "driver_cuda": newest and "{}.{}".format(*newest),
            }
            for index in range(self.count)
        ]

    def card_of_part(self, uuid: str) -> int | None:
        """Returns the index of the card to which a MIG part belongs; None if there is none."""
        nvml = self.nvml
        try:
            card = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
                nvml.nvmlDeviceGetHandleByUUID(uuid)
            )
            return int(nvml.nvmlDeviceGetIndex(card))
        except nvml.NVMLError:
            return None

    def cuda_driver(self) -> tuple[int, int] | None:
        """Returns the newest version of CUDA that the driver supports; None if unknown."""
        if self.nvml is None:
            return None
        try:
            version = int(self.nvml.nvmlSystemGetCudaDriverVersion_v2())
        except self.nvml.NVMLError:
            return None
        return version // 1000, version % 1000 // 10

    def unknown(self) -> list[JsonObject]:
        """Returns rows of GPU_FIELDS for a moment without values from NVML."""
        return [dict.fromkeys(GPU_FIELDS) | {"index": index} for index in range(self.count)]

    def sample(self) -> list[JsonObject]:
        """Returns a row of GPU_FIELDS for each card, without the values of `sample_slow`."""
        nvml = self.nvml
        readers: dict[str, Callable[[Any], Any]] = {
            "utilization_percent": lambda card: float(nvml.nvmlDeviceGetUtilizationRates(card).gpu),
            "memory_used_bytes": lambda card: int(nvml.nvmlDeviceGetMemoryInfo(card).used),
            "power_w": lambda card: nvml.nvmlDeviceGetPowerUsage(card) / 1000,  # NVML: milliwatts
            # NVML: millijoules
            "energy_j": lambda card: nvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1000,
            "sm_clock_mhz": lambda card: float(
                nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM)
            ),
            "temperature_c": lambda card: float(
                nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU)
            ),
            "throttle_reasons": lambda card: int(
                nvml.nvmlDeviceGetCurrentClocksThrottleReasons(card)
            ),
            "memory_clock_mhz": lambda card: float(
                nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_MEM)
            ),
        }
        return [
            row | {name: self.value(row["index"], name, read) for name, read in readers.items()}
            for row in self.unknown()
        ]

    def sample_slow(self, pids: Collection[int]) -> list[JsonObject]:
        """Returns, for each card, the values that take NVML 20 ms each, and the memory that the
        processes `pids` use.
        """
        nvml = self.nvml
        if not sees_host_processes() and "processes" not in self.reported:
            self.reported.add("processes")
            self.report(
                "in this container NVML's process ids are the host's: server_memory_bytes is null"
            )

        def held(card: Any) -> int | None:
            if not sees_host_processes():
                return None
            theirs = [
                process.usedGpuMemory
                for process in nvml.nvmlDeviceGetComputeRunningProcesses(card)
                if process.pid in pids
            ]
            return sum(theirs) if theirs and None not in theirs else None

        readers: dict[str, Callable[[Any], Any]] = {
            # NVML: KB/s
            "pcie_rx_bytes_per_s": lambda card: (
                1000.0 * nvml.nvmlDeviceGetPcieThroughput(card, nvml.NVML_PCIE_UTIL_RX_BYTES)
            ),
            "pcie_tx_bytes_per_s": lambda card: (
                1000.0 * nvml.nvmlDeviceGetPcieThroughput(card, nvml.NVML_PCIE_UTIL_TX_BYTES)
            ),
            "server_memory_bytes": held,
        }
        return [
            {name: self.value(index, name, read) for name, read in readers.items()}
            for index in range(self.count)
        ]

    def value(self, index: int, name: str, read: Callable[[Any], Any]) -> Any:
        """Reads one value of one card. Returns None if the driver does not support it, or if NVML
        fails, which is reported once.
        """
        try:
            return read(self.nvml.nvmlDeviceGetHandleByIndex(index))
        except self.nvml.NVMLError_NotSupported:
            return None
        except (self.nvml.NVMLError, self.nvml.NVMLLibraryMismatchError) as error:
            # the latter is no NVMLError, and its text is for programmers
            known = isinstance(error, self.nvml.NVMLError)
            text = f"GPU {index}: {error if known else 'the driver is too old for it'}"
            if text not in self.reported:
                self.reported.add(text)
                self.report(f"{text} ({name}): null where this happens")
            return None


def sees_host_processes() -> bool:
    """Whether our process ids are the host's, as NVML's are. The host's namespace has a fixed
    number (PROC_PID_INIT_INO in Linux' include/linux/proc_ns.h).
    """
    return str(Path("/proc/self/ns/pid").readlink()) == "pid:[4026531836]"
