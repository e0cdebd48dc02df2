"""Formats numbers, units and titles, the same way in pages, figures and terminals."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis import stats
from analysis.metrics import METRICS


def format_number(x: float, significant: int = 3) -> str:
    """Three significant digits with separated thousands; a missing number is a dash, never 0.

    >>> [format_number(x) for x in (1234.5, 12.345, 0.5, float("nan"))]
    ['1,234', '12.3', '0.500', '–']
    """
    if math.isnan(x):
        return "–"
    if math.isinf(x):
        return "∞"
    # 9.996 becomes 10.0, not 10.00
    x = float(f"{x:.{significant - 1}e}") if abs(x) < 10**significant else x
    exponent = math.floor(math.log10(abs(x))) if x else significant
    return f"{x:,.{max(0, significant - 1 - exponent)}f}"


def split_estimate(name: str, cases: pd.DataFrame) -> tuple[str, str]:
    """One metric over the repetitions of one system as text, in `Metric.display_unit`: the mean and
    a remark. The remark is the interval's half-width, the reason for a missing number, or, after ∞,
    the value over the completed requests.
    """
    metric = METRICS[name]
    e = stats.estimate_mean(cases[name])
    if e.runs == 0:
        n = cases[metric.sample].min() if metric.sample else math.nan
        return "–", f"n too small (n={n:.0f})" if 0 < n < metric.needs else ""
    text = format_number(e.mean * metric.scale)
    completed = f"{name.removesuffix('_s')}_completed_s"
    if math.isinf(e.mean):
        return (
            text,
            f"({format_estimate(completed, cases)} completed)" if completed in METRICS else "",
        )
    return text, "" if math.isnan(
        e.half
    ) or e.half == 0 else f"±{format_number(e.half * metric.scale, 2)}"


def format_estimate(name: str, cases: pd.DataFrame) -> str:
    """`split_estimate` on one line."""
    number, beside = split_estimate(name, cases)
    return beside if number == "–" and beside else f"{number} {beside}".strip()


def format_cell(name: str, cases: pd.DataFrame) -> str:
    """`split_estimate` in a terminal's width: without the interval, and with "n=120" for a sample
    that is too small.
    """
    number, beside = split_estimate(name, cases)
    small = re.search(r"n=\d+", beside)
    return small[0] if small else number


def tabulate_metrics(
    cases: pd.DataFrame, names: Sequence[str], per_run: bool = False
) -> pd.DataFrame | None:
    """Metrics of cases (rows of Summary.valid) as text with units in the headings: one row per
    server and load, with mean and interval over its runs, or `per_run` one row per case. A metric
    that no case has gets no column; None if no metric is left.
    """
    headings = {n: ", ".join(filter(None, (METRICS[n].label, unit_of(n)))) for n in names}
    rows: dict[tuple[Any, ...], dict[str, str]] = {}
    for _, own in cases.groupby(
        ["scenario", "users", "rate", "server", "engine"], dropna=False, sort=False
    ):
        first = own.iloc[0]
        title = workload_title(first["scenario"], first["users"], first["rate"])
        for run, shown in own.groupby("repetition") if per_run else [(len(own), own)]:
            rows[title, f"{first['server']} ({first['engine']})", run] = {
                headings[n]: format_estimate(n, shown) for n in names
            }
    table = pd.DataFrame.from_dict(rows, orient="index")
    known = table.columns[[bool((table[name] != "–").any()) for name in table.columns]]
    if known.empty:
        return None
    index = ["scenario", "server", "run" if per_run else "runs"]
    return table[known].set_axis(pd.MultiIndex.from_tuples(rows, names=index))


def unit_of(name: str) -> str:
    return METRICS[name].display_unit or METRICS[name].unit


def shorten(text: str, most: int = 200) -> str:
    """The first line of a text, cut to `most` characters, without the words that introduce the
    lines after it.

    >>> shorten("the server ended by itself; its last log lines:\\n...")
    'the server ended by itself'
    >>> shorten("the server ended by itself", 15)
    'the server end…'
    """
    line, *more = text.strip().split("\n")
    if more and line.endswith(":"):
        line = line.rpartition("; ")[0] or line
    line = line.rstrip(" :;")
    return line if len(line) <= most else f"{line[: most - 1]}…"


def workload_title(scenario: str, users: float, rate: float) -> str:
    """
    >>> workload_title("chat", 8.0, float("nan")), workload_title("steady", float("nan"), 1.0)
    ('chat, 8 users', 'steady, 1 request/s')
    """
    if not math.isnan(users):
        return f"{scenario}, {users:.0f} user" + ("" if users == 1 else "s")
    if math.isnan(rate):
        return scenario
    return f"{scenario}, {rate:g} request" + ("/s" if rate == 1 else "s/s")


def flatten_settings(value: Any, path: str = "") -> list[tuple[str, str]]:
    """(dotted key, text) of each value in nested tables, so that any shape fits any page width."""
    if isinstance(value, dict) and value:
        return [
            pair
            for key, inner in value.items()
            for pair in flatten_settings(inner, f"{path}.{key}" if path else str(key))
        ]
    if isinstance(value, list) and any(isinstance(v, dict) for v in value):
        return [
            pair
            for i, inner in enumerate(value)
            for pair in flatten_settings(inner, f"{path}[{i}]")
        ]
    return [(path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
