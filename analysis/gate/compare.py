"""Compares two campaigns case by case, for `python -m analysis compare A B`, and judges whether a
difference is more than chance.

Cases are matched by server (with its options), engine, scenario and load. The unit is the run, with
a freshly started server: ratios of geometric means with Welch's 95% interval on logarithms. Two
campaigns ran at different times, so a change of the machine between them is part of the ratio.
"""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis import formatting, stats
from analysis.dataset import InputError, Json
from analysis.formatting import format_number, shorten
from analysis.metrics import METRICS
from analysis.stats import NAN
from analysis.summary import SYSTEM, TRAFFIC, Summary

# The compared metrics, and the largest difference that still counts as equal.
TOLERANCE = {
    "output_tokens_per_s": 0.05,
    "ttft_p50_s": 0.05,
    "ttft_p99_s": 0.15,
    "tpot_p50_s": 0.05,
    "e2e_p50_s": 0.05,
    "e2e_p99_s": 0.15,
}
# The keys that define the machine. The kernel, the packages and our commit may be the very things
# that are compared, so their differences are only listed.
MACHINE = (
    "manifest.cpu",
    "manifest.memory",
    "manifest.gpus",
    "manifest.limits",
    "machine_share",
    "engine_device",
)
# The keys that define the servers' work and model.
WORK = ("model", "seed", "simulated")
# compared in GiB, since a kernel reserves a little more or less of it
IGNORED = ("manifest.memory.total_bytes", "manifest.memory.swap_bytes")


class Change(NamedTuple):
    """One metric of one matched case. `a` and `b` are means over its runs, in the metric's unit;
    `ratio` is b / a, with the interval [low, high].
    """

    metric: str
    a: float
    b: float
    ratio: float
    low: float
    high: float
    verdict: str


class Match(NamedTuple):
    """One case of both campaigns. `runs`: the valid runs (of A, of B). If either has none, there
    are no `changes`, and `why` has the reason.
    """

    name: str
    runs: tuple[int, int]
    changes: list[Change]
    why: str


class Difference(NamedTuple):
    """A key of campaign.json that differs, with both values as text. `unlike`: it means a different
    machine or different work.
    """

    key: str
    a: str
    b: str
    unlike: bool


def list_differences(a: Summary, b: Summary) -> list[Difference]:
    """Lists the differences, machine and work first. Only common scenarios are compared."""
    common = _scenarios(a).keys() & _scenarios(b).keys()
    left, right = (_keys(s, sorted(common)) for s in (a, b))
    found = [
        Difference(
            key,
            left.get(key, "–"),
            right.get(key, "–"),
            key.startswith((*MACHINE, *WORK, "scenarios")),
        )
        for key in {**left, **right}
        if left.get(key) != right.get(key)
        and not _is_unknown(key, left)
        and not _is_unknown(key, right)
    ]
    return sorted(found, key=lambda d: not d.unlike)


def refuse_unlike(found: list[Difference]) -> None:
    """Raises InputError if the machine or the work differ."""
    unlike = [f"{d.key} ({_short(d.a)}, {_short(d.b)})" for d in found if d.unlike]
    if unlike:
        more = f" and {len(unlike) - 5} more" if len(unlike) > 5 else ""
        raise InputError(
            f"the campaigns are not comparable, since they differ in {', '.join(unlike[:5])}{more}:"
            " --anyway compares them nevertheless"
        )


def match_cases(a: Summary, b: Summary) -> tuple[list[Match], list[str], list[str]]:
    """(matched, only in A, only in B), in the order of A's plan."""
    found, only_a, only_b = pair_cases(a, b)
    return [_match(*pair) for pair in found], only_a, only_b


def list_missing(a: Summary, b: Summary) -> list[tuple[str, str]]:
    """(case, reason) of the matched cases that cannot be compared because a campaign has no valid
    run of them. Cases that were skipped in both are not listed.
    """
    pairs, _, _ = pair_cases(a, b)
    if not pairs:
        return [("both campaigns", "they have no case in common")]
    return [
        (name, shorten(_match(name, *sides).why))
        for name, *sides in pairs
        if not all(side["valid"].any() for side in sides)
        and not all(side["state"].eq("skipped").all() for side in sides)
    ]


def pair_cases(
    a: Summary, b: Summary
) -> tuple[list[tuple[str, pd.DataFrame, pd.DataFrame]], list[str], list[str]]:
    """([(case, rows of A, rows of B)], only in A, only in B), in the order of A's plan."""
    left, right = (
        dict(list(s.table.groupby([*SYSTEM, *TRAFFIC], dropna=False, sort=False))) for s in (a, b)
    )
    # None instead of nan, which does not equal itself
    left, right = (
        {tuple(None if v != v else v for v in key): cases for key, cases in side.items()}
        for side in (left, right)
    )
    found = [(_name(cases), cases, right[key]) for key, cases in left.items() if key in right]
    only = (
        [_name(cases) for key, cases in side.items() if key not in other]
        for side, other in ((left, right), (right, left))
    )
    return found, next(only), next(only)


def measure_change(metric: str, a: Any, b: Any) -> Change:
    """Compares the values of one metric in the valid runs of both."""
    a, b = (np.asarray(side, dtype="float64") for side in (a, b))
    means = stats.estimate_mean(a).mean, stats.estimate_mean(b).mean
    if np.isnan(a).any() or np.isnan(b).any() or not len(a) or not len(b):
        return Change(metric, *means, NAN, NAN, NAN, "invalid: too few requests in some run")
    if np.isinf(a).any() or np.isinf(b).any():
        return Change(metric, *means, NAN, NAN, NAN, "failed requests: no ratio")
    ratio, low, high = stats.mean_ratio(b, a)
    return Change(metric, *means, ratio, low, high, judge_change(metric, a, b, ratio, low, high))


