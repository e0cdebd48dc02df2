"""The report's section "Why": the parts of each server's latency."""

import markupsafe
import numpy as np

from analysis import formatting
from analysis.attribution import IN_ENGINE, PARTS, attribute_latency, visible_parts
from analysis.dataset import Campaign
from analysis.formatting import format_number
from analysis.metrics import METRICS
from analysis.plots.latency_parts import draw_latency_parts
from analysis.summary import Comparison, Summary
from analysis.templating import View, escape_markdown


def kept_view(campaign: Campaign, comparison: Comparison) -> View:
    """The section as report.md of a published campaign has it: {kept: Markdown, picture: None}."""
    title = f"## {escape_markdown(comparison.title)}\n"
    own = (campaign.folder / "report.md").read_text().partition(title)[2].partition("\n## ")[0]
    _, heading, text = own.partition("### Why\n")
    return {"kept": markupsafe.Markup(f"{heading}{text.rstrip()}\n"), "picture": None}  # noqa: S704 (it is ours)


def attribution_view(summary: Summary, comparison: Comparison) -> View:
    """{sentences: [(name, sentence)], heads, rows: [(name, which, cells)] in ms, engine_heads:
    [(label, unit)], engine: [(name, cells)], coarse: names of systems whose server reported no
    parts, picture: None without a bar} for the templates.
    """
    attributions = attribute_latency(summary, comparison)
    names = visible_parts(attributions)
    rows = []
    for a in attributions:
        for bar in a.bars:
            times = [bar.e2e_s, *(bar.parts.get(name, np.nan) for name in names)]
            rows.append(
                (
                    a.system.name,
                    bar.which,
                    [f"{bar.requests:,}", *(format_number(1e3 * seconds) for seconds in times)],
                )
            )
    return {
        "kept": "",
        "sentences": [(a.system.name, a.sentence) for a in attributions],
        "rows": rows,
        "picture": draw_latency_parts(attributions) if rows else None,
        "heads": ["requests", "mean E2E", *(PARTS[name].label for name in names)],
        "coarse": [
            a.system.name for a in attributions if any(not bar.has_server_phases for bar in a.bars)
        ],
        "engine_heads": [(METRICS[m].label, formatting.unit_of(m)) for m in IN_ENGINE],
        "engine": [
            (a.system.name, [formatting.format_estimate(m, a.system.valid) for m in IN_ENGINE])
            for a in attributions
        ],
    }
