"""A machine's price and peak performance, from the command line or from two small tables with
sources and dates.
"""

import math
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from analysis.dataset import InputError, Json

HERE = Path(__file__).parent


class Price(NamedTuple):
    """`usd_per_hour` is for the whole machine. A list price also has its name in prices.toml, its
    machine, its source and its date. `gpus`: NVML's names of the machine's GPUs.
    """

    usd_per_hour: float
    name: str = ""
    what: str = ""
    source: str = ""
    date: str = ""
    gpus: tuple[str, ...] = ()


class Peaks(NamedTuple):
    """Memory bandwidth in bytes/s and operations/s of what a server computes on, nan where unknown,
    and the source of each in words.
    """

    bytes_per_s: float = math.nan
    flops: float = math.nan
    bandwidth_source: str = ""
    flops_source: str = ""


class MachineCost(NamedTuple):
    """The command's options. Peaks are of what a server computes on: all GPUs that it uses, or the
    CPU. Without them, peaks.toml gives them by the GPUs' names.
    """

    price: Price | None = None
    bytes_per_s: float | None = None
    flops: float | None = None


NO_COST = MachineCost()


def read_machine_cost(
    price_text: str | None = None, gb_per_s: str | None = None, tflops: str | None = None
) -> MachineCost:
    """Parses the command's options. Raises InputError."""
    return MachineCost(
        parse_price(price_text) if price_text is not None else None,
        1e9 * parse_positive("--peak-bandwidth", gb_per_s) if gb_per_s is not None else None,
        1e12 * parse_positive("--peak-flops", tflops) if tflops is not None else None,
    )


def parse_price(text: str) -> Price:
    """Parses dollars per hour, or a name in prices.toml. Raises InputError.

    >>> parse_price("2.50").usd_per_hour
    2.5
    """
    try:
        return Price(parse_positive("--price", text))
    except InputError:
        known = read_prices()
        if text not in known:
            raise InputError(
                f"--price {text!r}: give dollars per hour, such as 2.50, or one of"
                f" {', '.join(known)}"
            ) from None
        return known[text]


def parse_positive(option: str, text: str) -> float:
    """Parses a finite number above 0. Raises InputError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{option} {text!r}: give a number above 0")
    return value


@cache
def read_prices() -> dict[str, Price]:
    table = tomllib.loads((HERE / "prices.toml").read_text())
    found = {}
    for name, row in table["prices"].items():
        source = table["sources"][row["source"]]
        found[name] = Price(
            row["usd_per_hour"],
            name,
            row["what"],
            f"{source['name']}, {_bare(source['url'])}",
            str(source["date"]),
            (row["gpu"],) * row["gpus"] if row["gpus"] else (),
        )
    return found


@cache
def read_peaks() -> dict[str, Json]:
    return tomllib.loads((HERE / "peaks.toml").read_text())


def gpu_names(data: Json) -> tuple[str, ...]:
    """NVML's names of the machine's GPUs, from campaign.json; '?' for a GPU without a name."""
    return tuple(
        str(gpu.get("name") or "?") for gpu in (data.get("manifest") or {}).get("gpus") or []
    )


def used_gpu_names(data: Json, run: Json) -> tuple[str, ...]:
    """The names of the GPUs that the server of a case uses, by its run.json, as NVML or an exporter
    gives them; of all GPUs in older campaigns, which did not record them.
    """
    machine = run.get("server_machine") or {}
    if machine.get("gpu_exporters"):
        return tuple(str(gpu.get("name") or "?") for gpu in machine["gpus"])
    names, used = gpu_names(data), run.get("gpus")
    if used is None:
        # of several GPUs, an unknown choice has no peak
        return names if "gpus" not in run or len(names) < 2 else ()
    return tuple(names[index] for index in used if index < len(names))


def is_elsewhere(run: Json) -> bool:
    """Whether the server of a case ran on another machine than that of the manifest."""
    return (run.get("server_machine") or {}).get("here") is False


def find_peaks(names: tuple[str, ...], given: MachineCost) -> Peaks:
    """The peaks of these GPUs together. Without a GPU, or with one that is not in peaks.toml, only
    the given peaks are known.
    """
    known = read_peaks()
    rows = [known[name] for name in names] if set(names) <= known.keys() else []

    def peak(option: float | None, key: str, what: str, scale: float) -> tuple[float, str]:
        if option:
            return option, f"{option / scale:,.4g} {what}, given with the command"
        if not rows:
            return math.nan, ""
        pages = dict.fromkeys(f"{_bare(row['source'])}, {row['date']}" for row in rows)
        total = sum(float(row[key]) for row in rows)
        return (
            total,
            f"{total / scale:,.4g} {what}, stated for {describe_gpus(names)}"
            f"{_precision(rows) * (key == 'flops')} ({'; '.join(pages)})",
        )

    bandwidth, by = peak(given.bytes_per_s, "bytes_per_s", "GB/s", 1e9)
    flops, of = peak(given.flops, "flops", "TFLOP/s", 1e12)
    return Peaks(bandwidth, flops, by, of)


def _precision(rows: list[Json]) -> str:
    """For which numbers the operations are stated, if not for bfloat16."""
    others = dict.fromkeys(row["flops_in"] for row in rows if "flops_in" in row)
    return f" in {', '.join(others)}" if others else ""


def describe_gpus(names: tuple[str, ...]) -> str:
    """
    >>> describe_gpus(("NVIDIA L4", "NVIDIA L4"))
    '2 × NVIDIA L4'
    """
    return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names)) or "no GPU"


def _bare(url: str) -> str:
    """The address as text: a report must open without a network, so it has no links."""
    return url.removeprefix("https://").removeprefix("www.")
