"""Figures of one comparison (cases of the same traffic), drawn from a Summary. tradeoffs.py has
those of several loads.

Each function returns a Picture: matplotlib's figure and the data that it shows. A notebook displays
it, and `.data` is the start of further analysis.

Colours are Okabe and Ito's, which people with any colour vision can distinguish. Line styles, rows
and labels repeat the distinction, since twenty servers outnumber the colours.
"""

import math
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import stats
from analysis.formatting import format_estimate, format_number
from analysis.plots.style import (
    COLOURS,
    MANY,
    STYLE,
    WIDTH,
    Drawn,
    Picture,
    add_legend,
    label_system,
    line_looks,
    panel_grid,
    set_log_axis,
    single_axes,
)
from analysis.plots.vector import Mark
from analysis.summary import Comparison, Summary

# Where a CDF is drawn: paper shows no finer line.
SHARES = np.unique(np.concatenate([np.linspace(0.01, 1, 100), [0.995, 0.999]]))
NAMED_SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)  # a page shows their values
MARKS = {50: "o", 95: "s", 99: "D"}
MOST_TIMELINES = 12  # more panels take seconds to draw and are not read


def draw_throughput(comparison: Comparison) -> Picture:
    """Bars of output throughput (tokens/s) with 95% intervals over runs; dots are the runs."""
    drawn = line_looks(comparison)
    marks: list[Mark] = []
    with rc_context(STYLE):
        figure, axes = single_axes(0.9 + (0.45 if len(drawn) <= MANY else 0.3) * len(drawn))
        for row, (system, _, look) in enumerate(drawn):
            runs = system.valid["output_tokens_per_s"]
            e = stats.estimate_mean(runs)
            axes.barh(row, e.mean, color=look["color"], alpha=0.85, height=0.6)
            text = format_estimate("output_tokens_per_s", system.valid)
            points = [(e.mean, float(row), f"{text} tokens/s")]
            points += [
                (float(tokens), float(row), f"{format_number(tokens)} tokens/s in run {number}")
                for number, tokens in zip(system.valid["repetition"], runs, strict=True)
                if len(runs) > 1
            ]
            marks.append(Mark(axes, (), label_system(system.name), points))
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
                text,
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
    return Picture(figure, pd.concat(data, ignore_index=True) if data else pd.DataFrame(), marks)


def latency_shares(summary: Summary, comparison: Comparison) -> pd.DataFrame:
    """server, engine, repetition, share, ttft_s, e2e_s: the latency (nearest-rank, +inf is a
    failure) that this share of the window's requests did not exceed. Runs are never pooled.
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
    """Cumulative share of requests by TTFT and by E2E, one line per run. A curve that ends below 1
    has failures. Many systems get one panel each, in which the others are grey.
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
    marks: list[Mark] = []
    with rc_context(STYLE):
        draw = _panels if len(drawn) > MANY else _overlay
        figure = draw(drawn, lines, marks)
    return Picture(figure, data, marks)


def _overlay(drawn: list[Drawn], lines: dict[str, list[pd.DataFrame]], marks: list[Mark]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.2 + 0.2 * len(drawn)))
    for axes, column, latency in zip(
        figure.subplots(1, 2, sharey=True), ("ttft_s", "e2e_s"), ("TTFT", "E2E"), strict=True
    ):
        for system, label, look in drawn:
            for run, own in enumerate(lines[system.name]):
                line = _steps(axes, own, column, lw=1.4, label=None if run else label, **look)
                name = label_system(system.name)
                series = name if len(drawn) > 1 else ""
                marks.append(_share_mark(axes, line, name, own, column, series))
        set_log_axis(axes, axes.xaxis)
        axes.set_xlabel(f"{latency}, ms (log)")
        axes.set_ylim(0, 1.02)
    figure.axes[0].set_ylabel("share of requests")
    add_legend(figure)
    return figure


def _panels(
    drawn: list[Drawn], lines: dict[str, list[pd.DataFrame]], marks: list[Mark], columns: int = 4
) -> Figure:
    figure, grid = panel_grid(
        math.ceil(len(drawn) / columns),
        columns,
        1.5 * WIDTH,
        1.5,
        gap=0.25,
        sharex=True,
        sharey=True,
    )
    # The background of every panel: few points, since there are four hundred lines, and nothing
    # between one line and the next.
    end = pd.DataFrame({"e2e_s": [math.nan], "share": [math.nan]})
    few = [each for s, _, _ in drawn for each in (lines[s.name][0].iloc[::6], end)]
    others = pd.concat(few)[["e2e_s", "share"]].replace(math.inf, math.nan)
    others["e2e_s"] *= 1000
    for axes, (system, label, _) in zip(grid.flat, drawn, strict=False):
        line = axes.plot(others["e2e_s"], others["share"], color="#999999", lw=0.5, alpha=0.5)
        marks.append(Mark(axes, line, "", [], "E2E of the others"))
        for run, own in enumerate(lines[system.name]):
            for column, name, look in (
                ("ttft_s", "TTFT", {"color": COLOURS[3], "ls": "--"}),
                ("e2e_s", "E2E", {"color": COLOURS[0]}),
            ):
                line = _steps(axes, own, column, lw=1.6, label=None if run else name, **look)
                marks.append(_share_mark(axes, line, label_system(system.name), own, column, name))
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


