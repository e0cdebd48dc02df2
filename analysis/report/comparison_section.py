"""The report's section on one scenario: its table of servers and its figures."""

import math
import re
from collections.abc import Callable
from urllib.parse import quote

import pandas as pd

from analysis import conclusions, formatting, stats
from analysis.metrics import METRICS
from analysis.plots import figures, style, tradeoffs, vector
from analysis.plots.style import Picture
from analysis.report import attribution_section, cost_section
from analysis.summary import Comparison, ServerSummary, Summary, Sweep
from analysis.templating import View, slugify

HEADLINE = (
    "output_tokens_per_s",
    "requests_per_s",
    "goodput_per_s",
    "error_share",
    "ttft_p50_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "tpot_p50_s",
    "tpot_p99_s",
    "e2e_p50_s",
    "e2e_p95_s",
    "e2e_p99_s",
    "outside_engine_p50_s",
    "server_cores",
    "machine_cores",
    "gpu_utilization_percent",
    "server_peak_bytes",
    "machine_memory_bytes",
    "startup_s",
)
# The columns of the first table, which fits a screen; the tails of TTFT and E2E and those of BESIDE
# and of cost go with them. The others stand in a table of their own.
DECIDING = ("output_tokens_per_s", "goodput_per_s", "error_share", "ttft_p50_s", "e2e_p50_s")
# In an open loop these are the demand as long as a server keeps up: no result, and not compared.
DEMAND = ("output_tokens_per_s", "requests_per_s")

# Checks of counts: the page shows what they found beside the numbers.
COUNTS = ("token counts", "usage", "response lengths", "prompt lengths")

# Metrics to show behind another one, if any case has more than 0 of the last.
BESIDE = {
    "output_tokens_per_s": (("partial_tokens_per_s",), "partial_tokens_per_s"),
    "ttft_p99_s": (
        ("visible_ttft_p50_s", "visible_ttft_p95_s", "visible_ttft_p99_s", "reasoning_share"),
        "reasoning_share",
    ),
}

# Name and caption of each figure.
CAPTIONS = {
    "curve-e2e": (
        "Throughput and E2E",
        (
            "How long the slowest requests take as a server produces more: one line per server"
            " through its loads, larger markers for higher loads, each point a mean over runs."
            " Right and low is good."
        ),
    ),
    "curve-ttft": (
        "Throughput and TTFT",
        "The same for the wait for the first token (TTFT). Right and low is good.",
    ),
    "demand-e2e": (
        "Demand and E2E",
        (
            "How long the slowest requests take as the demand grows: one line per server through"
            " its rates, larger markers for higher rates, each point a mean over runs. Low is good."
        ),
    ),
    "demand-ttft": (
        "Demand and TTFT",
        "The same for the wait for the first token (TTFT). Low is good.",
    ),
    "pareto": (
        "Speed per user and of the machine",
        (
            "How fast a response streams to its reader after the first token, against what the"
            " machine produces for all of them together; larger markers for higher loads. Grey: the"
            " Pareto frontier, the servers that no other beats in both (by their means: close"
            " neighbours may be a tie)."
        ),
    ),
    "heat-map": (
        "Each metric relative to the best",
        (
            "How many times worse than the best of its column each mean over runs is. 1 is the"
            " best, a darker colour is worse, and – was not measured. The intervals in the table"
            " show whether a small difference is real."
        ),
    ),
    "throughput": (
        "Output throughput",
        "Output throughput. Bar: mean over runs; dots: runs; line: 95% interval (Student t).",
    ),
    "tail": (
        "TTFT and E2E",
        (
            "How long requests wait for the first token (TTFT) and for the whole response (E2E):"
            " P50, P95 and P99, each a mean over runs with its 95% interval. Left is good."
        ),
    ),
    "latency-cdf": (
        "Distribution of latencies",
        (
            "Share of requests that finished within a time, one line per run. A curve that ends"
            " below 1 has failures."
        ),
    ),
    "why": (
        "Parts of E2E",
        "The parts of E2E for the median request and for the slowest ones, by server.",
    ),
    "timeline": (
        "Over time",
        (
            "The first valid run over time, of at most 12 servers, the best first. Shaded: the"
            " window, from which the numbers come. Right: requests that the client waits for, and"
            " those of them that the server reports as running and waiting. The others stand in its"
            " socket's queue. A synchronous worker is scraped between two requests and never"
            " reports its own."
        ),
    ),
}


