"""Figures of trade-offs: latency against throughput as the load grows, one user's speed against
the machine's, and each metric against the best. A point is a mean over valid runs. Every line has
its name beside it, since colours repeat.
"""

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from analysis.formatting import format_number, unit_of
from analysis.metrics import METRICS
from analysis.plots.style import (
    STYLE,
    WIDTH,
    Picture,
    label_system,
    looks_by_name,
    set_log_axis,
    wrap_name,
)
from analysis.plots.vector import Mark
from analysis.stats import estimate_mean
from analysis.summary import Comparison, Sweep

IDENTITY = ["server", "engine", "users", "rate", "runs"]
WORST = 10.0  # times the best: the heat map's darkest colour


def draw_curve(sweep: Sweep, stem: str) -> Picture:
    """P99 of a latency (`stem`: ttft or e2e) over output throughput, or over the demand
    (requests/s) of open loops: one line per system through its loads, with larger markers for
    higher loads. A figure has one percentile: P95 or P50 where fewer than half of the points have a
    P99. Points without a finite number are not drawn.
    """
    names = [f"{stem}_p{p}_s" for p in (99, 95, 50)]
    points = sweep.points
    x = "rate" if sweep.is_open else "output_tokens_per_s"
    y = next((n for n in names if np.isfinite(points[n]).mean() >= 0.5), names[-1])
    with rc_context(STYLE):
        figure, axes = _square(points)
        shown = points.assign(y=1000 * points[y])
        beside = "" if sweep.is_open else ", {x} tokens/s"
        marks = _lines(axes, shown, x, "y", f"{METRICS[y].label} {{y}} ms{beside}")
        highest = points.loc[np.isfinite(points[x]), x].max()
        axes.set_xlim(0, 1.04 * highest if highest > 0 else 1)  # whole markers at the right edge
        axes.set_xlabel("demand, requests/s" if sweep.is_open else "output tokens/s of the machine")
        axes.set_ylabel(f"{METRICS[y].label}, ms (log)")
        set_log_axis(axes, axes.yaxis)
        marks += _names(axes, shown, x, "y")
    columns = [*IDENTITY, *([] if sweep.is_open else [x]), *names]
    return Picture(figure, points[columns], marks)


def draw_pareto(sweep: Sweep) -> Picture:
    """A user's tokens/s against the machine's. The grey stairs are the frontier: points that no
    other point beats in both (by means; points whose intervals overlap may change places).
    """
    points, x, y = sweep.points, "user_tokens_per_s", "output_tokens_per_s"
    best = pareto_frontier(points[x], points[y])
    with rc_context(STYLE):
        figure, axes = _square(points)
        edge = points[best].sort_values(x)
        axes.step(edge[x], edge[y], where="pre", color="#999999", lw=5, alpha=0.4, zorder=1)
        marks = _lines(axes, points, x, y, "{x} tokens/s per user, {y} of the machine")
        for axis, label in (
            (axes.xaxis, "output tokens/s per user (1 / TPOT P50)"),
            (axes.yaxis, "output tokens/s of the machine"),
        ):
            set_log_axis(axes, axis)
            axis.set_label_text(f"{label} (log)")
        marks += _names(axes, points, x, y)
    data = points[[*IDENTITY, x, y, "ttft_p50_s"]].assign(on_frontier=best)
    return Picture(figure, data, marks)


def pareto_frontier(x: pd.Series, y: pd.Series) -> pd.Series:
    """True where no other point is at least as high in both and higher in one. A point without a
    number is not on the frontier.
    """
    a, b = x.to_numpy(), y.to_numpy()
    beaten = (a >= a[:, None]) & (b >= b[:, None]) & ((a > a[:, None]) | (b > b[:, None]))
    return pd.Series(~beaten.any(axis=1) & np.isfinite(a) & np.isfinite(b), index=x.index)


def relative_values(comparison: Comparison, names: tuple[str, ...]) -> pd.DataFrame:
    """How many times worse than the best, by means over runs: one row per system with a number, one
    column per metric with a better direction and any number. 1 is the best, nan is not measured,
    and inf stands for a failure, and for any other number where the best is 0.
    """
    drawn = [s for s in comparison.systems if len(s.valid)]
    means = pd.DataFrame(
        {n: [estimate_mean(s.valid[n]).mean for s in drawn] for n in names if METRICS[n].better},
        index=[s.name for s in drawn],
    )
    worse = {}
    for name, column in means.dropna(axis="columns", how="all").items():
        higher = METRICS[str(name)].better == "higher"
        best = column.max() if higher else column.min()
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = best / column if higher else column / best
        worse[name] = ratio.where(column != best, 1.0).where(column.notna())
    return pd.DataFrame(worse, index=means.index)


