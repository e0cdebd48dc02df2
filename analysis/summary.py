"""A campaign in frames: one row a case with its metrics and its validity, and what figures and tables are made of.

In a notebook:

    campaign = load.campaign()
    summary = summarise(campaign)
    summary.table                               # case x metric
    summary.estimates("output_tokens_per_s")    # server x engine x scenario, over repetitions
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis import metrics, validity
from analysis.load import Campaign
from analysis.metrics import METRICS, Observed

TRAFFIC = ["scenario", "users", "rate"]  # cases that agree in these are compared
SYSTEM = ["server", "engine"]


@dataclass(frozen=True)
class Summary:
    """`table` has a row a case, by its index: the columns of Campaign.cases, `valid`, `why` (of no number) and one column
    a metric, in the metric's unit; `checks` a row a check; `latencies` and `timelines` a frame a case that ended ok."""

    campaign: Campaign
    slo: dict[str, float]
    table: pd.DataFrame
    checks: pd.DataFrame
    latencies: dict[int, pd.DataFrame]
    timelines: dict[int, pd.DataFrame]

    @property
    def valid(self) -> pd.DataFrame:
        return self.table[self.table["valid"]]

    def estimates(self, metric: str) -> pd.DataFrame:
        """Mean, half-width of the 95% interval and number of runs of one metric, by traffic and system, valid cases only."""
        groups = self.valid.groupby([*TRAFFIC, *SYSTEM], dropna=False, sort=False)[metric]
        rows = [(*key, *metrics.estimate(values)) for key, values in groups]
        return pd.DataFrame(rows, columns=[*TRAFFIC, *SYSTEM, "mean", "half", "runs"])


def summarise(campaign: Campaign, slo: dict[str, float] | None = None) -> Summary:
    """Reads, measures and checks every case, one at a time, so that the rows of only one are in memory."""
    rows, checks, latencies, timelines = [], [], {}, {}
    for case in campaign.cases.to_dict("records"):
        index = case["index"]
        o = metrics.observe(campaign, index, slo)
        found = validity.check(o) if case["state"] == "ok" else []
        bad = validity.reasons(found)
        why = "; ".join(f"{c.name}: {c.detail}" for c in bad) if case["state"] == "ok" else f"{case['state']}: {case['reason']}"
        rows.append(case | {"valid": case["state"] == "ok" and not bad, "why": why} | metrics.measure(o))
        checks += [{"index": index} | c._asdict() for c in found]
        if case["state"] == "ok":
            latencies[index] = latency_frame(o)
            timelines[index] = timeline(o)
    table = pd.DataFrame(rows, columns=[*campaign.cases.columns, "valid", "why", *METRICS]).set_index("index", drop=False)
    columns = ["index", *validity.Check._fields]
    return Summary(campaign, slo or metrics.DEFAULT_SLO, table.astype({"valid": bool}), pd.DataFrame(checks, columns=columns),
                   latencies, timelines)  # fmt: skip


def latency_frame(o: Observed) -> pd.DataFrame:
    """scheduled_s (from the window's start), ttft_s, tpot_s, e2e_s of the window's requests; a failure is +inf."""
    frame = o.scheduled[["scheduled_s", "ttft_s", "tpot_s", "e2e_s", "failed"]].copy()
    frame["scheduled_s"] -= o.window[0]
    frame.loc[frame["failed"], ["ttft_s", "e2e_s"]] = np.inf
    return frame.drop(columns="failed").reset_index(drop=True)


def timeline(o: Observed) -> pd.DataFrame:
    """time_s (from the window's start, bins of a second or of a hundredth of the load), tokens_per_s, server_cores,
    load_cores, gpu_percent (mean of all GPUs), from the first request to the last token."""
    times, numbers = o.tokens
    if not len(times) or not o.length > 0:
        return pd.DataFrame(columns=["time_s", "tokens_per_s", "server_cores", "load_cores", "gpu_percent"], dtype="float64")
    start, end = float(o.rows["scheduled_s"].min()), float(times.max())
    width = max(1.0, (end - start) / 100)
    edges = start + width * np.arange(max(1, int((end - start) / width)) + 1)  # whole bins only: a last half one would look like a dip
    middle = (edges[:-1] + edges[1:]) / 2
    frame = pd.DataFrame({"time_s": middle - o.window[0], "tokens_per_s": np.histogram(times, edges, weights=numbers)[0] / width})
    for name, column in (("server_cores", "server_cpu_s"), ("load_cores", "load_cpu_s")):
        known = o.telemetry[["time_s", column]].dropna()
        at = np.interp(edges, known["time_s"], known[column], np.nan, np.nan) if len(known) > 1 else np.full(len(edges), np.nan)
        frame[name] = np.diff(at) / width
    gpus = o.telemetry[o.gpu_columns("utilization_percent")].mean(axis="columns")  # nan without a GPU
    frame["gpu_percent"] = gpus.groupby(np.digitize(o.telemetry["time_s"], edges) - 1).mean().reindex(frame.index)
    return frame


