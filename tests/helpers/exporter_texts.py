"""Texts of exporters, as each writes them, and servers with these texts."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.helpers.metrics_server import Handler, Server, exposing, says

DCGM_LABELS = (
    'gpu="{gpu}",UUID="GPU-{uuid}",pci_bus_id="00000000:3B:00.0",device="nvidia{gpu}",'
    'modelName="NVIDIA H100 80GB HBM3",Hostname="node-1",DCGM_FI_DRIVER_VERSION="580.65.06"'
)
# (series, type, help, value of each card): the exporter's default counters
DCGM_SERIES = (
    ("DCGM_FI_DEV_SM_CLOCK", "gauge", "SM clock frequency (in MHz).", ("1980", "1410")),
    ("DCGM_FI_DEV_MEM_CLOCK", "gauge", "Memory clock frequency (in MHz).", ("2619", "2619")),
    ("DCGM_FI_DEV_MEMORY_TEMP", "gauge", "Memory temperature (in C).", ("55", "54")),
    ("DCGM_FI_DEV_GPU_TEMP", "gauge", "GPU temperature (in C).", ("61", "38")),
    ("DCGM_FI_DEV_POWER_USAGE", "gauge", "Power draw (in W).", ("500.500000", "120.000000")),
    (
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        "counter",
        "Total energy consumption since boot (in mJ).",
        ("{energy0}", "{energy1}"),
    ),
    ("DCGM_FI_DEV_CLOCKS_EVENT_REASONS", "gauge", "Clock event reasons.", ("4", "1")),
    ("DCGM_FI_DEV_GPU_UTIL", "gauge", "GPU utilization (in %).", ("87", "0")),
    ("DCGM_FI_DEV_XID_ERRORS", "gauge", "Value of the last XID error.", ("0", "0")),
    ("DCGM_FI_DEV_FB_FREE", "gauge", "Framebuffer memory free (in MiB).", ("10559", "80550")),
    ("DCGM_FI_DEV_FB_USED", "gauge", "Framebuffer memory used (in MiB).", ("70000", "9")),
    ("DCGM_FI_DEV_FB_RESERVED", "gauge", "Memory reserved (in MiB).", ("1000", "1000")),
)
AMD_LABELS = (
    'card_model="102-G30211-0C",card_series="AMD Instinct MI300X OAM",card_vendor="AMD",'
    'driver_version="6.12.12",gpu_compute_partition_type="spx",gpu_id="3",'
    'gpu_memory_partition_type="nps1",gpu_partition_id="0",'
    'gpu_uuid="ccff74a1-0000-1000-80e0-c6d49f5b0d86",hostname="tw038",serial_number="692409005408"'
)
AMD = f"""# HELP gpu_energy_consumed Accumulated energy consumed by the GPU in uJ
# TYPE gpu_energy_consumed gauge
gpu_energy_consumed{{{AMD_LABELS}}} 1.5e+13
# TYPE gpu_gfx_activity gauge
gpu_gfx_activity{{{AMD_LABELS}}} 93
gpu_package_power{{{AMD_LABELS}}} 748
gpu_power_usage{{{AMD_LABELS}}} 740
gpu_used_vram{{{AMD_LABELS}}} 183265
gpu_total_vram{{{AMD_LABELS}}} 196592
gpu_junction_temperature{{{AMD_LABELS}}} 76
gpu_clock{{{AMD_LABELS},clock_index="2",clock_type="GPU_CLOCK_TYPE_SYSTEM"}} 132
gpu_clock{{{AMD_LABELS},clock_index="10",clock_type="GPU_CLOCK_TYPE_SYSTEM"}} 140
gpu_clock{{{AMD_LABELS},clock_index="8",clock_type="GPU_CLOCK_TYPE_MEMORY"}} 900
gpu_clock{{{AMD_LABELS},clock_index="0",clock_type="GPU_CLOCK_TYPE_VIDEO"}} 29
gpu_ecc_correct_total{{{AMD_LABELS}}} 0
"""
NODE = """# HELP node_cpu_seconds_total Seconds the CPUs spent in each mode.
# TYPE node_cpu_seconds_total counter
node_cpu_seconds_total{{cpu="0",mode="idle"}} 10000.5
node_cpu_seconds_total{{cpu="0",mode="iowait"}} 50
node_cpu_seconds_total{{cpu="0",mode="irq"}} 1
node_cpu_seconds_total{{cpu="0",mode="nice"}} 2
node_cpu_seconds_total{{cpu="0",mode="softirq"}} 3
node_cpu_seconds_total{{cpu="0",mode="steal"}} 7.5
node_cpu_seconds_total{{cpu="0",mode="system"}} 100
node_cpu_seconds_total{{cpu="0",mode="user"}} {user}
node_cpu_seconds_total{{cpu="1",mode="idle"}} 20000
node_cpu_seconds_total{{cpu="1",mode="steal"}} 0.5
node_cpu_seconds_total{{cpu="1",mode="user"}} 600
node_cpu_guest_seconds_total{{cpu="0",mode="user"}} 40
# TYPE node_load1 gauge
node_load1 3.25
node_load5 2
node_memory_MemAvailable_bytes 3.2e+10
node_memory_MemTotal_bytes 6.4e+10
node_memory_SwapFree_bytes 1e+09
node_memory_SwapTotal_bytes 3e+09
"""


def dcgm_text(seconds: float = 0.0, gpus: tuple[int, ...] = (0, 1)) -> str:
    """Two cards, of which the first computes; their counters after `seconds`."""
    energy = {
        "energy0": str(15152422938 + round(500_500 * seconds)),
        "energy1": str(9000000000 + round(120_000 * seconds)),
    }
    lines = []
    for name, kind, meaning, values in DCGM_SERIES:
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
        lines += [
            f"{name}{{{DCGM_LABELS.format(gpu=gpu, uuid='ab'[gpu] * 8)}}} "
            + values[gpu].format(**energy)
            for gpu in gpus
        ]
    return "\n".join(lines) + "\n"


def node_text(seconds: float = 0.0) -> str:
    """Two cores of which 1.5 are busy."""
    return NODE.format(user=400 + 1.5 * seconds)


@contextmanager
def exporting(text: Callable[[float], str]) -> Iterator[Server]:
    """An exporter whose text is made from the seconds since its start."""
    start_s = time.perf_counter()

    def answer(handler: Handler) -> None:
        says(text(time.perf_counter() - start_s))(handler)

    with exposing() as server:
        server.answers = [answer]
        yield server
