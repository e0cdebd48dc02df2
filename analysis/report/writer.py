"""A campaign's folder -> report.html, report.md, figures/*.png and metrics.csv in it, and the
headline in the terminal.
"""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import markupsafe

from analysis import dataset, formatting, stats
from analysis.conclusions import describe_result
from analysis.dataset import InputError
from analysis.hardware import NO_COST, MachineCost
from analysis.metrics import METRICS
from analysis.report import capacity_section, cost_section, noise_floor_section, profile_section
from analysis.report.comparison_section import sweep_view
from analysis.summary import Summary, build_comparisons, build_sweeps, summarise
from analysis.templating import TEMPLATES, View, render_markdown, render_page

TITLES = {
    "page": "Which server should run this model?",
    "validity": "Can these numbers be believed?",
    "manifest": "How it was measured",
}
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
    """Makes the report of a campaign (default: the newest) into its folder and returns what it
    shows. Raises InputError.
    """
    campaign = dataset.read_campaign(folder, max_errors)
    if campaign.published:
        raise InputError(
            f"{campaign.folder} is published without its requests: its report is report.md there;"
            " run the campaign again to make another"
        )
    summary = summarise(campaign, slo, machine_cost)
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
        sweep_view(summary, sweep, number)
        for number, sweep in enumerate(build_sweeps(comparisons), 1)
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
        "warnings": list_warnings(summary),
        "titles": TITLES,
        "capacity": capacity,
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
        "profile": profile_section.profile_view(summary),
        "concerns": list_concerns(summary),
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
        "notes": list(dict.fromkeys(_notes(summary))),
    }


def list_warnings(summary: Summary) -> list[str]:
    """What holds of the campaign as a whole, in whole sentences."""
    manifest = summary.campaign.data.get("manifest") or {}
    unfinished = summary.table["state"].isin(["running", "planned"]).any()
    return [
        text
        for text, applies in ((UNFINISHED, unfinished), (UNCOMMITTED, manifest.get("dirty")))
        if applies
    ]


def _notes(summary: Summary) -> Iterator[str]:
    """Those of all cases, but for what stands in the section on their endpoint."""
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
    """What did not pass, once for each check and severity, with the cases it is about: the worst
    first, and of these the causes first.
    """
    failed = summary.checks[summary.checks["ok"].eq(False)]
    names = {c["index"]: _case(c)["case"] for c in summary.table.to_dict("records")}
    return [
        {
            "name": name,
            "severity": severity,
            "remedy": group["remedy"].iloc[0],
            "cases": [(names[c["index"]], c["detail"]) for c in group.to_dict("records")],
        }
        for (severity, name), group in sorted(
            failed.groupby(["severity", "name"], sort=False),
            key=lambda each: SEVERITIES.index(each[0][0]),
        )
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
