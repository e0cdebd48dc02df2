"""Figures of one comparison (cases of the same traffic), drawn from a Summary; each function
returns a Picture: matplotlib's figure and the data that it shows. In a notebook it shows itself,
and `.data` is what to go on from. Those of several loads: tradeoffs.py.

Colours are Okabe and Ito's, which people with any colour vision tell apart; line style, rows and
labels tell the same again, since twenty servers have more names than there are colours.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import stats
from analysis.formatting import format_estimate
from analysis.plots.style import (
    COLOURS,
    MANY,
    STYLE,
    WIDTH,
    Drawn,
    Picture,
    add_legend,
    line_looks,
    panel_grid,
    set_log_axis,
    single_axes,
)
from analysis.summary import Comparison, Summary

# where a CDF is drawn: a line is no finer on paper
SHARES = np.unique(np.concatenate([np.linspace(0.01, 1, 100), [0.995, 0.999]]))
MARKS = {50: "o", 95: "s", 99: "D"}


def draw_throughput(comparison: Comparison) -> Picture:
    """Bars of output throughput (tokens/s) with 95% intervals over runs; dots are the runs."""
    drawn = line_looks(comparison)
    with rc_context(STYLE):
        figure, axes = single_axes(0.9 + (0.45 if len(drawn) <= MANY else 0.3) * len(drawn))
        for row, (system, _, look) in enumerate(drawn):
            runs = system.valid["output_tokens_per_s"]
            e = stats.estimate_mean(runs)
            axes.barh(row, e.mean, color=look["color"], alpha=0.85, height=0.6)
            axes.plot(
                runs,
                np.full(len(runs), row),
                "o",
                color="white",
                markeredgecolor="black",
                markersize=4,
            )
            if not math.isnan(e.half):
                axes.errorbar(e.mean, row, xerr=e.half, color="black", capsize=4)
            axes.annotate(
                f"{format_estimate('output_tokens_per_s', system.valid)}",
                (max(e.interval[1], runs.max()), row),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_yticks(range(len(drawn)), [label for _, label, _ in drawn])
        axes.invert_yaxis()
        axes.margins(x=0.15, y=0.01)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("output tokens/s in the window (line: 95% interval over runs)")
    data = [s.valid[["server", "engine", "repetition", "output_tokens_per_s"]] for s, _, _ in drawn]
    return Picture(figure, pd.concat(data, ignore_index=True) if data else pd.DataFrame())


def latency_shares(summary: Summary, comparison: Comparison) -> pd.DataFrame:
    """server, engine, repetition, share, ttft_s, e2e_s: the latency (nearest-rank, +inf is a
    failure) that this share of the window's requests did not exceed, a run at a time: runs are
    never pooled.
    """
    frames = []
    for system in comparison.systems:
        for run in system.valid.to_dict("records"):
            found = {
                "server": system.server,
                "engine": system.engine,
                "repetition": run["repetition"],
                "share": SHARES,
            }
            for column in ("ttft_s", "e2e_s"):
                values = summary.latencies[run["index"]][column].dropna()
                found[column] = (
                    np.percentile(values, 100 * SHARES, method="inverted_cdf")
                    if len(values)
                    else math.nan
                )
            frames.append(pd.DataFrame(found))
    columns = ["server", "engine", "repetition", "share", "ttft_s", "e2e_s"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def draw_latency_cdf(summary: Summary, comparison: Comparison) -> Picture:
    """Cumulative share of requests by TTFT and by E2E, a line a run. A curve that ends below 1 has
    failures. Of many systems each has a panel of its own, in which the others are grey.
    """
    drawn, data = line_looks(comparison), latency_shares(summary, comparison)
    lines = {
        s.name: [
            own
            for _, own in data[(data["server"] == s.server) & (data["engine"] == s.engine)].groupby(
                "repetition"
            )
        ]
        for s, _, _ in drawn
    }
    with rc_context(STYLE):
        figure = _panels(drawn, lines) if len(drawn) > MANY else _overlay(drawn, lines)
    return Picture(figure, data)


def _overlay(drawn: list[Drawn], lines: dict[str, list[pd.DataFrame]]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.2 + 0.2 * len(drawn)))
    for axes, column, latency in zip(
        figure.subplots(1, 2, sharey=True), ("ttft_s", "e2e_s"), ("TTFT", "E2E"), strict=True
    ):
        for system, label, look in drawn:
            for run, own in enumerate(lines[system.name]):
                _steps(axes, own, column, lw=1.4, label=None if run else label, **look)
        set_log_axis(axes, axes.xaxis)
        axes.set_xlabel(f"{latency}, ms (log)")
        axes.set_ylim(0, 1.02)
    figure.axes[0].set_ylabel("share of requests")
    add_legend(figure)
    return figure


def _panels(drawn: list[Drawn], lines: dict[str, list[pd.DataFrame]], columns: int = 4) -> Figure:
    figure, grid = panel_grid(
        math.ceil(len(drawn) / columns),
        columns,
        1.5 * WIDTH,
        1.5,
        gap=0.25,
        sharex=True,
        sharey=True,
    )
    for axes, (system, label, _) in zip(grid.flat, drawn, strict=False):
        for other, _, _ in drawn:
            _steps(axes, lines[other.name][0], "e2e_s", color="#999999", lw=0.5, alpha=0.5)
        for run, own in enumerate(lines[system.name]):
            _steps(
                axes,
                own,
                "ttft_s",
                color=COLOURS[3],
                ls="--",
                lw=1.6,
                label=None if run else "TTFT",
            )
            _steps(axes, own, "e2e_s", color=COLOURS[0], lw=1.6, label=None if run else "E2E")
        axes.set_title(label, loc="left", fontsize=9)
    for axes in grid.flat[len(drawn) :]:
        axes.set_visible(False)
    grid[0, 0].plot([], [], color="#999999", lw=0.5, label="E2E of the others")
    values = np.concatenate(
        [own[["ttft_s", "e2e_s"]].to_numpy().ravel() for runs in lines.values() for own in runs]
    )
    known = values[np.isfinite(values) & (values > 0)]
    set_log_axis(
        grid[0, 0],
        grid[0, 0].xaxis,
        (1000 * known.min(), 1000 * known.max()) if len(known) else None,
    )
    grid[0, 0].set_ylim(0, 1.02)
    for axes in grid[-1]:
        axes.set_xlabel("ms (log)")
    for axes in grid[:, 0]:
        axes.set_ylabel("share")
    add_legend(figure, columns=3)
    return figure


def _steps(axes: Axes, own: pd.DataFrame, column: str, **look: Any) -> None:
    known = own[np.isfinite(own[column]) & (own[column] > 0)]
    axes.step(known[column] * 1000, known["share"], where="post", **look)


def draw_tail(comparison: Comparison) -> Picture:
    """P50, P95 and P99 of TTFT and E2E, mean over runs with 95% intervals, a row a system; what has
    no number is not drawn.
    """
    drawn = line_looks(comparison)
    rows: list[dict[str, Any]] = []
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.4 + (0.5 if len(drawn) <= MANY else 0.32) * len(drawn)))
        for axes, stem, latency in zip(
            figure.subplots(1, 2, sharey=True), ("ttft", "e2e"), ("TTFT", "E2E"), strict=True
        ):
            for row, (system, _, look) in enumerate(drawn):
                found = {
                    p: stats.estimate_mean(system.valid[f"{stem}_p{p}_s"]) for p in (50, 95, 99)
                }
                rows += [
                    {
                        "server": system.server,
                        "engine": system.engine,
                        "latency": latency,
                        "percentile": p,
                        "mean_s": e.mean,
                        "half_s": e.half,
                        "runs": e.runs,
                    }
                    for p, e in found.items()
                ]
                shown = {p: e for p, e in found.items() if math.isfinite(e.mean) and e.mean > 0}
                axes.plot(
                    [1000 * e.mean for e in shown.values()],
                    [row] * len(shown),
                    color=look["color"],
                    lw=1,
                    alpha=0.6,
                )
                for p, e in shown.items():
                    half = 1000 * (0 if math.isnan(e.half) else e.half)
                    # A log axis has no zero: an interval that reaches it is drawn to a thousandth
                    # of the value.
                    axes.errorbar(
                        1000 * e.mean,
                        row,
                        xerr=[[min(half, 999 * e.mean)], [half]],
                        marker=MARKS[p],
                        markersize=6,
                        capsize=3,
                        color=look["color"],
                        elinewidth=1,
                    )
            means = [
                1000 * r["mean_s"]
                for r in rows
                if r["latency"] == latency and 0 < r["mean_s"] < math.inf
            ]
            # a long interval must not squeeze the rest
            set_log_axis(axes, axes.xaxis, (min(means), max(means)) if means else None)
            axes.set_xlabel(f"{latency}, ms (log)")
        axes = figure.axes[0]
        axes.set_yticks(range(len(drawn)), [label for _, label, _ in drawn])
        axes.set_ylim(len(drawn) - 0.4, -0.6)
        for p, mark in MARKS.items():
            axes.plot([], [], mark, color="#777777", label=f"P{p}")
        add_legend(figure, columns=3)
    return Picture(figure, pd.DataFrame(rows))


def draw_timeline(summary: Summary, comparison: Comparison) -> Picture:
    """Tokens/s, CPU cores with GPU utilisation, and requests in flight over time, of the first
    valid run of each system; the window is shaded. Requests that the client waits for and the
    server does not know of stand in its socket's queue.
    """
    drawn = line_looks(comparison)
    with rc_context(STYLE):
        with_gpu = any(
            summary.timelines[system.valid["index"].iloc[0]]["gpu_percent"].notna().any()
            for system, _, _ in drawn
        )
        room = 0.5 if with_gpu else 0.0  # inches, for the GPU's own scale
        figure, grid = panel_grid(
            max(len(drawn), 1),
            3,
            1.3 * WIDTH + 2 * room,
            1.7 if len(drawn) <= MANY else 1.3,
            0.75 + room,
            sharex=True,
        )
        for row, (system, label, look) in zip(grid, drawn, strict=False):
            case = system.valid.iloc[0]
            frame = summary.timelines[case["index"]]
            row[0].plot(frame["time_s"], frame["tokens_per_s"], color=look["color"])
            row[0].set_title(label, loc="left", fontsize=10)
            row[0].set_ylim(bottom=0)
            row[0].set_ylabel("tokens/s")
            row[1].plot(
                frame["time_s"],
                frame["server_cores"],
                color=look["color"],
                label="server CPU, cores",
            )
            row[1].plot(
                frame["time_s"],
                frame["load_cores"],
                color="#777777",
                lw=1,
                ls="--",
                label="load generator CPU, cores",
            )
            row[1].set_ylim(bottom=0)
            row[1].set_ylabel("cores")
            if frame["gpu_percent"].notna().any():
                gpu = row[1].twinx()
                gpu.plot(frame["time_s"], frame["gpu_percent"], color="#D55E00", lw=1, ls=":")
                gpu.set_ylim(0, 105)
                gpu.set_ylabel("GPU %")
                gpu.grid(visible=False)
                row[1].plot([], [], color="#D55E00", ls=":", label="GPU, %")
            row[2].plot(
                frame["time_s"],
                frame["in_flight"],
                color="#777777",
                lw=1,
                ls="--",
                label="requests that the client waits for",
            )
            # not every bin has an answer: a busy sync worker lets it wait
            for what, dash in (("running", "-"), ("waiting", ":")):
                said = frame[["time_s", f"server_{what}"]].dropna()
                row[2].plot(
                    said["time_s"],
                    said[f"server_{what}"],
                    color=look["color"],
                    ls=dash,
                    label=f"{what}, the server says",
                )
            row[2].set_ylim(bottom=0)
            row[2].set_ylabel("requests")
            for axes in row:
                axes.axvspan(
                    0,
                    case["window_end_s"] - case["window_start_s"],
                    color="#999999",
                    alpha=0.12,
                    lw=0,
                )
        for axes in grid[-1]:
            axes.set_xlabel("seconds since the window opened")
        add_legend(figure, columns=3)
    frames = [
        summary.timelines[s.valid["index"].iloc[0]].assign(
            server=s.server, engine=s.engine, repetition=s.valid["repetition"].iloc[0]
        )
        for s, _, _ in drawn
    ]
    return Picture(figure, pd.concat(frames, ignore_index=True) if frames else pd.DataFrame())
