"""The report's section on one scenario: its table of servers and its figures."""

import base64
import math
import re
from collections.abc import Callable
from urllib.parse import quote

import pandas as pd

from analysis import formatting, stats
from analysis.metrics import METRICS
from analysis.plots import figures, style, tradeoffs
from analysis.plots.style import Picture
from analysis.report import attribution_section, cost_section
from analysis.summary import Comparison, ServerSummary, Summary, Sweep
from analysis.templating import View

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
    "gpu_utilization_percent",
    "server_peak_bytes",
    "startup_s",
)
# Of an open loop these are the demand, as long as a server keeps up: no result, and not compared.
DEMAND = ("output_tokens_per_s", "requests_per_s")

# Checks of counts that were not exact: what they found stands beside the numbers.
COUNTS = ("token counts", "usage", "response lengths")

# Behind a metric: further ones, if any case has more than 0 of the last.
BESIDE = {
    "output_tokens_per_s": (("partial_tokens_per_s",), "partial_tokens_per_s"),
    "ttft_p99_s": (
        ("visible_ttft_p50_s", "visible_ttft_p95_s", "visible_ttft_p99_s", "reasoning_share"),
        "reasoning_share",
    ),
}

# Name and caption of each picture.
CAPTIONS = {
    "curve-e2e": (
        "Throughput and E2E",
        (
            "What a server sustains, and how long the slowest requests wait for it: a line a server"
            " through its loads, larger markers for higher loads; a point is the mean over runs."
            " Right and low is good."
        ),
    ),
    "curve-ttft": ("Throughput and TTFT", "The same for the wait for the first token."),
    "demand-e2e": (
        "Demand and E2E",
        (
            "How long the slowest requests wait as the demand grows: a line a server through its"
            " rates, larger markers for higher ones; a point is the mean over runs. Low is good."
        ),
    ),
    "demand-ttft": ("Demand and TTFT", "The same for the wait for the first token."),
    "pareto": (
        "A user's tokens/s and the machine's",
        (
            "How fast an answer runs for its reader, without the wait for its first token, against"
            " what the machine gives all of them together, larger markers for higher loads. Grey:"
            " the Pareto frontier, the servers that no other beats in both (by their means: close"
            " neighbours may be a tie)."
        ),
    ),
    "heat-map": (
        "Each metric relative to the best",
        (
            "How many times worse than the best of its column each number is, by means over runs; 1"
            " is the best, the stronger the colour the worse, – has no number. Whether a small"
            " difference is one, the table's intervals say."
        ),
    ),
    "throughput": (
        "Output throughput",
        "Output throughput. Bar: mean over runs; dots: runs; line: Student-t 95% interval.",
    ),
    "tail": (
        "Tail latency",
        "Tail latency: mean over runs of each percentile, with 95% intervals.",
    ),
    "latency-cdf": (
        "Distribution of latencies",
        (
            "Share of requests answered within a time, one line a run. A curve that ends below 1"
            " has failures."
        ),
    ),
    "why": (
        "Parts of E2E",
        "The parts of E2E of the median request and of the slowest ones, for each server.",
    ),
    "timeline": (
        "Over time",
        (
            "The first valid run over time. Shaded: the window that the numbers are from. Right:"
            " requests that the client waits for, and those of them that the server itself calls"
            " running and waiting; the others stand in its socket's queue (and a synchronous"
            " worker, which is asked between two requests, never sees its own)."
        ),
    ),
}


