"""Writes report.html, report.md, figures/*.png and metrics.csv into a campaign's folder."""

import base64
import hashlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import markupsafe
import pandas as pd

from analysis import attribution, dataset, formatting, hardware, stats
from analysis.dataset import Campaign, InputError, Json
from analysis.hardware import NO_COST, MachineCost
from analysis.metrics import METRICS
from analysis.report import (
    capacity_section,
    comparison_section,
    cost_section,
    first_screen,
    noise_floor_section,
    profile_section,
)
from analysis.summary import Summary, build_comparisons, build_sweeps, summarise
from analysis.templating import TEMPLATES, View, render_markdown, render_page, slugify

VALIDITY = {True: "valid", False: "invalid"}
TITLES = {"validity": "Can you trust these numbers?", "manifest": "How it was measured"}
SEVERITIES = ("invalid", "warning", "note")
UNFINISHED = (
    "This campaign is not complete: some cases are still running, were killed, or have not started."
)
UNCOMMITTED = (
    "The measured code had uncommitted changes: these numbers cannot be traced to a commit."
)


def write_report(
    folder: Path | str | None = None,
    slo: dict[str, float] | None = None,
    machine_cost: MachineCost = NO_COST,
    max_errors: float | None = None,
) -> Summary:
    """Writes the report of a campaign (default: the newest) into its folder, and returns the
    numbers that it shows. Raises InputError.
    """
    campaign = dataset.read_campaign(folder, max_errors)
    if campaign.published:
        raise InputError(
            f"{campaign.folder} is published without its requests, which a report needs: read its"
            " report.md, or run the campaign again"
        )
    summary = summarise(campaign, slo, machine_cost)
    folder = summary.campaign.folder
    (folder / "figures").mkdir(exist_ok=True)
    for old in (folder / "figures").glob("*.png"):
        old.unlink()  # an earlier report may have named its comparisons differently
    view = build_view(summary)
    compared = [c for sweep in view["sweeps"] for c in sweep["comparisons"]]
    pictures = [f for sweep in view["sweeps"] for f in sweep["curves"]] + [
        f for c in compared for f in [*c["figures"], c["why"]["figure"]]
    ]
    for figure in filter(None, pictures):
        (folder / "figures" / figure["file"]).write_bytes(figure["png"])
    summary.table.drop(columns="index").to_csv(folder / "metrics.csv", index_label="index")
    (folder / "report.html").write_text(render_page("report.html.jinja", view | _script()))
    (folder / "report.md").write_text(render_markdown("report.md.jinja", view))
    return summary


def rewrite_published(campaign: Campaign) -> None:
    """Writes report.md of a published campaign from its numbers. Its figures stay, and so do its
    sections "Why", which need single requests.
    """
    view = build_view(summarise(campaign))
    (campaign.folder / "report.md").write_text(render_markdown("report.md.jinja", view))


def build_view(summary: Summary) -> View:
    """Computes everything that the templates print. They only lay it out."""
    data, cases = summary.campaign.data, summary.table
    capacity = capacity_section.capacity_view(summary)
    comparisons = build_comparisons(summary)
    sweeps = [
        comparison_section.sweep_view(summary, sweep, number)
        for number, sweep in enumerate(build_sweeps(comparisons), 1)
    ]
    # Each case of a search has a load of its own: only the curves over all loads compare servers.
    if capacity["systems"]:
        sweeps = [sweep | {"comparisons": []} for sweep in sweeps]
    concerns = list_concerns(summary)
    warnings = [(text, slugify(TITLES["manifest"])) for text in list_warnings(summary)]
    first = first_screen.first_screen_view(
        summary, comparisons, sweeps, capacity, warnings, concerns
    )
    cost = cost_section.cost_view(summary, comparisons)
    shown = [c for sweep in sweeps for c in sweep["comparisons"]]
    states = cases["state"].mask(cases["state"].eq("ok"), cases["valid"].map(VALIDITY))
    return {
        "name": summary.campaign.folder.resolve().name,
        "created": data.get("created_utc"),
        "command": _command(data),
        "states": ", ".join(f"{n} {state}" for state, n in states.value_counts().items()),
        "first": first | {"details": slugify(TITLES["validity"])},
        "titles": TITLES,
        "capacity": capacity,
        "sweeps": sweeps,
        "comparisons": len(shown),
        "contents": _contents(sweeps, bool(capacity["systems"])),
        "profile": profile_section.profile_view(summary),
        "prompts": profile_section.prompts_view(summary),
        "concerns": concerns,
        "checks": _checks(summary),
        "cost": cost,
        "noise_floor": noise_floor_section.noise_floor_view(
            summary, {c["index"]: _case(c)["case"] for c in cases.to_dict("records")}
        ),
        "invalid_cases": [
            _case(c) | {"why": c["why"]} for c in cases[~cases["valid"]].to_dict("records")
        ],
        "slo": comparison_section.describe_slo(summary.slo),
        "definitions": [
            (
                m.label,
                formatting.unit_of(m.name),
                m.better,
                " ".join((m.value.__doc__ or "").split()),
            )
            for m in METRICS.values()
            if m.name in _shown_metrics(first, sweeps, cost)
        ],
        "confidence": [(p, stats.values_needed(p)) for p in (50, 95, 99)],
        "scenarios": [
            (name, formatting.flatten_settings(_as_measured(name, table, cases)))
            for name, table in _named(data.get("scenarios"))
        ],
        "machine": formatting.flatten_settings(_machine(summary)),
        "stages": [
            _case(c) | {"stages": _stages(summary.campaign.runs.get(c["index"], {}))}
            for c in cases.to_dict("records")
        ],
        "notes": list(dict.fromkeys(_notes(summary))),
    }


