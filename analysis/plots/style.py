"""Colours, line styles, axes and legends that all figures share."""

import io
import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from analysis.summary import Comparison, ServerSummary

COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#B8A800"]
DASHES = ["-", "--", ":", "-."]
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.axisbelow": True,
}
WIDTH = 6.8  # inches: two beside each other on a page, and one readable on a phone
MANY = len(COLOURS)  # more lines than that in one picture cannot be distinguished

Drawn = tuple[ServerSummary, str, dict[str, Any]]


def encode_png(figure: Figure) -> bytes:
    """120 dots an inch, in 128 colours, which a drawing does not need more of: a third of the
    bytes.
    """
    drawn, data = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120, facecolor="white", metadata={"Software": None})
    image = (
        Image.open(drawn)
        .convert("RGB")
        .quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    )
    image.save(data, "png", optimize=True)
    return data.getvalue()


@dataclass(frozen=True)
class Picture:
    """`data` has a row for each thing drawn, in the units at the end of its columns' names."""

    figure: Figure
    data: pd.DataFrame

    def _repr_png_(self) -> bytes:
        """How a notebook shows it: as the report does."""
        return encode_png(self.figure)


def line_looks(comparison: Comparison) -> list[Drawn]:
    """(system, its label, how its lines look) of the systems with a valid case. The look follows
    the name and not the rank, so that it is the same in all figures.
    """
    style = looks_by_name(s.name for s in comparison.systems)
    return [(s, wrap_name(s.name), style[s.name]) for s in comparison.systems if len(s.valid)]


def looks_by_name(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and dashes of each name, by its place in the alphabet."""
    return {
        name: {"color": COLOURS[i % 8], "linestyle": DASHES[i // 8 % 4]}
        for i, name in enumerate(sorted(set(names)))
    }


def wrap_name(name: str) -> str:
    """As text: no "$" in it begins a formula; and leaving room for the figure."""
    return "\n".join(textwrap.wrap(name, 44)).replace("$", r"\$")


def single_axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, max(height, 1.6)))
    return figure, figure.subplots()


def panel_grid(
    rows: int, columns: int, width: float, height: float, gap: float, **shared: Any
) -> tuple[Figure, Any]:
    """Axes of `height` inches a row, and room for labels and a legend, which matplotlib takes
    seconds to find out for sixty axes.
    """
    tall = height * rows + 1.4
    with rc_context({"figure.constrained_layout.use": False}):
        figure = Figure(figsize=(width, tall))
    each = (width - 0.9 - gap * (columns - 1)) / columns
    figure.subplots_adjust(
        left=0.7 / width,
        right=1 - 0.2 / width,
        top=1 - 0.3 / tall,
        bottom=1.1 / tall,
        wspace=gap / each,
        hspace=0.35 / (height - 0.35),
    )
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def set_log_axis(axes: Axes, axis: Axis, span: tuple[float, float] | None = None) -> None:
    """A logarithmic axis with plain numbers, wide enough that one of them is always on it. `span`:
    of the data, if others share it. Without a number that it could show the axis stays as it is.
    """
    is_x = axis is axes.xaxis
    low, high = span or (axes.dataLim.intervalx if is_x else axes.dataLim.intervaly).tolist()
    if not 0 < low <= high < math.inf:
        return
    (axes.set_xscale if is_x else axes.set_yscale)("log")
    room = 2 if high < 4 * low else 1.3
    (axes.set_xlim if is_x else axes.set_ylim)(low / room, high * room)
    span_of = high / low
    # Over more decades the labels of 2 and 5, and then that of 3, would run into each other.
    axis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if span_of < 30 else (1, 3) if span_of < 300 else (1,))
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def add_legend(figure: Figure, columns: int = 2, size: float = 9) -> None:
    """One legend for all axes, each label once."""
    found = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if found:
        place = "outside lower center" if figure.get_layout_engine() else "lower center"
        figure.legend(
            list(found.values()),
            list(found),
            loc=place,
            ncols=columns,
            frameon=False,
            fontsize=size,
        )