def sweep_view(summary: Summary, sweep: Sweep, number: int) -> View:
    """A scenario: with several loads the pictures over them first, with one the Pareto picture
    among those of its only comparison.
    """
    drawn: dict[str, Callable[[], Picture]] = {}
    if len(sweep.points):
        if len(sweep.comparisons) > 1:
            kind = "demand" if sweep.is_open else "curve"
            drawn |= {
                f"{kind}-e2e": lambda: tradeoffs.draw_curve(sweep, "e2e"),
                f"{kind}-ttft": lambda: tradeoffs.draw_curve(sweep, "ttft"),
            }
        # responses of one token have no speed for a user
        if sweep.points["user_tokens_per_s"].notna().any() and not sweep.is_open:
            drawn["pareto"] = lambda: tradeoffs.draw_pareto(sweep)
    curves = [
        figure_view(kind, draw(), f"{number}-{_slug(sweep.scenario)}")
        for kind, draw in drawn.items()
    ]
    comparisons = [_comparison(summary, c, f"{number}-{_slug(c.title)}") for c in sweep.comparisons]
    if len(comparisons) == 1:
        comparisons[0]["figures"], curves = curves + comparisons[0]["figures"], []
    return {
        "id": f"{number}-{_slug(sweep.scenario)}",
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
    columns = headline_metrics(summary, comparison)
    ranked = sum(system.rank is not None for system in comparison.systems) > 1
    why = attribution_section.attribution_view(summary, comparison)
    return {
        "id": stem,
        "title": comparison.title,
        "warnings": _warnings(summary, comparison),
        "is_open": comparison.is_open,
        "ranked_by": METRICS[comparison.metric].label,
        "headline": [
            (headline_label(name, comparison), formatting.unit_of(name), METRICS[name].better)
            for name in columns
        ],
        "rows": [_row(system, columns, ranked) for system in comparison.systems],
        "one_run": any(s.estimate.runs == 1 for s in comparison.systems),
        "figures": (
            [figure_view(kind, draw(), stem) for kind, draw in drawn.items()]
            if comparison.has_number
            else []
        ),
        "why": why | {"figure": why["picture"] and figure_view("why", why["picture"], stem)},
    }


def _warnings(summary: Summary, comparison: Comparison) -> list[str]:
    """What belongs beside the numbers of a comparison, in whole sentences."""
    found = []
    if len(comparison.engines) > 1:
        found.append(
            f"The engines differ ({', '.join(comparison.engines)}): this table compares whole"
            " stacks, not architectures alone."
        )
    failed = summary.checks[summary.checks["ok"].eq(False) & summary.checks["name"].isin(COUNTS)]
    for system in comparison.systems:
        own = failed[failed["index"].isin(system.valid["index"])]
        for name, checks in own.groupby("name", sort=False):
            found.append(f"{system.name}, {name}: {checks['detail'].iloc[0]}.")
    return found


def headline_metrics(summary: Summary, comparison: Comparison) -> tuple[str, ...]:
    """The columns of the headline table: HEADLINE, with the demand of an open loop last, and behind
    the metric that they belong to those of BESIDE that say something here.
    """
    columns: list[str] = []
    for name in HEADLINE if not comparison.is_open else (*compared_metrics(comparison), *DEMAND):
        columns.append(name)
        beside, says = BESIDE.get(name, ((), ""))
        if says and bool((summary.valid[says] > 0).any()):
            columns += beside
    return (*columns, *cost_section.cost_columns(summary))


def headline_label(name: str, comparison: Comparison) -> str:
    """A metric's label, which says of an open loop's throughput that it is no result."""
    label = METRICS[name].label
    return f"{label} (the demand)" if comparison.is_open and name in DEMAND else label


def compared_metrics(comparison: Comparison) -> tuple[str, ...]:
    """Those of HEADLINE in which one server can be better than another."""
    return tuple(name for name in HEADLINE if not (comparison.is_open and name in DEMAND))


def figure_view(kind: str, picture: Picture, stem: str) -> View:
    data, (name, caption) = style.encode_png(picture.figure), CAPTIONS[kind]
    return {
        "stem": f"{stem}-{kind}",
        "file": f"{stem}-{kind}.png",
        "png": data,
        "base64": base64.b64encode(data).decode(),
        "csv": (
            "data:text/csv;charset=utf-8,"
            + quote(picture.data.to_csv(index=False, float_format="%.6g"), safe=",/:()=")
        ),
        "name": name,
        "caption": caption,
        "large": picture.figure.get_figwidth() > 1.25 * style.WIDTH,
        "folded": kind == "timeline",
    }


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]


def _row(system: ServerSummary, columns: tuple[str, ...], ranked: bool) -> View:
    """One line of the headline table; `cells` is empty where there is no number. `ranked`: there is
    more than one with a number.
    """
    own, valid = system.cases, system.valid
    runs = f"{len(valid)}" if len(valid) == len(own) else f"{len(valid)} of {len(own)}"
    return {
        "server": system.server,
        "engine": system.engine,
        "rank": system.rank if ranked else None,
        "runs": runs,
        "why": system.why,
        "cells": (
            [(*formatting.split_estimate(m, valid), _value(m, valid)) for m in columns]
            if len(valid)
            else []
        ),
    }


def _value(metric: str, valid: pd.DataFrame) -> str:
    """What a table is sorted by: empty where there is no number."""
    mean = stats.estimate_mean(valid[metric]).mean
    return "" if math.isnan(mean) else "Infinity" if math.isinf(mean) else f"{mean:.9g}"