def sweep_view(summary: Summary, sweep: Sweep, number: int) -> View:
    """{id, title, curves, comparisons} of a scenario: `curves` are the figures over its loads. With
    one load they are among the figures of its only comparison.
    """
    drawn: dict[str, Callable[[], Picture]] = {}
    if len(sweep.points):
        if len(sweep.comparisons) > 1:
            kind = "demand" if sweep.is_open else "curve"
            drawn |= {
                f"{kind}-e2e": lambda: tradeoffs.draw_curve(sweep, "e2e"),
                f"{kind}-ttft": lambda: tradeoffs.draw_curve(sweep, "ttft"),
            }
        # Responses of one token have no speed for a user, and one point is no trade-off.
        if (
            len(sweep.points) > 1
            and sweep.points["user_tokens_per_s"].notna().any()
            and not sweep.is_open
        ):
            drawn["pareto"] = lambda: tradeoffs.draw_pareto(sweep)
    curves = _figures(summary, drawn, f"{number}-{_slug(sweep.scenario)}")
    comparisons = [_comparison(summary, c, f"{number}-{_slug(c.title)}") for c in sweep.comparisons]
    if len(comparisons) == 1:
        comparisons[0]["figures"], curves = curves + comparisons[0]["figures"], []
    return {
        "id": slugify(f"{sweep.scenario}, all loads"),
        "title": f"{sweep.scenario}, all loads",
        "curves": curves,
        "comparisons": comparisons,
    }


def _comparison(summary: Summary, comparison: Comparison, stem: str) -> View:
    drawn: dict[str, Callable[[], Picture]] = {
        "throughput": lambda: figures.draw_throughput(comparison),
        "heat-map": lambda: tradeoffs.draw_heat_map(comparison, compared_metrics(comparison)),
        "tail": lambda: figures.draw_tail(comparison),
        "latency-cdf": lambda: figures.draw_latency_cdf(summary, comparison),
        "timeline": lambda: figures.draw_timeline(summary, comparison),
    }
    if comparison.is_open:
        del drawn["throughput"]
    if sum(len(system.valid) > 0 for system in comparison.systems) < 2:
        del drawn["heat-map"]
    columns, deciding = shown_metrics(summary, comparison)
    ranks = [system.rank for system in comparison.systems if system.rank is not None]
    if summary.campaign.published:
        why = attribution_section.kept_view(summary.campaign, comparison)
    else:
        why = attribution_section.attribution_view(summary, comparison)
    return {
        "id": slugify(comparison.title),
        "title": comparison.title,
        "finding": conclusions.describe_result(comparison, reasons=False),  # these are in the rows
        "warnings": list_caveats(summary, comparison),
        "is_open": comparison.is_open,
        "ranked": len(ranks) > 1,
        "ranked_by": METRICS[comparison.metric].label,
        "metrics": columns,
        "deciding": deciding,
        "headline": [
            (headline_label(name, comparison), _unit(summary, name), METRICS[name].better)
            for name in columns
        ],
        "families": comparison.families,
        "rows": [_row(system, columns, ranks) for system in comparison.systems],
        "one_run": any(s.estimate.runs == 1 for s in comparison.systems),
        "figures": _figures(summary, drawn, stem) if comparison.has_number else [],
        "why": why | {"figure": why["picture"] and figure_view("why", why["picture"], stem)},
    }


def list_caveats(summary: Summary, comparison: Comparison) -> list[str]:
    """What a reader must know beside the numbers of a comparison, in whole sentences."""
    found = []
    if len(comparison.engines) > 1:
        engines = ", ".join(style.ENGINES.get(each, each) for each in comparison.engines)
        found.append(
            f"The engines differ ({engines}):"
            " these numbers compare whole stacks, not architectures alone."
        )
    failed = summary.checks[summary.checks["ok"].eq(False) & summary.checks["name"].isin(COUNTS)]
    for system in comparison.systems:
        own = failed[failed["index"].isin(system.valid["index"])]
        for name, checks in own.groupby("name", sort=False):
            found.append(f"{system.name}, {name}: {checks['detail'].iloc[0]}.")
    return found


def headline_metrics(summary: Summary, comparison: Comparison) -> tuple[str, ...]:
    """The columns of the headline table: HEADLINE, with the demand of an open loop last, and those
    of BESIDE that apply here behind their metric.
    """
    columns: list[str] = []
    for name in HEADLINE if not comparison.is_open else (*compared_metrics(comparison), *DEMAND):
        columns.append(name)
        beside, needed = BESIDE.get(name, ((), ""))
        if needed and bool((summary.valid[needed] > 0).any()):
            columns += beside
    return (*columns, *cost_section.cost_columns(summary))


