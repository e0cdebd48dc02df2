"""The figure of the parts of each server's latency."""

from collections.abc import Sequence

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.attribution import PARTS, Attribution, visible_parts
from analysis.formatting import format_number
from analysis.plots import style
from analysis.plots.style import Picture
from analysis.plots.vector import Mark


def draw_latency_parts(attributions: Sequence[Attribution]) -> Picture:
    """Two stacked bars per server, the median request and the tail: milliseconds on the left,
    shares of E2E on the right.
    """
    rows = [
        (bar, 3.0 * number + 0.9 * i)
        for number, a in enumerate(attributions)
        for i, bar in enumerate(a.bars, 1)
    ]
    ticks = [(bar.which.removeprefix("the "), y) for bar, y in rows] + [
        (style.label_system(a.system.name), 3.0 * n) for n, a in enumerate(attributions)
    ]
    names = visible_parts(attributions)
    marks: list[Mark] = []
    with rc_context(style.STYLE | {"hatch.linewidth": 0.6}):
        figure = Figure(figsize=(1.3 * style.WIDTH, 1.5 + 0.55 * max(len(attributions), 1)))
        left, right = figure.subplots(1, 2, sharey=True)
        owners = {
            id(bar): style.label_system(a.system.name) for a in attributions for bar in a.bars
        }
        for axes, scale in ((left, lambda bar: 1e3), (right, lambda bar: 100 / bar.e2e_s)):
            for bar, y in rows:
                start = 0.0
                for name in (name for name in names if name in bar.parts):
                    width = max(bar.parts[name], 0.0) * scale(bar)
                    look = PARTS[name]
                    drawn = axes.barh(
                        y,
                        width,
                        left=start,
                        height=0.8,
                        color=look.colour,
                        hatch=look.hatch,
                        edgecolor="white",
                        linewidth=0.3,
                    )
                    share = f"{bar.parts[name] / bar.e2e_s:.0%} of E2E"
                    text = f"{look.label} {format_number(1e3 * bar.parts[name])} ms, {share}"
                    title = f"{owners[id(bar)]}, {bar.which}"
                    point = (start + width / 2, y, text)
                    marks.append(Mark(axes, [*drawn], title, [point], look.label))
                    if axes is right and width >= 12:
                        axes.text(
                            start + width / 2,
                            y,
                            f"{width:.0f}",
                            ha="center",
                            va="center",
                            fontsize=8,
                            bbox={
                                "facecolor": "white",
                                "edgecolor": "none",
                                "pad": 0.8,
                                "alpha": 0.85,
                            },
                        )
                    start += width
            axes.grid(axis="y", visible=False)
        left.set_yticks(
            [y for _, y in ticks], [label.replace("$", r"\$") for label, _ in ticks], fontsize=8
        )
        for name in left.get_yticklabels()[len(rows) :]:
            name.set_fontweight("bold")
        left.tick_params(axis="y", length=0)
        right.tick_params(axis="y", length=0)
        left.set_ylim(3.0 * len(attributions) - 0.6, -0.6)
        left.set_xlabel("mean E2E, ms")
        right.set_xlabel("share of E2E, %")
        right.set_xlim(0, 100)
        handles = [
            Patch(
                facecolor=PARTS[n].colour,
                hatch=PARTS[n].hatch,
                edgecolor="white",
                label=PARTS[n].label,
            )
            for n in names
        ]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9
        )
    data = [
        {"system": a.system.name, "which": bar.which, "requests": bar.requests, "e2e_s": bar.e2e_s}
        | bar.parts
        for a in attributions
        for bar in a.bars
    ]
    return Picture(figure, pd.DataFrame(data), marks)
