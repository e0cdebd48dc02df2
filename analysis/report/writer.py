"""A campaign's folder -> report.html, report.md, figures/*.png and metrics.csv in it, and the
headline in the terminal.
"""

import base64
import hashlib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import markupsafe
import pandas as pd

from analysis import dataset, formatting, stats
from analysis.hardware import NO_COST, MachineCost
from analysis.metrics import METRICS
from analysis.plots import figures, style, tradeoffs
from analysis.plots.style import Picture
from analysis.report import attribution_section, capacity_section, cost_section, noise_floor_section
from analysis.summary import (
    Comparison,
    ServerSummary,
    Summary,
    Sweep,
    build_comparisons,
    build_sweeps,
    describe_result,
    summarise,
)
from analysis.templating import TEMPLATES, View, render_markdown, render_page

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
TITLES = {
    "page": "Which server should run this model?",
    "validity": "Can these numbers be believed?",
    "manifest": "How it was measured",
}
UNFINISHED = (
    "This campaign is not complete: some cases are still running, were killed, or have not started."
)
UNCOMMITTED = (
    "The measured code had uncommitted changes: these numbers cannot be traced to a commit."
)
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


def write_report(
    folder: Path | str | None = None,
    slo: dict[str, float] | None = None,
    machine_cost: MachineCost = NO_COST,
) -> Summary:
    """Makes the report of a campaign (default: the newest) into its folder and returns what it
    shows. Raises InputError.
    """
    summary = summarise(dataset.read_campaign(folder), slo, machine_cost)
    folder = summary.campaign.folder
    (folder / "figures").mkdir(exist_ok=True)
    for old in (folder / "figures").glob("*.png"):
        old.unlink()  # of an earlier report, perhaps of a comparison that is named otherwise now
    view = build_view(summary)
    compared = [c for sweep in view["sweeps"] for c in sweep["comparisons"]]
    pictures = [f for sweep in view["sweeps"] for f in sweep["curves"]] + [
        f for c in compared for f in [*c["figures"], c["why"]["figure"]]
    ]
    for figure in filter(None, pictures):
        (folder / "figures" / figure["file"]).write_bytes(figure["png"])
    summary.table.drop(columns="index").to_csv(folder / "metrics.csv", index_label="index")
    (folder / "report.html").write_text(render_page("report.html.jinja", view))
    (folder / "report.md").write_text(render_markdown("report.md.jinja", view))
    return summary


