"""Summarises a campaign in frames: one row per case with its metrics and its validity, and the data
of figures and tables.

In a notebook:

    summary = summarise(read_campaign())
    summary.table                               # case x metric
    summary.estimates("output_tokens_per_s")    # server x engine x scenario, over repetitions
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from analysis import checks, defaults, metrics, stats
from analysis.case import CaseData, read_case
from analysis.checks import verdict
from analysis.dataset import Campaign, InputError
from analysis.formatting import shorten, workload_title
from analysis.hardware import NO_COST, MachineCost
from analysis.metrics import METRICS
from analysis.slo import parse_slo, request_bounds

TRAFFIC = ["scenario", "users", "rate"]  # cases that agree in these are compared
SYSTEM = ["server", "engine"]
# Stands in for the interval that one run does not have. In four runs of the default campaign on 2
# cores, each server's throughput (closed loop) and E2E P95 (open loop) lay within 8% of the mean.
ONE_RUN = 0.08
# over time: as the client sees them, and as the server reports them
REQUESTS = ["in_flight", "server_running", "server_waiting"]
LLAMA_CPP_REQUESTS = {
    "running": "llamacpp:requests_processing",
    "waiting": "llamacpp:requests_deferred",
}


@dataclass(frozen=True)
class Summary:
    """A campaign's numbers. `table` has a row per case, by its index: the columns of
    Campaign.cases, `valid`, `why` (the reason if it is not) and one column per metric, in the
    metric's unit. `checks` has a row per check; `latencies` and `timelines` have a frame per case
    that ended ok.
    """

    campaign: Campaign
    slo: dict[str, float]
    table: pd.DataFrame
    checks: pd.DataFrame
    latencies: dict[int, pd.DataFrame]
    timelines: dict[int, pd.DataFrame]
    machine_cost: MachineCost = NO_COST

    @property
    def valid(self) -> pd.DataFrame:
        return self.table[self.table["valid"]]

    def estimates(self, metric: str) -> pd.DataFrame:
        """One metric's mean, half-width of the 95% interval and number of runs over valid cases, by
        traffic and system.
        """
        groups = self.valid.groupby([*TRAFFIC, *SYSTEM], dropna=False, sort=False)[metric]
        rows = [(*key, *stats.estimate_mean(values)) for key, values in groups]
        return pd.DataFrame(rows, columns=[*TRAFFIC, *SYSTEM, "mean", "half", "runs"])


def summarise(
    campaign: Campaign,
    slo: dict[str, float] | None = None,
    machine_cost: MachineCost = NO_COST,
    frames: bool = True,
) -> Summary:
    """Reads, measures and checks the cases one at a time, to keep only one case's rows in memory.
    `frames` adds each case's latencies and timelines, which figures need. Raises InputError.
    """
    if campaign.published:
        if slo is not None or machine_cost != NO_COST:
            raise InputError(
                f"{campaign.folder} is published without its requests, and cannot be judged by"
                " another SLO, price or peak: run the campaign again"
            )
        return _published_summary(campaign)
    rows, checked, latencies, timelines = [], [], {}, {}
    for case in campaign.cases.to_dict("records"):
        index = case["index"]
        data = read_case(campaign, index, slo, machine_cost)
        found = checks.run_checks(data) if case["state"] == "ok" else []
        bad = verdict.failed_checks(found)
        why = (
            checks.describe_failures(bad)
            if case["state"] == "ok"
            else f"{case['state']}: {case['reason']}"
        )
        rows.append(
            case
            | {"valid": case["state"] == "ok" and not bad, "why": why}
            | metrics.measure_case(data)
        )
        checked += [{"index": index} | c._asdict() for c in found]
        if case["state"] == "ok" and frames:
            latencies[index] = latency_frame(data)
            timelines[index] = timeline_frame(data)
    table = pd.DataFrame(
        rows, columns=[*campaign.cases.columns, "valid", "why", *METRICS]
    ).set_index("index", drop=False)
    columns = ["index", *verdict.Check._fields]
    return Summary(
        campaign,
        slo or request_bounds(parse_slo(defaults.SLO)),
        table.astype({"valid": bool}),
        pd.DataFrame(checked, columns=columns),
        latencies,
        timelines,
        machine_cost,
    )


def _published_summary(campaign: Campaign) -> Summary:
    """The numbers and checks of a published campaign, without frames."""
    published = campaign.published
    assert published is not None
    missing = [name for name in METRICS if name not in published.table]
    return Summary(
        campaign,
        request_bounds(parse_slo(defaults.SLO)),
        published.table.assign(**dict.fromkeys(missing, stats.NAN)),
        pd.DataFrame(published.checks, columns=["index", *verdict.Check._fields]),
        {},
        {},
    )


def latency_frame(case: CaseData) -> pd.DataFrame:
    """The window's requests: scheduled_s (from the window's start), ttft_s and e2e_s (+inf for a
    failure), tpot_s, the times that analysis/attribution.py splits, and in_flight: how many others
    were sent and not done when this one was sent.
    """
    frame = case.scheduled[
        [
            "scheduled_s",
            "ttft_s",
            "tpot_s",
            "e2e_s",
            "send_lag_s",
            "slot_wait_s",
            "queue_ms",
            "prompt_ms",
            "predicted_ms",
            "failed",
        ]
    ].copy()
    frame["scheduled_s"] -= case.window[0]
    sent = case.rows.loc[case.rows["sent_s"].notna(), ["sent_s", "done_s"]]
    begun, done = np.sort(sent["sent_s"]), np.sort(sent["done_s"])
    frame["in_flight"] = np.searchsorted(begun, case.scheduled["sent_s"]) - np.searchsorted(
        done, case.scheduled["sent_s"], side="right"
    )
    frame.loc[frame["failed"], ["ttft_s", "e2e_s"]] = np.inf
    return frame.drop(columns="failed").reset_index(drop=True)


def timeline_frame(case: CaseData) -> pd.DataFrame:
    """The case over time, from the first request to the last token, in bins of one second or 1% of
    that time, whichever is longer: time_s (from the window's start), tokens_per_s, server_cores,
    load_cores, gpu_percent (mean of its GPUs), in_flight (as the client sees it), server_running
    and server_waiting (as the server reports them).
    """
    times, numbers = case.completed_tokens
    if not len(times) or not case.length > 0:
        return pd.DataFrame(
            columns=[
                "time_s",
                "tokens_per_s",
                "server_cores",
                "load_cores",
                "gpu_percent",
                *REQUESTS,
            ],
            dtype="float64",
        )
    start, end = float(case.rows["scheduled_s"].min()), float(times.max())
    width = max(1.0, (end - start) / 100)
    # Whole bins only: a partial last bin would look like a dip.
    edges = start + width * np.arange(max(1, int((end - start) / width)) + 1)
    middle = (edges[:-1] + edges[1:]) / 2
    # Given a number of equal bins instead of their edges, numpy does not sort the times.
    tokens = np.histogram(times, len(middle), (edges[0], edges[-1]), weights=numbers)[0]
    frame = pd.DataFrame({"time_s": middle - case.window[0], "tokens_per_s": tokens / width})
    for name, column in (("server_cores", "server_cpu_s"), ("load_cores", "load_cpu_s")):
        known = case.telemetry[["time_s", column]].dropna()
        at = (
            np.interp(edges, known["time_s"], known[column], np.nan, np.nan)
            if len(known) > 1
            else np.full(len(edges), np.nan)
        )
        frame[name] = np.diff(at) / width
    # nan without a GPU
    gpus = case.telemetry[case.gpu_columns("utilization_percent")].mean(axis="columns")
    frame["gpu_percent"] = (
        gpus.groupby(np.digitize(case.telemetry["time_s"], edges) - 1).mean().reindex(frame.index)
    )
    begun, done = (
        np.sort(case.rows["sent_s"].dropna()),
        np.sort(case.rows["done_s"][case.rows["sent_s"].notna()]),
    )
    frame["in_flight"] = np.searchsorted(begun, middle) - np.searchsorted(done, middle)
    for column in REQUESTS[1:]:
        what = column.removeprefix("server_")
        # vLLM's own count first: ours counts requests that wait inside vLLM as running.
        counts = case.served(
            f"vllm:num_requests_{what}", f"serveoff_requests_{what}", LLAMA_CPP_REQUESTS[what]
        )
        bins = np.digitize(counts.index, edges) - 1
        frame[column] = counts.groupby(bins).mean().reindex(frame.index)
    return frame


@dataclass(frozen=True)
class ServerSummary:
    """A server on an engine under one traffic, with its cases (rows of Summary.table). `rank` is 1
    plus the number of servers that are certainly better: their intervals of the comparison's metric
    do not overlap. None without an estimate.
    """

    server: str
    engine: str
    cases: pd.DataFrame
    estimate: stats.Estimate
    rank: int | None = None
    family: str = ""  # of its server.toml; empty for an endpoint, and in older campaigns

    @property
    def name(self) -> str:
        return f"{self.server} ({self.engine})"

    @cached_property
    def valid(self) -> pd.DataFrame:
        return self.cases[self.cases["valid"]]

    @property
    def ranking_interval(self) -> tuple[float, float]:
        """The interval whose overlap makes a tie: the 95% interval over runs, or one run's value
        plus or minus ONE_RUN.
        """
        if self.estimate.runs != 1:
            return self.estimate.interval
        return self.estimate.mean * (1 - ONE_RUN), self.estimate.mean * (1 + ONE_RUN)

    @property
    def why(self) -> str:
        """The reasons of all its invalid cases."""
        return "; ".join(dict.fromkeys(self.cases.loc[~self.cases["valid"], "why"]))

    @property
    def cause(self) -> str:
        """The reason of its first invalid case, on one short line, which starts with the cause."""
        invalid = self.cases.loc[~self.cases["valid"], "why"]
        return shorten(invalid.iloc[0]) if len(invalid) else ""


@dataclass(frozen=True)
class Comparison:
    """Systems under the same traffic: the best by `metric` first, those without a result last.

    In a closed loop a faster server gets more load, so `metric` is the output throughput. In an
    open loop (`is_open`) all servers get the same load, so their throughput is only the demand:
    there `metric` is E2E P95 if every valid case has one, else E2E P50.
    """

    title: str
    systems: list[ServerSummary]
    metric: str
    is_open: bool = False

    @property
    def engines(self) -> list[str]:
        return sorted({s.engine for s in self.systems})

    @property
    def families(self) -> list[str]:
        """The families of its servers, if there are several; the family of the best comes first."""
        found = list(dict.fromkeys(s.family for s in self.systems if s.family))
        return found if len(found) > 1 else []

    @property
    def has_number(self) -> bool:
        return any(len(s.valid) for s in self.systems)


def build_comparisons(summary: Summary) -> list[Comparison]:
    """One comparison for each traffic, in the order of the plan."""
    runs = summary.campaign.runs
    found = []
    for _, cases in summary.table.groupby(TRAFFIC, dropna=False, sort=False):
        first, valid = cases.iloc[0], cases[cases["valid"]]
        metric, is_open = "output_tokens_per_s", not math.isnan(first["rate"])
        if is_open:
            metric = "e2e_p50_s" if valid["e2e_p95_s"].isna().any() else "e2e_p95_s"
        sign = 1 if METRICS[metric].better == "higher" else -1
        systems = []
        for _, own in cases.groupby(SYSTEM, sort=False):
            estimate = stats.estimate_mean(own.loc[own["valid"], metric])
            family = next((f for i in own["index"] if (f := runs.get(i, {}).get("family"))), "")
            name = own["server"].iloc[0], own["engine"].iloc[0]
            systems.append(ServerSummary(*name, own, estimate, family=family))
        systems.sort(
            key=lambda s: (s.estimate.runs == 0, -sign * s.estimate.mean if s.estimate.runs else 0)
        )
        ranked = []
        for s in systems:
            ahead = sum(
                min(sign * x for x in other.ranking_interval)
                > max(sign * x for x in s.ranking_interval)
                for other in systems
            )
            ranked.append(replace(s, rank=1 + ahead if s.estimate.runs else None))
        found.append(
            Comparison(
                workload_title(first["scenario"], first["users"], first["rate"]),
                ranked,
                metric,
                is_open,
            )
        )
    return found


@dataclass(frozen=True)
class Sweep:
    """A scenario at each of its loads, the lowest first. `points` has a row per load and system, in
    this order: system, server, engine, users, rate, the number of valid runs, and the mean of every
    metric over them.
    """

    scenario: str
    comparisons: list[Comparison]

    @property
    def is_open(self) -> bool:
        return all(comparison.is_open for comparison in self.comparisons)

    @cached_property
    def points(self) -> pd.DataFrame:
        found = []
        for comparison in self.comparisons:
            for s in comparison.systems:
                if len(valid := s.valid):
                    first = valid[["server", "engine", "users", "rate"]].iloc[0].to_dict()
                    means = {name: stats.estimate_mean(valid[name]).mean for name in METRICS}
                    found.append({"system": s.name} | first | {"runs": len(valid)} | means)
        return pd.DataFrame(
            found, columns=["system", "server", "engine", "users", "rate", "runs", *METRICS]
        )


def build_sweeps(found: list[Comparison]) -> list[Sweep]:
    """One sweep for each scenario, in the order of the plan."""
    scenarios: dict[str, list[Comparison]] = {}
    for comparison in found:
        scenarios.setdefault(comparison.systems[0].cases["scenario"].iloc[0], []).append(comparison)
    return [Sweep(name, sorted(own, key=_load)) for name, own in scenarios.items()]


def _load(comparison: Comparison) -> tuple[float, float]:
    first = comparison.systems[0].cases.iloc[0]
    return np.nan_to_num(first["users"]), np.nan_to_num(first["rate"])
