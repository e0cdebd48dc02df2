"""Colours, line styles, axes and legends that all figures share."""

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from analysis.plots.vector import Mark
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
WIDTH = 6.8  # inches: two fit beside each other on a page, and one is readable on a phone
MANY = len(COLOURS)  # more lines in one picture cannot be distinguished

# Engines in words; others are words already.
ENGINES = {
    "hf": "Transformers",
    "hf_batched": "batched Transformers",
    "hf_continuous": "Transformers with continuous batching",
    "vllm": "vLLM",
}

Drawn = tuple[ServerSummary, str, dict[str, Any]]


def encode_png(figure: Figure) -> bytes:
    """120 dots per inch in 128 colours: a third of the bytes, and enough for a drawing."""
    canvas, data = FigureCanvasAgg(figure), io.BytesIO()
    figure.set_dpi(120)
    canvas.draw()
    image = (
        Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
        .convert("RGB")
        .quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    )
    figure.set_layout_engine("none")  # the same figure as SVG keeps the places of its axes
    image.save(data, "png", optimize=True)
    return data.getvalue()


@dataclass(frozen=True)
class Picture:
    """`data` has a row for each thing drawn, in the units at the end of its columns' names.
    `marks` are what a page shows on hover and filters by its legend.
    """

    figure: Figure
    data: pd.DataFrame
    marks: Sequence[Mark] = ()

    def _repr_png_(self) -> bytes:
        """Shows the figure in a notebook."""
        return encode_png(self.figure)


def line_looks(comparison: Comparison) -> list[Drawn]:
    """(system, its label, how its lines look) of the systems with a valid case. The look depends
    on the name, not on the rank: it is the same in all figures.
    """
    style = looks_by_name(s.name for s in comparison.systems)
    return [(s, wrap_name(s.name), style[s.name]) for s in comparison.systems if len(s.valid)]


def label_system(name: str) -> str:
    """A system's name with its engine in words.

    >>> label_system("flask_gunicorn (hf)")
    'flask_gunicorn (Transformers)'
    """
    server, separator, engine = name.removesuffix(")").rpartition(" (")
    return f"{server} ({ENGINES[engine]})" if separator and engine in ENGINES else name


def looks_by_name(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and dashes of each name, by its alphabetical place."""
    return {
        name: {"color": COLOURS[i % 8], "linestyle": DASHES[i // 8 % 4]}
        for i, name in enumerate(sorted(set(names)))
    }


def wrap_name(name: str) -> str:
    """A system's label, wrapped to leave room for the figure. No "$" in it starts a formula."""
    return "\n".join(textwrap.wrap(label_system(name), 44)).replace("$", r"\$")


def single_axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, max(height, 1.6)))
    return figure, figure.subplots()


def panel_grid(
    rows: int, columns: int, width: float, height: float, gap: float, **shared: Any
) -> tuple[Figure, Any]:
    """Axes of `height` inches per row with fixed room for labels and a legend: matplotlib's own
    layout takes seconds for sixty axes.
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
    """Makes an axis logarithmic, with plain numbers, and wide enough to show at least one of them.
    `span` is that of the data where axes share it. Without a positive number the axis stays as it
    is.
    """
    is_x = axis is axes.xaxis
    low, high = span or (axes.dataLim.intervalx if is_x else axes.dataLim.intervaly).tolist()
    if not 0 < low <= high < math.inf:
        return
    (axes.set_xscale if is_x else axes.set_yscale)("log")
    room = 2 if high < 4 * low else 1.3
    (axes.set_xlim if is_x else axes.set_ylim)(low / room, high * room)
    span_of = high / low
    # Over more decades the labels of 2, 3 and 5 would overlap.
    axis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if span_of < 30 else (1, 3) if span_of < 300 else (1,))
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def add_legend(figure: Figure, columns: int = 2, size: float = 9) -> None:
    """Adds one legend for all axes, with each label once."""
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