def shown_metrics(summary: Summary, comparison: Comparison) -> tuple[tuple[str, ...], int]:
    """Those of the headline metrics for which some server has a number, or too few requests for
    one: a machine without a GPU has no empty GPU column. The deciding ones come first; the second
    value is their number.
    """
    valid = [system.valid for system in comparison.systems if len(system.valid)]
    shown = [
        name
        for name in headline_metrics(summary, comparison)
        if any(formatting.split_estimate(name, cases) != ("–", "") for cases in valid)
    ]
    demand = DEMAND if comparison.is_open else ()
    beside = [name for names, _ in BESIDE.values() for name in names]
    tails = [_known_tail(stem, valid) for stem in ("ttft", "e2e")]
    wanted = {*DECIDING, *tails, comparison.metric, *beside, *cost_section.cost_columns(summary)}
    deciding = [name for name in shown if name in wanted.difference(demand)]
    return (*deciding, *(name for name in shown if name not in deciding)), len(deciding)


def _known_tail(stem: str, valid: list[pd.DataFrame]) -> str:
    """P99 of a latency, or P95 if no server has enough requests for P99."""
    p99, p95 = (f"{stem}_p{p}_s" for p in (99, 95))
    known = {name for name in (p99, p95) if any(cases[name].notna().any() for cases in valid)}
    return p95 if p95 in known and p99 not in known else p99


def _unit(summary: Summary, name: str) -> str:
    """A metric's unit; of goodput with the SLO, without which it means nothing."""
    unit = formatting.unit_of(name)
    if name not in ("goodput_per_s", "goodput_tokens_per_s", "usd_per_million_tokens"):
        return unit
    return f"{unit}, if {describe_slo(summary.slo)}"


def describe_slo(bounds: dict[str, float]) -> str:
    """
    >>> describe_slo({"ttft_s": 1.0, "tpot_s": 0.1})
    'TTFT ≤ 1000 ms and TPOT ≤ 100 ms'
    """
    return " and ".join(
        f"{name.removesuffix('_s').upper()} ≤ {bound * 1000:g} ms" for name, bound in bounds.items()
    )


def headline_label(name: str, comparison: Comparison) -> str:
    """A metric's label. It marks an open loop's throughput as the demand, which is no result."""
    label = METRICS[name].label
    return f"{label} (the demand)" if comparison.is_open and name in DEMAND else label


def compared_metrics(comparison: Comparison) -> tuple[str, ...]:
    """The metrics of HEADLINE in which one server can be better than another."""
    return tuple(name for name in HEADLINE if not (comparison.is_open and name in DEMAND))


def _figures(summary: Summary, drawn: dict[str, Callable[[], Picture]], stem: str) -> list[View]:
    """The figures by kind. A published campaign keeps those that it has, also of older kinds."""
    if not summary.campaign.published:
        return [figure_view(kind, draw(), stem) for kind, draw in drawn.items()]
    folder = summary.campaign.folder / "figures"
    return [
        {"kind": kind, "file": file, "caption": CAPTIONS[kind][1], "first": False}
        for kind in dict.fromkeys([*drawn, *CAPTIONS])
        if kind != "why"
        for file in [f"{stem}-{kind}.png"]
        if (folder / file).is_file()
    ]


def figure_view(kind: str, picture: Picture, stem: str) -> View:
    """A figure as the templates need it: PNG for report.md, SVG for the page, and its data."""
    name, caption = CAPTIONS[kind]
    png = style.encode_png(picture.figure)
    drawn = vector.encode_svg(picture.figure, picture.marks, f"{stem}-{kind}", caption)
    return {
        "kind": kind,
        "stem": f"{stem}-{kind}",
        "file": f"{stem}-{kind}.png",
        "png": png,
        "svg": drawn.svg,
        "legend": drawn.legend,
        "csv": (
            "data:text/csv;charset=utf-8,"
            + quote(picture.data.to_csv(index=False, float_format="%.6g"), safe=",/:()=")
        ),
        "name": name,
        "caption": caption,
        "large": picture.figure.get_figwidth() > 1.25 * style.WIDTH,
        "folded": kind == "timeline",
        "first": False,
    }


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]


def _row(system: ServerSummary, columns: tuple[str, ...], ranks: list[int]) -> View:
    """One row of the headline table. `cells` is empty without a valid case. `ranks` are those of
    all servers with a number.
    """
    own, valid = system.cases, system.valid
    runs = f"{len(valid)}" if len(valid) == len(own) else f"{len(valid)} of {len(own)}"
    return {
        "server": system.server,
        "engine": system.engine,
        "family": system.family,
        "rank": system.rank if len(ranks) > 1 else None,
        "tie": ranks.count(system.rank or 0) > 1,
        "runs": runs,
        "why": system.why,
        "cells": (
            [(*formatting.split_estimate(m, valid), _value(m, valid)) for m in columns]
            if len(valid)
            else []
        ),
    }


def _value(metric: str, valid: pd.DataFrame) -> str:
    """The value that a table is sorted by, empty where there is no number."""
    mean = stats.estimate_mean(valid[metric]).mean
    return "" if math.isnan(mean) else "Infinity" if math.isinf(mean) else f"{mean:.9g}"
