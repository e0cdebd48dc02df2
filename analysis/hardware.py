"""What a machine costs and what it could do at most: given with the command, or from two small
tables with sources and dates.
"""

import math
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from analysis.dataset import InputError, Json

HERE = Path(__file__).parent


class Price(NamedTuple):
    """`usd_per_hour` of the whole machine. Of a list price also its name in prices.toml, what it is
    for, who says so and since when; `gpus`: NVML's names of the GPUs in it.
    """

    usd_per_hour: float
    name: str = ""
    what: str = ""
    source: str = ""
    date: str = ""
    gpus: tuple[str, ...] = ()


class Peaks(NamedTuple):
    """Bytes/s from memory and operations/s of the whole machine, nan where unknown; `source` of
    each in words.
    """

    bytes_per_s: float = math.nan
    flops: float = math.nan
    bandwidth_source: str = ""
    flops_source: str = ""


class MachineCost(NamedTuple):
    """What was given with the command. Peaks are of the whole machine; without them they are those
    of peaks.toml, by the GPUs' names.
    """

    price: Price | None = None
    bytes_per_s: float | None = None
    flops: float | None = None


NO_COST = MachineCost()


def read_machine_cost(
    price_text: str | None = None, gb_per_s: str | None = None, tflops: str | None = None
) -> MachineCost:
    """From the command's options. Raises InputError."""
    return MachineCost(
        parse_price(price_text) if price_text is not None else None,
        1e9 * parse_positive("--peak-bandwidth", gb_per_s) if gb_per_s is not None else None,
        1e12 * parse_positive("--peak-flops", tflops) if tflops is not None else None,
    )


def parse_price(text: str) -> Price:
    """Dollars an hour, or a name of prices.toml. Raises InputError.

    >>> price("2.50").usd_per_hour
    2.5
    """
    try:
        return Price(parse_positive("--price", text))
    except InputError:
        known = read_prices()
        if text not in known:
            raise InputError(
                f"--price {text!r}: give dollars an hour, such as 2.50, or one of"
                f" {', '.join(known)}"
            ) from None
        return known[text]


def parse_positive(option: str, text: str) -> float:
    """A finite number above 0. Raises InputError."""
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
    """NVML's names of the machine's GPUs, from campaign.json; '?' for one that did not say."""
    return tuple(
        str(gpu.get("name") or "?") for gpu in (data.get("manifest") or {}).get("gpus") or []
    )


def find_peaks(data: Json, said: MachineCost) -> Peaks:
    """Of all GPUs of the machine together, used or not: one that is unknown, or no GPU, and only
    what was given is known.
    """
    names, known = gpu_names(data), read_peaks()
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
            f"{total / scale:,.4g} {what}, stated for {describe_gpus(names)} ({'; '.join(pages)})",
        )

    bandwidth, by = peak(said.bytes_per_s, "bytes_per_s", "GB/s", 1e9)
    flops, of = peak(said.flops, "flops", "TFLOP/s", 1e12)
    return Peaks(bandwidth, flops, by, of)


def describe_gpus(names: tuple[str, ...]) -> str:
    """
    >>> count(("NVIDIA L4", "NVIDIA L4"))
    '2 × NVIDIA L4'
    """
    return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names)) or "no GPU"


def _bare(url: str) -> str:
    """A report opens without a network, and so links nowhere: an address to type."""
    return url.removeprefix("https://").removeprefix("www.")
