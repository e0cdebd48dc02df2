"""Figures of one comparison (cases of the same traffic), drawn from a Summary; each function returns a matplotlib Figure.

Colours are Okabe and Ito's, which people with any colour vision tell apart; line style and labels tell the same again.
"""

import io
import math
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis import statistics
from analysis.summary import Comparison, Summary, System, cell

COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#B8A800"]
DASHES = ["-", "--", ":", "-."]
STYLE: Any = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
              "figure.constrained_layout.use": True, "font.size": 10, "axes.axisbelow": True}  # fmt: skip
WIDTH = 6.8  # inches: two beside each other on a page, and one readable on a phone


def looks(comparison: Comparison) -> list[tuple[System, str, dict[str, Any]]]:
    """(system, its label, how its lines look) of the systems with a valid case. The look follows the name and not the rank,
    so that it is the same in all figures. A label is text: no "$" in a name begins a formula."""
    order = sorted(s.name for s in comparison.systems)
    style = {name: {"color": COLOURS[i % 8], "linestyle": DASHES[i // 8 % 4]} for i, name in enumerate(order)}
    return [(s, s.name.replace("$", r"\$"), style[s.name]) for s in comparison.systems if len(s.valid)]


def throughput(comparison: Comparison) -> Figure:
    """Bars of output throughput (tokens/s) with 95% intervals over runs; dots are the runs."""
    drawn = looks(comparison)
    with rc_context(STYLE):
        figure, axes = _axes(0.9 + 0.45 * len(drawn))
        for row, (system, _, look) in enumerate(drawn):
            runs = system.valid["output_tokens_per_s"]
            e = statistics.estimate(runs)
            axes.barh(row, e.mean, color=look["color"], alpha=0.85, height=0.6)
            axes.plot(runs, np.full(len(runs), row), "o", color="white", markeredgecolor="black", markersize=4)
            if not math.isnan(e.half):
                axes.errorbar(e.mean, row, xerr=e.half, color="black", capsize=4)
            axes.annotate(f"{cell('output_tokens_per_s', system.valid)}", (max(e.interval[1], runs.max()), row), xytext=(6, 0),
                          textcoords="offset points", va="center")  # fmt: skip
        axes.set_yticks(range(len(drawn)), [label for _, label, _ in drawn])
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("output tokens/s in the window (line: 95% interval over runs)")
    return figure


def latency_cdf(summary: Summary, comparison: Comparison) -> Figure:
    """Cumulative share of requests by TTFT and by E2E, a line a run: runs are never pooled. A curve that ends below 1 has failures."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2 + 0.2 * len(comparison.systems)))
        for axes, column, latency in zip(figure.subplots(1, 2, sharey=True), ("ttft_s", "e2e_s"), ("TTFT", "E2E"), strict=True):
            for system, label, look in looks(comparison):
                for run, index in enumerate(system.valid.index):
                    values = np.sort(summary.latencies[index][column].dropna())
                    share = np.arange(1, len(values) + 1) / len(values)
                    known = np.isfinite(values) & (values > 0)
                    axes.step(values[known] * 1000, share[known], where="post", lw=1.4, label=None if run else label, **look)
            _log(axes, axes.xaxis)
            axes.set_xlabel(f"{latency}, ms (log)")
            axes.set_ylim(0, 1.02)
        figure.axes[0].set_ylabel("share of requests")
        _legend(figure)
    return figure


def tail(comparison: Comparison) -> Figure:
    """P50, P95 and P99 of TTFT and E2E, mean over runs with 95% intervals; what has no number is not drawn."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2 + 0.2 * len(comparison.systems)))
        for axes, stem, latency in zip(figure.subplots(1, 2), ("ttft", "e2e"), ("TTFT", "E2E"), strict=True):
            drawn = looks(comparison)
            for i, (system, label, look) in enumerate(drawn):
                found = [statistics.estimate(system.valid[f"{stem}_p{p}_s"]) for p in (50, 95, 99)]
                x = np.arange(3) + (i - (len(drawn) - 1) / 2) * min(0.12, 0.7 / len(drawn))
                y = np.array([e.mean for e in found]) * 1000
                half = np.nan_to_num([e.half for e in found]) * 1000
                shown = np.isfinite(y) & (y > 0)
                # A log axis has no zero: an interval that reaches it is drawn to a thousandth of the value.
                low = np.minimum(half, y * 0.999)
                axes.errorbar(x[shown], y[shown], yerr=[low[shown], half[shown]], marker="os^Dv"[i % 5], markersize=5, capsize=3,
                              lw=1.2, label=label, **look)  # fmt: skip
            axes.set_xticks(range(3), ["P50", "P95", "P99"])
            axes.set_xlim(-0.5, 2.5)
            _log(axes, axes.yaxis)
            axes.set_ylabel(f"{latency}, ms (log)")
        _legend(figure)
    return figure


def timeline(summary: Summary, comparison: Comparison) -> Figure:
    """Tokens/s, CPU cores with GPU utilisation, and requests in flight over time, of the first valid run of each system; the
    window is shaded. Requests that the client waits for and the server does not know of stand in its socket's queue."""
    drawn = looks(comparison)
    with rc_context(STYLE):
        figure = Figure(figsize=(1.3 * WIDTH, 0.6 + 1.7 * max(len(drawn), 1)))
        grid = figure.subplots(max(len(drawn), 1), 3, sharex=True, squeeze=False)
        for row, (system, label, look) in zip(grid, drawn, strict=False):
            case = system.valid.iloc[0]
            frame = summary.timelines[case["index"]]
            row[0].plot(frame["time_s"], frame["tokens_per_s"], color=look["color"])
            row[0].set_title(label, loc="left", fontsize=10)
            row[0].set_ylim(bottom=0)
            row[0].set_ylabel("tokens/s")
            row[1].plot(frame["time_s"], frame["server_cores"], color=look["color"], label="server CPU, cores")
            row[1].plot(frame["time_s"], frame["load_cores"], color="#777777", lw=1, ls="--", label="load generator CPU, cores")
            row[1].set_ylim(bottom=0)
            row[1].set_ylabel("cores")
            if frame["gpu_percent"].notna().any():
                gpu = row[1].twinx()
                gpu.plot(frame["time_s"], frame["gpu_percent"], color="#D55E00", lw=1, ls=":")
                gpu.set_ylim(0, 105)
                gpu.set_ylabel("GPU %")
                gpu.grid(visible=False)
                row[1].plot([], [], color="#D55E00", ls=":", label="GPU, %")
            row[2].plot(frame["time_s"], frame["in_flight"], color="#777777", lw=1, ls="--", label="requests that the client waits for")
            for what, dash in (("running", "-"), ("waiting", ":")):  # not every bin has an answer: a busy sync worker lets it wait
                said = frame[["time_s", f"server_{what}"]].dropna()
                row[2].plot(said["time_s"], said[f"server_{what}"], color=look["color"], ls=dash, label=f"{what}, the server says")
            row[2].set_ylim(bottom=0)
            row[2].set_ylabel("requests")
            for axes in row:
                axes.axvspan(0, case["window_end_s"] - case["window_start_s"], color="#999999", alpha=0.12, lw=0)
        for axes in grid[-1]:
            axes.set_xlabel("seconds since the window opened")
        _legend(figure, columns=3)
    return figure


def png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120, facecolor="white", metadata={"Software": None})
    return data.getvalue()


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, max(height, 1.6)))
    return figure, figure.subplots()


def _log(axes: Axes, axis: Axis) -> None:
    """A logarithmic axis with plain numbers, wide enough that one of them is always on it."""
    is_x = axis is axes.xaxis
    low, high = (axes.dataLim.intervalx if is_x else axes.dataLim.intervaly).tolist()
    (axes.set_xscale if is_x else axes.set_yscale)("log")
    if 0 < low <= high < math.inf:
        (axes.set_xlim if is_x else axes.set_ylim)(low / 2, high * 2)
    few = 0 < low <= high < 30 * low  # over more decades the labels of 2 and 5 would run into each other
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1, 3)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, columns: int = 2) -> None:
    """One legend for all axes, each label once."""
    found = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if found:
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