def judge_change(
    metric: str, a: np.ndarray, b: np.ndarray, ratio: float, low: float, high: float
) -> str:
    """The verdict on B against A: equal within the tolerance, else faster or slower, else
    inconclusive.
    """
    if math.isnan(ratio):
        return "no ratio: a zero"
    if math.isnan(low):
        return "one run: no verdict"
    bound = 1 + TOLERANCE[metric]
    if 1 / bound <= low and high <= bound:
        return f"no difference within {TOLERANCE[metric]:.0%}"
    if low > 1 or high < 1:
        return "faster" if (ratio > 1) == (METRICS[metric].better == "higher") else "slower"
    smallest = math.expm1(stats.welch_test(np.log(b), np.log(a)).detectable)
    return (
        "inconclusive: could only detect"
        f" {'a tenfold change' if smallest > 9 else f'{smallest:.0%}'}"
    )


def show_comparison(a: Summary, b: Summary, console: Console) -> None:
    """Prints the comparison. Texts from the campaigns are printed as they are, not as markup."""
    found, only_a, only_b = match_cases(a, b)
    for name, side in (("A", a), ("B", b)):
        console.print(
            Text(f"{name}: {side.campaign.folder}, {side.campaign.data.get('created_utc')}")
        )
    for d in list_differences(a, b):
        console.print(
            Text(f"  {'UNLIKE: ' if d.unlike else ''}{d.key}: {_short(d.a)} -> {_short(d.b)}")
        )
    for match in found:
        summary = (
            f"{match.runs[0]} and {match.runs[1]} runs"
            if match.changes
            else f"invalid: {match.why}"
        )
        console.print(Text(f"\n{match.name}: {summary}"))
        if match.changes:
            table = Table(box=None, header_style="bold", pad_edge=False)
            for heading in ("metric", "A", "B", "B / A", "95% interval", "B is"):
                table.add_column(
                    heading, justify="left" if heading in ("metric", "B is") else "right"
                )
            for c in match.changes:
                scale = METRICS[c.metric].scale
                interval = "–" if math.isnan(c.low) else f"{c.low:.3f} to {c.high:.3f}"
                table.add_row(
                    f"{METRICS[c.metric].label}, {formatting.unit_of(c.metric)}",
                    format_number(c.a * scale),
                    format_number(c.b * scale),
                    "–" if math.isnan(c.ratio) else f"{c.ratio:.3f}",
                    interval,
                    c.verdict,
                )
            console.print(table)
    for name, cases in (("A", only_a), ("B", only_b)):
        if cases:
            console.print(Text(f"\nOnly in {name}: {'; '.join(cases)}"))
    console.print(
        Text(
            f"\n{sum(len(m.changes) for m in found)} comparisons at 95% each: without any true"
            " difference, one in twenty differs by chance. “Could only detect” names the smallest"
            f" difference that is found with a probability of {stats.POWER:.0%}."
        )
    )


def _match(name: str, a: pd.DataFrame, b: pd.DataFrame) -> Match:
    left, right = a[a["valid"]], b[b["valid"]]
    if len(left) and len(right):
        return Match(
            name,
            (len(left), len(right)),
            [measure_change(metric, left[metric], right[metric]) for metric in TOLERANCE],
            "",
        )
    why = [
        f"in {side}: {'; '.join(dict.fromkeys(cases['why']))}"
        for side, cases, ok in (("A", a, left), ("B", b, right))
        if not len(ok)
    ]
    return Match(name, (len(left), len(right)), [], ", ".join(why))


def _name(cases: pd.DataFrame) -> str:
    first = cases.iloc[0]
    return (
        f"{first['server']} ({first['engine']}),"
        f" {formatting.workload_title(first['scenario'], first['users'], first['rate'])}"
    )


def _scenarios(s: Summary) -> Json:
    tables = s.campaign.data.get("scenarios")
    return tables if isinstance(tables, dict) else {}


def _keys(s: Summary, scenarios: list[str]) -> dict[str, str]:
    """Dotted key -> text of every setting that may make a difference."""
    data = s.campaign.data
    shown = {key: data.get(key) for key in ("manifest", "machine_share", *WORK)}
    shown["window_s"] = sorted(set(s.table["duration_s"].dropna()))
    shown["scenarios"] = {  # a scenario's description does not change what is sent
        name: {k: v for k, v in data["scenarios"][name].items() if k != "summary"}
        for name in scenarios
    }
    if device := data.get("engine_device"):
        shown["engine_device"] = {key: device.get(key) for key in ("type", "dtype")}
    found = dict(formatting.flatten_settings(shown))
    memory = (data.get("manifest") or {}).get("memory")
    if isinstance(memory, dict):
        found = {key: text for key, text in found.items() if key not in IGNORED}
        found |= {
            f"manifest.memory.{key.removesuffix('_bytes')}_gib": f"{(value or 0) / 2**30:.0f}"
            for key, value in memory.items()
        }
    return found


def _is_unknown(key: str, keys: Collection[str]) -> bool:
    """Whether the key is missing in these because their campaign is older than the key."""
    card = key.rpartition(".")[0]
    has_card = card.startswith("manifest.gpus[") and any(k.startswith(f"{card}.") for k in keys)
    device = key.partition(".")[0] == "engine_device"
    return key not in keys and (has_card or device or key == "manifest.torch_cuda")


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
