"""The texts of exporters, as columns of TELEMETRY_FIELDS: NVIDIA's DCGM exporter, AMD's device
metrics exporter, and Prometheus' node exporter.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from loadtests.schema import GPU_FIELDS, JsonObject
from loadtests.telemetry.server_metrics import MetricsUnavailable, Sample, parse_metrics

MIB = 2**20
MACHINE_FIELDS = (
    "cpu_busy_s",
    "cpu_steal_s",
    "load_average",
    "memory_available_bytes",
    "swap_used_bytes",
)


class Card(NamedTuple):
    """A GPU at one moment. `values` has columns of GPU_FIELDS, None where unknown."""

    gpu: str
    host: str
    uuid: str
    name: str
    memory_bytes: int | None
    values: JsonObject

    @property
    def identity(self) -> tuple[str, str, str]:
        return self.host, self.gpu, self.uuid


Row = tuple[str, dict[str, str], float]  # name, labels, value


class Dialect(NamedTuple):
    """The names of an exporter of GPUs. `columns`: for each the series and its factor, the best
    first; a `clock_type` stands behind its series. `total`: the series that make up the memory;
    without the first of them it is unknown. A label may have several names. `blank`: whether a
    value stands for "not known".
    """

    columns: Mapping[str, Sequence[tuple[str, float]]]
    total: Sequence[str]
    gpu: str
    host: str
    uuid: Sequence[str]
    name: Sequence[str]
    blank: Callable[[str, float], bool]

    @property
    def series(self) -> set[str]:
        named = [name for sources in self.columns.values() for name, _ in sources]
        return {name.partition(" ")[0] for name in (*named, *self.total)}


def is_blank_dcgm(series: str, value: float) -> bool:
    """DCGM's values for "not supported" and the like, which some versions of its exporter show.
    Source: DCGM_INT32_BLANK, DCGM_INT64_BLANK and DCGM_FP64_BLANK in dcgm_structs.h.
    """
    is_counter = series == "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
    return value >= 2**47 or (not is_counter and 0x7FFFFFF0 <= value <= 0x7FFFFFFF)


# Units: NVIDIA's "Field Identifiers" (MiB, W, mJ, MHz, C), and etc/default-counters.csv of its
# exporter. GR_ENGINE_ACTIVE is a ratio.
DCGM = Dialect(
    {
        "utilization_percent": (
            ("DCGM_FI_DEV_GPU_UTIL", 1),
            ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", 100),
        ),
        "memory_used_bytes": (("DCGM_FI_DEV_FB_USED", MIB),),
        "power_w": (("DCGM_FI_DEV_POWER_USAGE", 1), ("DCGM_FI_DEV_POWER_USAGE_INSTANT", 1)),
        "energy_j": (("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 1e-3),),
        "sm_clock_mhz": (("DCGM_FI_DEV_SM_CLOCK", 1),),
        "temperature_c": (("DCGM_FI_DEV_GPU_TEMP", 1),),
        "throttle_reasons": (
            ("DCGM_FI_DEV_CLOCKS_EVENT_REASONS", 1),
            ("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", 1),
        ),
        "memory_clock_mhz": (("DCGM_FI_DEV_MEM_CLOCK", 1),),
    },
    # older exporters have no FB_RESERVED, a few hundred MiB
    ("DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_RESERVED"),
    "gpu",
    "hostname",
    ("uuid",),
    ("modelname",),
    is_blank_dcgm,
)
# Units: docs/configuration/metricslist.md of AMD's exporter (%, W, uJ, MHz, C). Its MB are MiB: an
# MI300X with 192 GiB has a gpu_total_vram of 196,592.
AMD = Dialect(
    {
        "utilization_percent": (("gpu_gfx_activity", 1),),
        "memory_used_bytes": (("gpu_used_vram", MIB),),
        "power_w": (
            ("gpu_package_power", 1),
            ("gpu_average_package_power", 1),
            ("gpu_power_usage", 1),
        ),
        "energy_j": (("gpu_energy_consumed", 1e-6),),
        "sm_clock_mhz": (("gpu_clock system", 1),),
        "temperature_c": (("gpu_junction_temperature", 1), ("gpu_edge_temperature", 1)),
        "memory_clock_mhz": (("gpu_clock memory", 1),),
    },
    ("gpu_total_vram",),
    "gpu_id",
    "hostname",
    ("gpu_uuid", "serial_number"),
    ("card_series", "card_model"),
    lambda series, value: value >= 2**63,
)
WHOLE_NUMBERS = {name for name, kind in GPU_FIELDS.items() if kind.type == "int64"}
NODE_SERIES = {
    "node_cpu_seconds_total",
    "node_load1",
    "node_memory_MemAvailable_bytes",
    "node_memory_MemTotal_bytes",
    "node_memory_SwapTotal_bytes",
    "node_memory_SwapFree_bytes",
}


def select_samples(text: str, names: set[str]) -> list[Sample]:
    """Parses the series with these names only: an exporter has thousands of others. AMD's exporter
    may put "amd_" before its names. Raises MetricsUnavailable.
    """
    lines = [
        line
        for line in text.splitlines()
        if (found := re.match(r"(?:amd_)?([A-Za-z_]\w*)", line)) and found[1] in names
    ]
    if not lines:
        return []
    return [
        sample._replace(name=sample.name.removeprefix("amd_"))
        for sample in parse_metrics("\n".join(lines) + "\n")
    ]


def read_cards(text: str) -> list[Card]:
    """Reads the GPUs in the text of an exporter. Raises MetricsUnavailable if there are none."""
    for dialect in (DCGM, AMD):
        by_card: dict[tuple[str, str, str], list[Row]] = {}
        for name, given, value in select_samples(text, dialect.series):
            labels = {key.lower(): each for key, each in given.items()}
            if dialect.gpu not in labels or not value >= 0 or math.isinf(value):
                continue
            if dialect.blank(name, value):
                continue
            kind = labels.get("clock_type", "").lower().removeprefix("gpu_clock_type_")
            card = (labels[dialect.gpu], labels.get(dialect.host, ""), _first(labels, dialect.uuid))
            by_card.setdefault(card, []).append((f"{name} {kind}".strip(), labels, value))
        if by_card:
            return [_make_card(dialect, card, rows) for card, rows in by_card.items()]
    raise MetricsUnavailable("it has no series of a GPU that is known")


def _first(labels: Mapping[str, str], names: Sequence[str]) -> str:
    return next((labels[name] for name in names if labels.get(name)), "")


def _make_card(dialect: Dialect, card: tuple[str, str, str], rows: list[Row]) -> Card:
    """A card that several pods share has each series several times, with the same value. The first
    clock of a type is that of the first compute die.
    """
    found: dict[str, float] = {}
    for name, _, value in sorted(rows, key=lambda row: row[1].get("clock_index", "").zfill(6)):
        found.setdefault(name, value)
    values: JsonObject = dict.fromkeys(GPU_FIELDS)
    for column, sources in dialect.columns.items():
        known = next((found[name] * by for name, by in sources if name in found), None)
        values[column] = _whole(known) if column in WHOLE_NUMBERS else known
    labels = rows[0][1]
    parts = {each.get("gpu_i_id", "") for _, each, _ in rows} - {""}
    amd_type = labels.get("gpu_compute_partition_type", "").lower()
    # The series of MIG instances and of partitions are not of the whole card.
    if parts or amd_type not in ("", "none", "spx"):
        values["utilization_percent"] = None
    if parts:
        values["memory_used_bytes"] = None
    if labels.get("gpu_partition_id", "0") not in ("", "0"):
        values |= dict.fromkeys(
            ("power_w", "energy_j", "temperature_c", "sm_clock_mhz", "memory_clock_mhz")
        )
    if (values["utilization_percent"] or 0) > 100:
        values["utilization_percent"] = None
    total = None
    if dialect.total[0] in found and not parts:
        total = round(sum(found.get(name, 0) for name in dialect.total) * MIB)
    gpu, host, uuid = card
    return Card(gpu, host, uuid, _first(labels, dialect.name), total, values)


def read_host(text: str) -> tuple[JsonObject, JsonObject]:
    """Reads the text of a node exporter: (columns of MACHINE_FIELDS, {cores, memory_bytes}). Raises
    MetricsUnavailable.
    """
    samples = select_samples(text, NODE_SERIES)
    if not samples:
        raise MetricsUnavailable("it has no series of a node exporter")
    known = {name: value for name, labels, value in samples if not labels}
    cpu: dict[str, float] = {}
    for name, labels, value in samples:
        if name == "node_cpu_seconds_total":
            cpu[labels.get("mode", "")] = cpu.get(labels.get("mode", ""), 0.0) + value
    busy = sum(value for mode, value in cpu.items() if mode not in ("idle", "iowait", "steal"))
    swap = known.get("node_memory_SwapTotal_bytes"), known.get("node_memory_SwapFree_bytes")
    cores = {labels.get("cpu") for name, labels, _ in samples if name == "node_cpu_seconds_total"}
    columns = (
        round(busy, 3) if cpu else None,
        cpu.get("steal"),
        known.get("node_load1"),
        _whole(known.get("node_memory_MemAvailable_bytes")),
        None if None in swap else _whole(swap[0] - swap[1]),  # type: ignore[operator]
    )
    return dict(zip(MACHINE_FIELDS, columns, strict=True)), {
        "cores": len(cores) or None,
        "memory_bytes": _whole(known.get("node_memory_MemTotal_bytes")),
    }


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
