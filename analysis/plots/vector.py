"""Figures as SVG inside a page: text stays text, series can be filtered, values can be shown.

Matplotlib draws them; `encode_svg` removes what a page does not need, and adds what page.js reads.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import markupsafe
import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle

# Verdana is as wide as DejaVu Sans, which only matplotlib brings.
FONTS = ["DejaVu Sans", "Verdana"]
DASHES = {"--": "5 3", ":": "1.5 2", "-.": "5 2 1.5 2"}
POINT = 72  # per inch, as matplotlib's SVG has them
ENLARGED = 1.45  # CSS pixels for one of matplotlib's points: text of 10 points has 14.5 pixels
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
PLACES = ("x", "y", "width", "height", "transform")


@dataclass(frozen=True)
class Mark:
    """What `artists` draw in `axes`. `points` are x and y in the axes' data and the text to show
    there, after `title`. Marks of one `series` are shown and hidden together; those of none stay.
    """

    axes: Axes
    artists: Sequence[Artist]
    title: str
    points: Sequence[tuple[float, float, str]]
    series: str = ""


@dataclass(frozen=True)
class Vector:
    """`svg` for a page, and its `legend`: (a small drawing of the series, its name)."""

    svg: markupsafe.Markup
    legend: list[tuple[markupsafe.Markup, str]]


def encode_svg(figure: Figure, marks: Sequence[Mark], name: str, caption: str) -> Vector:
    """`name` keeps the ids of several figures in one page apart. `caption` is what a screen reader
    reads. Matplotlib's own legend below the axes is cut off the view, as the page has `legend`; the
    whole is in data-full.
    """
    series = list(dict.fromkeys(mark.series for mark in marks if mark.series))
    groups = {}
    for number, mark in enumerate(marks):
        for place, artist in enumerate(mark.artists):
            artist.set_gid(f"mark-{number}-{place}")
            groups[f"mark-{number}-{place}"] = mark.series
    drawn = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.sans-serif": FONTS}):
        figure.savefig(drawn, format="svg", facecolor="white", metadata={"Date": None})
    root = ElementTree.fromstring(drawn.getvalue())  # noqa: S314 (matplotlib wrote it)
    _simplify(root, {gid: series.index(own) for gid, own in groups.items() if own})
    width, height = (POINT * inches for inches in figure.get_size_inches())
    shown = height - _legend_height(figure)
    root.attrib = {
        "role": "img",
        "aria-label": caption,
        "viewBox": f"0 0 {width:g} {shown:g}",
        "width": f"{ENLARGED * width:.0f}",
        "height": f"{ENLARGED * shown:.0f}",
        "data-full": f"0 0 {width:g} {height:g}",
        "data-points": _list_points(figure, marks, series),
        "style": f"font-family: {', '.join(FONTS)}, sans-serif; stroke-linejoin: round",
    }
    text = ElementTree.tostring(root, encoding="unicode")
    return Vector(
        markupsafe.Markup(text),  # noqa: S704 (ElementTree escaped every text and attribute)
        [(_draw_swatch(_first_artist(marks, own)), own) for own in series],
    )


def _simplify(root: ElementTree.Element, groups: dict[str, int]) -> None:
    """Removes namespaces, metadata, unused ids, groups that only nest, and invisible digits: a
    third of the size stays. `groups` become data-s.
    """
    for child in list(root):
        if child.tag.endswith("}metadata") or child.find("{*}style") is not None:
            root.remove(child)
    text = " ".join(value for each in root.iter() for value in each.attrib.values())
    used = set(re.findall(r"#([\w.-]+)", text))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        own = attributes.get("id", "")
        if own not in used:
            attributes.pop("id", None)
        if own in groups:
            attributes["data-s"] = str(groups[own])
        for key in PLACES:
            if key in attributes:
                attributes[key] = NUMBER.sub(lambda found: _round(found[0]), attributes[key])
        if attributes.get("transform", "").startswith("rotate(-0 "):
            del attributes["transform"]
        if "d" in attributes:
            attributes["d"] = _shorten_path(attributes["d"])
        if "style" in attributes:
            style = re.sub(r"font-family: [^;]*(; )?", "", attributes["style"])
            # The marker itself has its stroke.
            style = (
                re.sub(r"stroke[\w-]*: [^;]*(; )?", "", style) if element.tag == "use" else style
            )
            attributes["style"] = style.replace(": ", ":").replace("; ", ";").rstrip(";")
            if not attributes["style"]:
                del attributes["style"]
        element.attrib = attributes
        if element.tag not in ("text", "tspan"):
            element.text = (element.text or "").strip() or None
        element.tail = (element.tail or "").strip() or None
    _flatten(root)


def _flatten(element: ElementTree.Element) -> None:
    """Replaces groups without attributes by their content."""
    children = []
    for child in element:
        _flatten(child)
        children += list(child) if child.tag == "g" and not child.attrib else [child]
    element[:] = children


def _round(number: str) -> str:
    """To a tenth of a point, or to a hundredth where the number is small, as in a marker."""
    value = float(number)
    text = f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    short = text.rstrip("0").rstrip(".")
    return "0" if short == "-0" else short


def _shorten_path(path: str) -> str:
    """The same path with H and V for horizontal and vertical lines."""
    shortened: list[str] = []
    last = ("", "")
    for letter, numbers in re.findall(r"([A-Za-z])([^A-Za-z]*)", path):
        values = [_round(number) for number in numbers.split()]
        if letter == "L" and values[1] == last[1]:
            shortened.append(f"H{values[0]}")
        elif letter == "L" and values[0] == last[0]:
            shortened.append(f"V{values[1]}")
        else:
            shortened.append(letter + " ".join(values))
        last = (values[-2], values[-1]) if values else ("", "")
    return "".join(shortened)


def _legend_height(figure: Figure) -> float:
    """Points from the lower edge to the top of a legend that stands below the axes; else 0."""
    if not figure.legends:
        return 0.0
    return float(POINT / figure.dpi * figure.legends[0].get_window_extent().y1)


def _list_points(figure: Figure, marks: Sequence[Mark], series: list[str]) -> str:
    """Lines: "= SERIES TITLE" (SERIES a number, or - for none) before the points of a mark, each of
    them "X Y TEXT" in the SVG's units.
    """
    lines = []
    width, height = (POINT * inches for inches in figure.get_size_inches())
    for mark in marks:
        known = [point for point in mark.points if np.isfinite(point[:2]).all()]
        if not known:
            continue
        places = mark.axes.transData.transform([point[:2] for point in known])
        at = figure.transFigure.inverted().transform(places)
        lines.append(f"= {series.index(mark.series) if mark.series else '-'} {_line(mark.title)}")
        lines += [
            f"{x * width:.1f} {(1 - y) * height:.1f} {_line(text)}"
            for (x, y), (_, _, text) in zip(at, known, strict=True)
            if 0 <= x <= 1 and 0 <= y <= 1
        ]
    return "\n".join(lines)


def _line(text: str) -> str:
    return " ".join(text.split())


def _first_artist(marks: Sequence[Mark], series: str) -> Artist:
    return next(mark.artists[0] for mark in marks if mark.series == series)


def _draw_swatch(artist: Artist) -> markupsafe.Markup:
    """A small SVG with the line, marker or colour of a series."""
    look: Any = artist
    if not isinstance(artist, Line2D):
        colour = to_hex(np.atleast_2d(look.get_facecolor())[0])
        return _swatch(f'<rect x="5" y="1" width="16" height="10" fill="{colour}"/>')
    colour, parts = to_hex(artist.get_color()), []
    if artist.get_linestyle() != "None":
        dash = DASHES.get(str(artist.get_linestyle()), "")
        parts.append(
            f'<path d="M0 6H26" fill="none" stroke="{colour}" stroke-width="2"'
            + (f' stroke-dasharray="{dash}"/>' if dash else "/>")
        )
    if artist.get_marker() not in ("", " ", "None", None):
        parts.append(_draw_marker(str(artist.get_marker()), colour))
    return _swatch("".join(parts))


def _draw_marker(marker: str, colour: str) -> str:
    if marker == "o":
        return f'<circle cx="13" cy="6" r="4.5" fill="{colour}"/>'
    style = MarkerStyle(marker)
    corners = style.get_transform().transform(style.get_path().vertices)
    places = " ".join(f"{13 + 9 * x:.1f},{6 - 9 * y:.1f}" for x, y in corners)
    return f'<polygon points="{places}" fill="{colour}"/>'


def _swatch(drawing: str) -> markupsafe.Markup:
    text = f'<svg width="26" height="12" viewBox="0 0 26 12" aria-hidden="true">{drawing}</svg>'
    return markupsafe.Markup(text)  # noqa: S704 (colours and numbers)
