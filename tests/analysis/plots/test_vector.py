"""Figures as SVG for a page: text stays text, ids are apart, series and values can be found."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis import dataset, summary
from analysis.plots import figures, style, vector
from tests.helpers import synthetic_campaign


def two_lines():
    figure = Figure(figsize=(4, 3))
    axes = figure.subplots()
    marks = []
    for name, values in (("a <b>", [1.0, 2.0]), ("second", [2.0, np.inf])):
        (line,) = axes.plot([0, 1], [min(v, 9) for v in values], "--", label=name)
        points = [(x, y, f"{y:g} ms") for x, y in enumerate(values)]
        marks.append(vector.Mark(axes, [line], name, points, name))
    figure.legend(loc="lower center")
    return figure, marks


def encoded(name="one"):
    figure, marks = two_lines()
    drawn = vector.encode_svg(figure, marks, name, 'caption "quoted" & <marked>')
    return drawn, ElementTree.fromstring(drawn.svg)


def test_text_stays_text_and_nothing_else_of_matplotlibs_file_is_left():
    drawn, root = encoded()
    assert root.tag == "svg" and root.get("aria-label") == 'caption "quoted" & <marked>'
    assert "a <b>" in [each.text for each in root.iter("text")]
    assert not re.search(r"http|xmlns|<!|<style|metadata|DejaVu Sans'", drawn.svg)
    assert not re.search(r"\d\.\d{3}", "".join(each.get("d", "") for each in root.iter()))


def test_ids_of_two_figures_are_apart_and_all_are_used():
    ids = [set(re.findall(r' id="([^"]+)"', encoded(name)[0].svg)) for name in ("one", "two")]
    assert ids[0] and not ids[0] & ids[1]
    svg = encoded()[0].svg
    assert all(f"#{each}" in svg for each in ids[0])
    assert svg == encoded()[0].svg, "the same figure gives the same bytes"


def test_each_series_is_marked_and_in_the_legend():
    drawn, root = encoded()
    assert [name for _, name in drawn.legend] == ["a <b>", "second"]
    assert all("stroke-dasharray" in swatch for swatch, _ in drawn.legend)
    assert [each.get("data-s") for each in root.iter() if "data-s" in each.attrib] == ["0", "1"]


def test_matplotlibs_own_legend_is_below_the_view():
    _, root = encoded()
    shown, whole = ([float(x) for x in root.get(key).split()] for key in ("viewBox", "data-full"))
    assert shown[:3] == whole[:3] and 150 < shown[3] < whole[3] == 216
    legend = [float(each.get("y")) for each in root.iter("text") if each.text == "second"]
    assert legend[0] > shown[3]


def test_values_are_where_they_are_drawn():
    _, root = encoded()
    lines = root.get("data-points").split("\n")
    assert [line for line in lines if line.startswith("=")] == ["= 0 a <b>", "= 1 second"]
    points = [line.split(" ", 2) for line in lines if not line.startswith("=")]
    assert [text for _, _, text in points] == ["1 ms", "2 ms", "2 ms"], "∞ is nowhere"
    line = next(each for each in root.iter() if each.get("data-s") == "0").find("path")
    ends = [float(number) for number in re.findall(r"[\d.]+", line.get("d"))]
    assert [float(n) for x, y, _ in points[:2] for n in (x, y)] == pytest.approx(ends, abs=0.1)


@pytest.mark.parametrize("marker", "osD^vP*")
def test_every_marker_has_a_swatch(marker):
    figure = Figure()
    (line,) = figure.subplots().plot([0], [0], marker, color="#777777")
    swatch = vector._draw_swatch(line)
    assert ElementTree.fromstring(swatch)[0].get("fill") == "#777777"


def test_every_figure_of_a_comparison_shows_its_values(tmp_path):
    found = summary.summarise(
        dataset.read_campaign(synthetic_campaign.campaign(tmp_path / "campaign"))
    )
    (comparison,) = summary.build_comparisons(found)
    shown = {}
    for picture in (
        figures.draw_throughput(comparison),
        figures.draw_tail(comparison),
        figures.draw_latency_cdf(found, comparison),
        figures.draw_timeline(found, comparison),
    ):
        style.encode_png(picture.figure)
        drawn = vector.encode_svg(picture.figure, picture.marks, "name", "caption")
        points = ElementTree.fromstring(drawn.svg).get("data-points")
        shown[points] = [name for _, name in drawn.legend]
    throughput, tail, cdf, timeline = shown
    assert "= - alpha (simulated)" in throughput and "tokens/s in run 2" in throughput
    assert "TTFT P50 50.3 ±3.2 ms" in tail and shown[tail] == ["P50", "P95", "P99"]
    assert "= 0 alpha (simulated), run 1" in cdf and "TTFT of 95% ≤ 50.0 ms" in cdf
    assert shown[cdf] == ["alpha (simulated)", "beta (simulated)"]
    assert "= 0 alpha (simulated), tokens/s" in timeline and "GPU, %" in shown[timeline]