def digits(x: float) -> str:
    """Three significant digits, thousands separated; a missing number is a dash and never 0."""
    if math.isnan(x):
        return "–"
    if math.isinf(x):
        return "∞"
    if x == 0 or abs(x) >= 100:
        return f"{x:,.0f}"
    return f"{x:.{max(0, 2 - math.floor(math.log10(abs(x))))}f}"


def parts(name: str, cases: pd.DataFrame) -> tuple[str, str]:
    """One metric over the repetitions of one system as text, in the unit of `Metric.shown`: the mean, and what belongs beside
    it: the interval's half-width, why there is no number, or, after ∞, the figure of the completed requests."""
    metric = METRICS[name]
    e = metrics.estimate(cases[name])
    if e.runs == 0:
        n = cases[metric.count].min() if metric.count else math.nan
        return "–", f"n too small (n={n:.0f})" if 0 < n < metric.needs else ""
    text = digits(e.mean * metric.scale)
    if math.isinf(e.mean):
        completed = f"{name.removesuffix('_s')}_completed_s"
        return text, f"({cell(completed, cases)} completed)"
    return text, "" if math.isnan(e.half) or e.half == 0 else f"±{digits(e.half * metric.scale)}"


def cell(name: str, cases: pd.DataFrame) -> str:
    """The same on one line."""
    number, beside = parts(name, cases)
    return beside if number == "–" and beside else f"{number} {beside}".strip()


def unit(name: str) -> str:
    return METRICS[name].shown or METRICS[name].unit


def comparisons(summary: Summary) -> list[dict[str, Any]]:
    """One entry for each traffic, in the order of the plan: `title`, `traffic`, `systems` (best throughput first, those
    without a number last; each with server, engine, rank, cases, valid cases, why, throughput Estimate), `engines`."""
    found = []
    for key, cases in summary.table.groupby(TRAFFIC, dropna=False, sort=False):
        systems = []
        for (server, engine), own in cases.groupby(SYSTEM, sort=False):
            valid = own[own["valid"]]
            why = "; ".join(dict.fromkeys(own.loc[~own["valid"], "why"]))
            systems.append({"server": server, "engine": engine, "cases": own, "valid": valid, "why": why,
                            "throughput": metrics.estimate(valid["output_tokens_per_s"])})  # fmt: skip
        systems.sort(key=lambda s: (s["throughput"].runs == 0, -np.nan_to_num(s["throughput"].mean)))
        for system in systems:
            own = system["throughput"]
            system["rank"] = 1 + sum(o["throughput"].interval[0] > own.interval[1] for o in systems) if own.runs else None
        found.append({"title": title(*key), "traffic": key, "systems": systems, "engines": sorted(set(cases["engine"]))})
    return found


def title(scenario: str, users: float, rate: float) -> str:
    """
    >>> title("chat", 8.0, float("nan"))
    'chat, 8 users'
    """
    if not math.isnan(users):
        return f"{scenario}, {users:.0f} user" + ("" if users == 1 else "s")
    return scenario if math.isnan(rate) else f"{scenario}, {rate:g} requests/s"


def answer(comparison: dict[str, Any]) -> str:
    """One or two sentences: who carried the most valid output throughput under this traffic, and by how much."""
    ranked = [s for s in comparison["systems"] if s["rank"]]
    if not ranked:
        return f"Under {comparison['title']} no server has a valid number yet."
    names = [f"{s['server']} ({s['engine']})" for s in ranked]
    best = ranked[0]
    runs = "one run" if best["throughput"].runs == 1 else f"{best['throughput'].runs} runs"
    text = (f"Under {comparison['title']}, {names[0]} carried the most valid output throughput: "
            f"{cell('output_tokens_per_s', best['valid'])} tokens/s ({runs})")  # fmt: skip
    if len(ranked) == 1:
        return f"{text}; no other server has a valid number."
    tied = [n for n, s in zip(names[1:], ranked[1:], strict=True) if s["rank"] == 1]
    point, low, high = metrics.ratio(best["valid"]["output_tokens_per_s"], ranked[1]["valid"]["output_tokens_per_s"])
    by = f"{point:.2f} times that of {names[1]}" + ("" if math.isnan(low) else f" (95% interval {low:.2f} to {high:.2f})")
    if tied:
        return f"{text}. It is a tie with {', '.join(tied)}: the intervals overlap; it had {by}."
    few = min(s["throughput"].runs for s in ranked[:2]) == 1
    return f"{text}, {by}." + (" One run has no interval: repeat it before relying on a small difference." if few else "")