def _steps(axes: Axes, own: pd.DataFrame, column: str, **look: Any) -> Line2D:
    known = own[np.isfinite(own[column]) & (own[column] > 0)]
    return axes.step(known[column] * 1000, known["share"], where="post", **look)[0]


def _share_mark(
    axes: Axes, line: Line2D, name: str, own: pd.DataFrame, column: str, series: str
) -> Mark:
    """Shows a line's values at NAMED_SHARES."""
    points = []
    for share in NAMED_SHARES:
        value = 1000 * own[column].iloc[int(np.abs(own["share"] - share).argmin())]
        latency = column.removesuffix("_s").upper()
        points.append((value, share, f"{latency} of {100 * share:g}% ≤ {format_number(value)} ms"))
    return Mark(axes, [line], f"{name}, run {own['repetition'].iloc[0]}", points, series)


def draw_tail(comparison: Comparison) -> Picture:
    """P50, P95 and P99 of TTFT and E2E, mean over runs with 95% intervals, one row per system.
    Percentiles without a number are not drawn.
    """
    drawn = line_looks(comparison)
    marks: list[Mark] = []
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
                    # A log axis has no zero: an interval that reaches it ends at a thousandth of
                    # the value.
                    parts = axes.errorbar(
                        1000 * e.mean,
                        row,
                        xerr=[[min(half, 999 * e.mean)], [half]],
                        marker=MARKS[p],
                        markersize=6,
                        capsize=3,
                        color=look["color"],
                        elinewidth=1,
                    )
                    text = format_estimate(f"{stem}_p{p}_s", system.valid)
                    point = (1000 * e.mean, float(row), f"{latency} P{p} {text} ms")
                    marks.append(
                        Mark(
                            axes,
                            parts.get_children(),
                            label_system(system.name),
                            [point],
                            series=f"P{p}",
                        )
                    )
            means = [
                1000 * r["mean_s"]
                for r in rows
                if r["latency"] == latency and 0 < r["mean_s"] < math.inf
            ]
            # A long interval must not squeeze the rest.
            set_log_axis(axes, axes.xaxis, (min(means), max(means)) if means else None)
            axes.set_xlabel(f"{latency}, ms (log)")
        axes = figure.axes[0]
        axes.set_yticks(range(len(drawn)), [label for _, label, _ in drawn])
        axes.set_ylim(len(drawn) - 0.4, -0.6)
        grey = [
            Mark(axes, axes.plot([], [], mark, color="#777777", label=f"P{p}"), "", [], f"P{p}")
            for p, mark in MARKS.items()
        ]
        add_legend(figure, columns=3)
    return Picture(figure, pd.DataFrame(rows), [*grey, *marks])


def draw_timeline(summary: Summary, comparison: Comparison) -> Picture:
    """Tokens/s, CPU cores with GPU utilisation, and requests in flight over time, for the first
    valid run of each system. The window is shaded. Requests that the client waits for and the
    server does not count stand in its socket's queue. Of many systems only the best are drawn.
    """
    drawn = line_looks(comparison)[:MOST_TIMELINES]
    marks: list[Mark] = []
    with rc_context(STYLE):
        with_gpu = any(
            summary.timelines[system.valid["index"].iloc[0]]["gpu_percent"].notna().any()
            for system, _, _ in drawn
        )
        room = 0.5 if with_gpu else 0.0  # inches for the GPU's own scale
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
            place = partial(_plot_over_time, marks, label_system(system.name), frame)
            place(row[0], "tokens_per_s", "tokens/s", color=look["color"])
            row[0].set_title(label, loc="left", fontsize=10)
            row[0].set_ylabel("tokens/s")
            grey = {"color": "#777777", "lw": 1, "ls": "--"}
            place(row[1], "server_cores", "server CPU, cores", color=look["color"])
            place(row[1], "load_cores", "load generator CPU, cores", **grey)
            row[1].set_ylabel("cores")
            if frame["gpu_percent"].notna().any():
                gpu = row[1].twinx()
                place(gpu, "gpu_percent", "GPU, %", color="#D55E00", lw=1, ls=":")
                gpu.set_ylim(0, 105)
                gpu.set_ylabel("GPU %")
                gpu.grid(visible=False)
            place(row[2], "in_flight", "requests that the client waits for", **grey)
            # Not every bin has a value: a busy synchronous worker lets the scrape wait.
            for what, dash in (("running", "-"), ("waiting", ":")):
                column, text = f"server_{what}", f"requests that the server reports as {what}"
                known = frame.dropna(subset=[column])
                _plot_over_time(
                    marks,
                    label_system(system.name),
                    known,
                    row[2],
                    column,
                    text,
                    color=look["color"],
                    ls=dash,
                )
            row[2].set_ylabel("requests")
            for axes in row:
                axes.set_ylim(bottom=0)
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
    data = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return Picture(figure, data, marks)


def _plot_over_time(
    marks: list[Mark],
    name: str,
    frame: pd.DataFrame,
    axes: Axes,
    column: str,
    series: str,
    **look: Any,
) -> None:
    """Draws a column of Summary.timelines, if it has any value. A page shows every few values."""
    known = frame[["time_s", column]].dropna()
    if known.empty:
        return
    (line,) = axes.plot(frame["time_s"], frame[column], label=series, **look)
    points = [
        (time_s, value, f"{format_number(value)} at {time_s:.0f} s")
        for time_s, value in known.iloc[:: 1 + len(known) // 30].itertuples(index=False)
    ]
    marks.append(Mark(axes, [line], f"{name}, {series}", points, series))