def draw_heat_map(comparison: Comparison, names: tuple[str, ...]) -> Picture:
    """Systems x metrics: how many times worse than the best of this comparison. Darker is
    worse.
    """
    worse = relative_values(comparison, names)
    systems = {s.name: s.valid for s in comparison.systems}
    marks: list[Mark] = []
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(2.2 + 0.52 * len(worse.columns), 1.6 + 0.3 * len(worse)))
        axes = figure.subplots()
        axes.imshow(worse.clip(1, WORST), norm=LogNorm(1, WORST), cmap="Oranges", aspect="auto")
        for (row, column), value in np.ndenumerate(worse.to_numpy()):
            text = (
                "–"
                if np.isnan(value)
                else (
                    "∞"
                    if np.isinf(value)
                    else "1"
                    if value == 1
                    else f"{value:.{1 if value < 9.95 else 0}f}"
                )
            )
            name, metric = str(worse.index[row]), METRICS[str(worse.columns[column])]
            mean = metric.scale * estimate_mean(systems[name][metric.name]).mean
            number = f"{metric.label} {format_number(mean)} {unit_of(metric.name)}".strip()
            relative = "the best" if value == 1 else f"{text} times the best"
            if not np.isnan(value):
                point = (float(column), float(row), f"{number}, {relative}")
                marks.append(Mark(axes, (), label_system(name), [point]))
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=9,
                weight="bold" if value == 1 else "normal",
                color="white" if value > 6 else "black",
            )
        axes.set_yticks(range(len(worse)), [wrap_name(name) for name in worse.index])
        axes.set_xticks(
            range(len(worse.columns)),
            [METRICS[str(n)].label for n in worse.columns],
            rotation=40,
            ha="left",
            rotation_mode="anchor",
        )
        axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        axes.spines[:].set_visible(False)
    rows = [
        s.valid[["server", "engine"]]
        .iloc[[0]]
        .assign(**{n: estimate_mean(s.valid[n]).mean for n in names})
        for s in comparison.systems
        if len(s.valid)
    ]
    data = pd.concat(rows, ignore_index=True)
    return Picture(figure, data.join(worse.reset_index(drop=True).add_suffix(" / best")), marks)


def _square(points: pd.DataFrame) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(1.15 * WIDTH, max(4.2, 1 + 0.2 * points["system"].nunique())))
    return figure, figure.subplots()


def _looks(points: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The look of each name as in all figures, and a marker, since one load makes no line."""
    return {
        name: look | {"marker": "osD^vP*"[i // 8 % 7]}
        for i, (name, look) in enumerate(looks_by_name(points["system"]).items())
    }


def _lines(axes: Axes, points: pd.DataFrame, x: str, y: str, text: str) -> list[Mark]:
    """Draws a line per system. `text` says what a point shows, with {x} and {y}."""
    looks = _looks(points)
    marks: list[Mark] = []
    several = points["system"].nunique() > 1
    for name, own in points[np.isfinite(points[x]) & np.isfinite(points[y])].groupby("system"):
        look = looks[str(name)]
        line = axes.plot(own[x], own[y], lw=1.2, **look | {"marker": ""})
        dots = axes.scatter(
            own[x],
            own[y],
            s=18 + 60 * np.linspace(0, 1, len(own)) if len(own) > 1 else 45,
            marker=look["marker"],
            color=look["color"],
            edgecolor="white",
            linewidth=0.5,
            zorder=3,
        )
        values = [
            (p[x], p[y], text.format(x=format_number(p[x]), y=format_number(p[y])) + _at(p))
            for p in own.to_dict("records")
        ]
        label = label_system(str(name))
        marks.append(Mark(axes, [*line, dots], label, values, label if several else ""))
    return marks


def _at(point: dict[Hashable, Any]) -> str:
    """The load of a point, in words."""
    if math.isfinite(point["rate"]):
        return f" at {point['rate']:g} requests/s"
    return f" at {point['users']:.0f} users" if math.isfinite(point["users"]) else ""


def _names(axes: Axes, points: pd.DataFrame, x: str, y: str) -> list[Mark]:
    """Writes each line's name to the right of the axes, as near to the height of its last point as
    there is room, with a thin line to that point.
    """
    looks = _looks(points)
    marks: list[Mark] = []
    several = points["system"].nunique() > 1
    last = (
        points[np.isfinite(points[x]) & np.isfinite(points[y])].groupby("system", sort=False).last()
    )
    if last.empty:
        return []
    place = axes.transData.transform(last[[x, y]].to_numpy(dtype="float64"))
    last["at"] = axes.transAxes.inverted().transform(place)[:, 1]
    last = last.sort_values("at")
    step = min(0.055, 1 / len(last))
    # pushed up
    at = np.maximum.accumulate(
        last["at"].clip(lower=0) - step * np.arange(len(last))
    ) + step * np.arange(len(last))
    at = np.minimum(at, 1 - step * np.arange(len(last))[::-1])  # and down from the top again
    for (name, row), height in zip(last.iterrows(), at, strict=True):
        note = axes.annotate(
            wrap_name(str(name)),
            (row[x], row[y]),
            (1.04, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": looks[str(name)]["color"],
                "lw": 0.6,
                "alpha": 0.7,
                "shrinkA": 1,
                "relpos": (0, 0.5),
            },
        )
        artists = [note, *([note.arrow_patch] if note.arrow_patch else [])]
        marks.append(Mark(axes, artists, "", [], label_system(str(name)) if several else ""))
    return marks
