"""The figure of stored baselines over time."""

from datetime import datetime

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from analysis import formatting, stats
from analysis.metrics import METRICS
from analysis.plots.style import COLOURS, STYLE, WIDTH, Picture
from analysis.summary import Summary

METRICS_OVER_TIME = ("output_tokens_per_s", "e2e_p50_s", "e2e_p99_s")


def draw_history(baselines: list[Summary]) -> Picture:
    """Baselines of one machine class over time, one row of axes per metric."""
    rows = []
    for found in baselines:
        data = found.campaign.data
        created = datetime.fromisoformat(data["created_utc"])
        for (server, engine, scenario), cases in found.table.groupby(
            ["server", "engine", "scenario"], sort=False
        ):
            for name in METRICS_OVER_TIME:
                e = stats.estimate_mean(cases[name])
                rows.append(
                    {
                        "baseline": data["baseline"],
                        "created": created,
                        "system": f"{server} ({engine}), {scenario}",
                        "metric": name,
                        "mean": e.mean,
                        "half": e.half,
                    }
                )
    frame = pd.DataFrame(rows)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.1 * len(METRICS_OVER_TIME) + 0.6))
        axes = figure.subplots(len(METRICS_OVER_TIME), sharex=True)
        for each, name in zip(axes, METRICS_OVER_TIME, strict=True):
            for i, (system, own) in enumerate(
                frame[frame["metric"].eq(name)].groupby("system", sort=True)
            ):
                scale = METRICS[name].scale
                each.errorbar(
                    own["created"],
                    own["mean"] * scale,
                    own["half"].fillna(0) * scale,
                    marker="o",
                    capsize=3,
                    lw=1.2,
                    color=COLOURS[i % len(COLOURS)],
                    label=str(system).replace("$", r"\$"),
                )
            each.set_title(
                f"{METRICS[name].label}, {formatting.unit_of(name)}", loc="left", fontsize=10
            )
            each.set_ylim(bottom=0)
        figure.autofmt_xdate()
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=8
        )
    return Picture(figure, frame)