def build_view(summary: Summary) -> View:
    """Everything that the templates print, as plain values and text; they only lay it out."""
    data, cases = summary.campaign.data, summary.table
    capacity = capacity_section.capacity_view(summary)
    comparisons = build_comparisons(summary)
    sweeps = [
        _sweep(summary, sweep, number) for number, sweep in enumerate(build_sweeps(comparisons), 1)
    ]
    # a search's cases are each at a load of its own: nothing to compare but their curves
    if capacity["systems"]:
        sweeps = [sweep | {"comparisons": []} for sweep in sweeps]
    script = (TEMPLATES / "page.js").read_text()
    states = cases["state"].value_counts().to_dict()
    return {
        "name": summary.campaign.folder.resolve().name,
        "created": data.get("created_utc"),
        "command": (
            data.get("command")
            if isinstance(data.get("command"), str)
            else " ".join(map(str, data.get("command") or []))
        ),
        "states": ", ".join(f"{n} {state}" for state, n in states.items()),
        "answers": (
            capacity["answers"]
            or [describe_result(c) for c in comparisons]
            or ["This campaign has no case yet."]
        ),
        "warnings": [
            text
            for text, applies in (
                (UNFINISHED, {"running", "planned"} & set(states)),
                (UNCOMMITTED, (data.get("manifest") or {}).get("dirty")),
            )
            if applies
        ],
        "titles": TITLES,
        "capacity": capacity,
        "headline": [
            (METRICS[m].label, formatting.unit_of(m), METRICS[m].better) for m in headline(summary)
        ],
        "sweeps": sweeps,
        "sections": (
            [
                (part["id"], part["title"])
                for s in sweeps
                for part in ([s] if s["curves"] else []) + s["comparisons"]
            ]
            + [(key, TITLES[key]) for key in ("validity", "manifest")]
        ),
        # The page's own policy lets nothing run but this script, and nothing be fetched.
        "script": markupsafe.Markup(script),  # noqa: S704 (a file of ours)
        "script_hash": (
            "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        ),
        "concerns": _concerns(summary),
        "checks": _checks(summary),
        "cost": cost_section.cost_view(summary, comparisons),
        "noise_floor": noise_floor_section.noise_floor_view(
            summary, {c["index"]: _case(c)["case"] for c in cases.to_dict("records")}
        ),
        "invalid_cases": [
            _case(c) | {"why": c["why"]} for c in cases[~cases["valid"]].to_dict("records")
        ],
        "slo": " and ".join(
            f"{name.removesuffix('_s').upper()} ≤ {bound * 1000:g} ms"
            for name, bound in summary.slo.items()
        ),
        "definitions": [
            (
                m.label,
                formatting.unit_of(m.name),
                m.better,
                " ".join((m.value.__doc__ or "").split()),
            )
            for m in METRICS.values()
        ],
        "confidence": [(p, stats.values_needed(p)) for p in (50, 95, 99)],
        "scenarios": [
            (name, formatting.flatten_settings(table))
            for name, table in _named(data.get("scenarios"))
        ],
        "machine": formatting.flatten_settings(
            {
                k: data.get(k)
                for k in ("model", "seed", "simulated", "machine_share", "manifest")
                if data.get(k) is not None
            }
        ),
        "stages": [
            _case(c) | {"stages": _stages(summary.campaign.runs.get(c["index"], {}))}
            for c in cases.to_dict("records")
        ],
        "notes": list(
            dict.fromkeys(
                note for run in summary.campaign.runs.values() for note in run.get("notes") or []
            )
        ),
    }


def _sweep(summary: Summary, sweep: Sweep, number: int) -> View:
    """A scenario: with several loads the pictures over them first, with one the Pareto picture
    among those of its only comparison.
    """
    drawn: dict[str, Callable[[], Picture]] = {}
    if len(sweep.points):
        if len(sweep.comparisons) > 1:
            drawn |= {
                "curve-e2e": lambda: tradeoffs.draw_curve(sweep, "e2e"),
                "curve-ttft": lambda: tradeoffs.draw_curve(sweep, "ttft"),
            }
        if sweep.points["user_tokens_per_s"].notna().any():  # answers of one token have none
            drawn["pareto"] = lambda: tradeoffs.draw_pareto(sweep)
    curves = [
        _figure(kind, draw(), f"{number}-{_slug(sweep.scenario)}") for kind, draw in drawn.items()
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
        "heat-map": lambda: tradeoffs.draw_heat_map(comparison, HEADLINE),
        "tail": lambda: figures.draw_tail(comparison),
        "latency-cdf": lambda: figures.draw_latency_cdf(summary, comparison),
        "timeline": lambda: figures.draw_timeline(summary, comparison),
    }
    why = attribution_section.attribution_view(summary, comparison)
    return {
        "id": stem,
        "title": comparison.title,
        "warnings": (
            [
                f"The engines differ ({', '.join(comparison.engines)}): this table compares whole"
                " stacks, not architectures alone."
            ]
            if len(comparison.engines) > 1
            else []
        ),
        "ranked_by": METRICS[comparison.metric].label,
        "rows": [_row(system, headline(summary)) for system in comparison.systems],
        "one_run": any(s.estimate.runs == 1 for s in comparison.systems),
        "figures": (
            [_figure(kind, draw(), stem) for kind, draw in drawn.items()]
            if comparison.has_number
            else []
        ),
        "why": why | {"figure": why["picture"] and _figure("why", why["picture"], stem)},
    }


def headline(summary: Summary) -> tuple[str, ...]:
    return (*HEADLINE, *cost_section.cost_columns(summary))


def _figure(kind: str, picture: Picture, stem: str) -> View:
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


def _row(system: ServerSummary, columns: tuple[str, ...]) -> View:
    """One line of the headline table; `cells` is empty where there is no number."""
    own, valid = system.cases, system.valid
    runs = f"{len(valid)}" if len(valid) == len(own) else f"{len(valid)} of {len(own)}"
    return {
        "server": system.server,
        "engine": system.engine,
        "rank": system.rank,
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


def _case(case: Any) -> View:
    title = formatting.workload_title(case["scenario"], case["users"], case["rate"])
    return {
        "case": f"{case['server']} ({case['engine']}), {title}, run {case['repetition']}",
        "state": case["state"],
    }


def _concerns(summary: Summary) -> list[View]:
    """What did not pass, once for each check and severity, with the cases it is about."""
    failed = summary.checks[summary.checks["ok"].eq(False)]
    names = {c["index"]: _case(c)["case"] for c in summary.table.to_dict("records")}
    return [
        {
            "name": name,
            "severity": severity,
            "remedy": group["remedy"].iloc[0],
            "cases": [(names[c["index"]], c["detail"]) for c in group.to_dict("records")],
        }
        for (severity, name), group in failed.groupby(["severity", "name"], sort=True)
    ]


def _checks(summary: Summary) -> list[View]:
    """How many cases passed, failed or were not measured, for each check."""
    return [
        {
            "name": name,
            "passed": int(g["ok"].eq(True).sum()),
            "failed": int(g["ok"].eq(False).sum()),
            "unknown": int(g["ok"].isna().sum()),
        }
        for name, g in summary.checks.groupby("name", sort=False)
    ]


def _stages(run: View) -> str:
    spans = [(s["name"], s.get("start_s"), s.get("end_s")) for s in run.get("stages") or []]
    return (
        ", ".join(
            f"{name} " + ("not ended" if None in (start, end) else f"{end - start:.1f} s")
            for name, start, end in spans
        )
        or "–"
    )


def _named(scenarios: Any) -> list[tuple[str, Any]]:
    if isinstance(scenarios, dict):
        return list(scenarios.items())
    return [(str(s.get("name", number)), s) for number, s in enumerate(scenarios or [], 1)]