def _script() -> View:
    """The page's script. Its own policy runs nothing else and fetches nothing."""
    script = (TEMPLATES / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        "script": markupsafe.Markup(script),  # noqa: S704 (a file of ours)
        "script_hash": f"sha256-{digest}",
    }


def _contents(sweeps: list[View], is_search: bool) -> list[tuple[str, str]]:
    """(anchor, title) of the sections."""
    parts = [
        (part["id"], part["title"])
        for sweep in sweeps
        for part in ([sweep] if sweep["curves"] else []) + sweep["comparisons"]
    ]
    titles = [TITLES["validity"], "Cost", "Noise floor", TITLES["manifest"]]
    fixed = [(slugify(title), title) for title in titles]
    return [("capacity", "Capacity")] * is_search + parts + fixed


def _shown_metrics(first: View, sweeps: list[View], cost: View) -> set[str]:
    """Names of the metrics that the report shows, so that it defines these and no others."""
    found = {*attribution.IN_ENGINE, *cost["metrics"], "output_tokens_per_s"}
    for table in first["tables"]:
        found.update(table["metrics"])
    for sweep in sweeps:
        for comparison in sweep["comparisons"]:
            found.update(comparison["metrics"])
    kinds = {
        figure["kind"]
        for sweep in sweeps
        for part in (sweep["curves"], *(c["figures"] for c in sweep["comparisons"]))
        for figure in part
    }
    if "pareto" in kinds:
        found.add("user_tokens_per_s")
    if kinds & {"curve-e2e", "demand-e2e"}:
        found.update(f"{stem}_p{p}_s" for stem in ("ttft", "e2e") for p in (50, 95, 99))
    return found


def _machine(summary: Summary) -> View:
    """Machine, model and versions, with all packages in one value. The manifest is named as what it
    is if servers ran elsewhere, whose machines are beside it as far as they are known.
    """
    data, runs = summary.campaign.data, summary.campaign.runs
    found = {
        key: data[key]
        for key in ("model", "seed", "simulated", "machine_share", "engine_device", "manifest")
        if data.get(key) is not None
    }
    packages = (found.get("manifest") or {}).get("packages")
    if isinstance(packages, dict):
        text = ", ".join(f"{name} {version}" for name, version in packages.items())
        found["manifest"] = found["manifest"] | {"packages": text}
    if any(map(hardware.is_elsewhere, runs.values())):
        found["machine of the load generator"] = found.pop("manifest", None)
        share = found.pop("machine_share", None) or {}
        found["load_cores"] = share.get("load_cores")
    names = dict(zip(summary.table["index"], summary.table["server"], strict=True))
    for index, run in runs.items():
        if run.get("server_machine") and not run.get("command"):
            found[f"machine of {names[index]}"] = {
                key: value
                for key, value in run["server_machine"].items()
                if value not in (None, [])
            }
    return found


def _command(data: Json) -> str:
    options = data.get("command") or []
    verb = f"nox -s {'gate' if data.get('gate') else 'bench'}"
    text = options if isinstance(options, str) else shlex.join(map(str, options))
    return f"{verb} -- {text}" if text else verb


def list_warnings(summary: Summary) -> list[str]:
    """Warnings about the campaign as a whole, in whole sentences."""
    manifest = summary.campaign.data.get("manifest") or {}
    unfinished = summary.table["state"].isin(["running", "planned"]).any()
    return [
        text
        for text, applies in ((UNFINISHED, unfinished), (UNCOMMITTED, manifest.get("dirty")))
        if applies
    ]


def _notes(summary: Summary) -> Iterator[str]:
    """The notes of all cases, except those that the section on their endpoint has."""
    for run in summary.campaign.runs.values():
        profiled = (run.get("profile") or {}).get("notes") or []
        yield from (note for note in run.get("notes") or [] if note not in profiled)


def _case(case: Any) -> View:
    title = formatting.workload_title(case["scenario"], case["users"], case["rate"])
    return {
        "case": f"{case['server']} ({case['engine']}), {title}, run {case['repetition']}",
        "state": case["state"],
    }


def list_concerns(summary: Summary) -> list[View]:
    """Failed checks, once per check and severity, with their cases: the worst severity first, and
    causes before effects. The remedy is that of the worst case.
    """
    failed = summary.checks[summary.checks["ok"].eq(False)]
    names = {c["index"]: _case(c)["case"] for c in summary.table.to_dict("records")}
    return [
        {
            "name": name,
            "severity": severity,
            "remedy": group.sort_values("value", ascending=False, kind="stable")["remedy"].iloc[0],
            "cases": [(names[c["index"]], c["detail"]) for c in group.to_dict("records")],
        }
        for (severity, name), group in sorted(
            failed.groupby(["severity", "name"], sort=False),
            key=lambda each: SEVERITIES.index(each[0][0]),
        )
    ]


def _checks(summary: Summary) -> list[View]:
    """For each check: how many cases passed, failed and were not measured."""
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


def _as_measured(name: str, table: View, cases: pd.DataFrame) -> View:
    """The scenario with the loads and lengths of its cases, which options may have replaced."""
    own = cases[cases["scenario"].eq(name)]
    values = {
        key: [int(value) if value == int(value) else value for value in own[key].dropna().unique()]
        for key in ("users", "rate", "duration_s")
    }
    return table | {
        key: found[0] if len(found) == 1 else found
        for key, found in values.items()
        if found and key in table
    }


def _named(scenarios: Any) -> list[tuple[str, Any]]:
    if isinstance(scenarios, dict):
        return list(scenarios.items())
    return [(str(s.get("name", number)), s) for number, s in enumerate(scenarios or [], 1)]
