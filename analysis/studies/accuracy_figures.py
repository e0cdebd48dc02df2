"""Draws the figures of the accuracy page."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from analysis.plots.style import COLOURS, WIDTH, add_legend
from analysis.stats import NAN
from analysis.studies.accuracy_tables import cpu_costs, list_clients, list_modes
from analysis.studies.accuracy_targets import (
    TARGETS,
    ExperimentResult,
    ResultAt,
    format_target_value,
)


def draw_accuracy(found: ExperimentResult) -> Figure:
    figure = Figure(figsize=(1.5 * WIDTH, 3.4))
    left, right = figure.subplots(1, 2)
    for axes, name, unit, label, colour in (
        (left, "ttft_error_mean_s", 1e3, "mean", COLOURS[0]),
        (left, "ttft_error_p99_s", 1e3, "P99", COLOURS[1]),
        (right, "itl_error_p99_s", 1e6, "P99", COLOURS[1]),
    ):
        for stamps, marker, beside in (
            ("kernel", "o", ""),
            ("user", "x", ", without the kernel's stamps"),
            ("C program", "^", ", C program"),
        ):
            levels = [level for level in found["levels"] if level["stamps"] == stamps]
            draw_line(axes, levels, "users", name, unit, label + beside, colour, marker)
        draw_bounds(axes, "accuracy", name, "users", unit, colour)
    finish_axes(left, "streams of 100 tokens/s each", "TTFT error, ms")
    finish_axes(right, "streams of 100 tokens/s each", "error of a single gap, us")
    add_legend(figure, size=8)
    return figure


def draw_open_loop(found: ExperimentResult) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.2))
    axes = figure.subplots()
    for name, colour, label in (
        ("send_lag_p50_s", COLOURS[0], "P50"),
        ("send_lag_p99_s", COLOURS[1], "P99"),
    ):
        draw_line(axes, found["levels"], "rate", name, 1e3, label, colour)
        draw_bounds(axes, "open_loop", name, "rate", 1e3, colour)
    axes.set_xscale("log")
    finish_axes(axes, "requests/s (log)", "sent later than scheduled, ms")
    add_legend(figure, size=8)
    return figure


def draw_line(
    axes: Axes,
    levels: Sequence[ExperimentResult],
    x: str,
    name: str,
    unit: float,
    label: str,
    colour: str,
    marker: str = "o",
) -> None:
    known = [level for level in levels if level.get(name)]  # a log axis has no zero
    if known:
        axes.plot(
            [level[x] for level in known],
            [unit * abs(level[name]) for level in known],
            marker=marker,
            markersize=7,
            lw=1.2 if len(known) > 1 else 0,
            color=colour,
            label=label,
        )


def draw_bounds(axes: Axes, experiment: str, name: str, x: str, unit: float, colour: str) -> None:
    """Draws a dash for each promise about that value; those without the kernel's stamps are only in
    the table.
    """
    for target in TARGETS:
        if (
            target.experiment == experiment
            and isinstance(target.value, ResultAt)
            and target.value.name == name
        ):
            where = target.value.where
            if where.get("stamps") != "user":
                axes.plot(
                    where[x],
                    unit * target.bound,
                    "_",
                    color=colour,
                    markersize=22,
                    markeredgewidth=2,
                    alpha=0.6,
                )


def finish_axes(axes: Axes, x_label: str, title: str) -> None:
    axes.set_yscale("log")
    ticks = sorted({float(x) for each in axes.get_lines() for x in np.asarray(each.get_xdata())})
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(x_label)
    axes.set_title(f"{title} (log); dashes are promised bounds", loc="left", fontsize=10)


def draw_cost(found: ExperimentResult) -> Figure:
    clients = list_clients(found)
    groups = [
        ("{} streams{}{}".format(*level.partition(",")), [us.get(name) for name in clients])
        for level, us in cpu_costs(found).items()
    ]
    return draw_bars(groups, clients, "CPU time per event, us")


def draw_freeze(found: ExperimentResult) -> Figure:
    p = "p95" if all(f"expected_{'p95'}_s" in each for _, each in list_modes(found)) else "p99"
    names = {
        f"expected_{p}_s": "true, computed from the arrivals",
        f"e2e_{p}_s": "measured from scheduled",
        f"from_sent_{p}_s": "measured from sent",
    }
    return draw_bars(
        [
            (
                f"{mode}\n{each['waited_over_1_s']:,} of {each['requests']:,}\nwaited over 1 s",
                [each[name] for name in names],
            )
            for mode, each in list_modes(found)
        ],
        list(names.values()),
        f"{p.upper()} of E2E, s",
    )


def draw_bars(
    groups: Sequence[tuple[str, Sequence[float | None]]], names: Sequence[str], title: str
) -> Figure:
    """Draws grouped bars, one for each of `names`; a value that was not measured has none."""
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots()
    width = 0.8 / len(names)
    for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        heights = [float(NAN if (value := values[i]) is None else value) for _, values in groups]
        drawn = axes.bar(
            np.arange(len(groups)) + (i - (len(names) - 1) / 2) * width,
            heights,
            0.9 * width,
            color=colour,
            label=name,
        )
        axes.bar_label(
            drawn,
            ["" if math.isnan(height) else format_target_value(height) for height in heights],
            fontsize=8,
            padding=2,
        )
    axes.set_xticks(range(len(groups)), [label for label, _ in groups])
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.12)
    axes.set_title(title, loc="left", fontsize=10)
    add_legend(figure, size=8)
    return figure
