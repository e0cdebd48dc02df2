"""Figures over several loads and several metrics show the numbers of their frames, and mark missing
ones.
"""

import math

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest

from analysis import dataset, summary
from analysis.plots import figures, style, tradeoffs
from analysis.report.comparison_section import HEADLINE
from tests.helpers import synthetic_campaign
from tests.studies import report_benchmark


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Twenty servers at two loads. The slow ones have too few requests for a P99."""
    folder = report_benchmark.campaign(
        tmp_path_factory.mktemp("results") / "many", 2000, 4, loads=(16, 4)
    )
    found = summary.summarise(dataset.read_campaign(folder))
    return found, summary.build_comparisons(found)


def test_a_sweep_has_its_loads_in_order(many):
    found, comparisons = many
    assert [c.title for c in comparisons] == ["chat, 16 users", "chat, 4 users"], (
        "in the order of the plan"
    )
    (sweep,) = summary.build_sweeps(comparisons)
    own = sweep.points[sweep.points["server"] == "architecture_00"]
    assert list(own["users"]) == [4, 16] and own["output_tokens_per_s"].is_monotonic_increasing
    first = found.table[
        (found.table["server"] == "architecture_00") & (found.table["users"] == 4)
    ].iloc[0]
    assert own["e2e_p99_s"].iloc[0] == first["e2e_p99_s"]


def test_the_curve_has_one_named_line_per_server_and_one_percentile(many):
    (sweep,) = summary.build_sweeps(many[1])
    picture = tradeoffs.draw_curve(sweep, "e2e")
    (axes,) = picture.figure.axes
    percentile = axes.get_ylabel().removesuffix(", ms (log)")
    assert percentile in ("E2E P99", "E2E P95", "E2E P50")
    column = f"e2e_{percentile[-3:].lower()}_s"
    drawn = sweep.points[np.isfinite(sweep.points[column])]
    assert len(drawn) >= len(sweep.points) / 2
    lines = [line for line in axes.lines if len(line.get_xdata())]
    assert sorted(t.get_text() for t in axes.texts) == sorted(drawn["system"].unique())
    assert sorted(y for line in lines for y in line.get_ydata()) == pytest.approx(
        sorted(1000 * drawn[column])
    )
    heights = sorted(t.xyann[1] for t in axes.texts)
    assert min(np.diff(heights)) > 0.9 / len(heights) - 1e-9 and heights[-1] <= 1, (
        "no name overlaps another"
    )


@pytest.mark.usefixtures("undrawn")
def test_a_scenario_with_one_load_has_no_curve(tmp_path):
    from analysis.report import writer

    found = writer.write_report(
        report_benchmark.campaign(tmp_path / "one", 2000, 4, servers=2, loads=(4,))
    )
    several = writer.write_report(
        report_benchmark.campaign(tmp_path / "two", 2000, 4, servers=2, loads=(1, 4))
    )
    one, two = (
        {f.stem for f in (s.campaign.folder / "figures").iterdir()} for s in (found, several)
    )
    assert not any("curve" in stem for stem in one) and "1-chat-pareto" in one
    assert {
        "1-chat-curve-e2e",
        "1-chat-curve-ttft",
        "1-chat-pareto",
        "1-chat-1-user-heat-map",
        "1-chat-4-users-heat-map",
    } <= two


def test_frontier():
    x, y = pd.Series([1.0, 2.0, 3.0, 2.0, math.nan, 3.0]), pd.Series([3.0, 2.0, 1.0, 1.0, 9.0, 1.0])
    assert list(tradeoffs.pareto_frontier(x, y)) == [True, True, True, False, False, True], (
        "equal points are both on the frontier"
    )


def compare(**columns):
    """A comparison of systems s0, s1 ... with these metrics."""
    n = len(next(iter(columns.values())))
    blank = dict.fromkeys(HEADLINE, math.nan)
    systems = []
    for i in range(n):
        row = (
            {"index": i, "server": f"s{i}", "engine": "e", "valid": True, "repetition": 1}
            | blank
            | {k: v[i] for k, v in columns.items()}
        )
        systems.append(
            summary.ServerSummary(
                f"s{i}", "e", pd.DataFrame([row]), summary.stats.estimate_mean([1.0]), 1
            )
        )
    return summary.Comparison("made up", systems, "output_tokens_per_s")


def test_relative_to_the_best():
    worse = tradeoffs.relative_values(
        compare(
            output_tokens_per_s=[100.0, 50.0, math.nan],
            ttft_p99_s=[0.2, 0.1, math.inf],
            error_share=[0.0, 0.0, 0.1],
            goodput_per_s=[0.0, 2.0, 4.0],
        ),
        HEADLINE,
    )
    assert list(worse) == ["output_tokens_per_s", "goodput_per_s", "error_share", "ttft_p99_s"], (
        "without metrics that were not measured"
    )
    assert list(worse["output_tokens_per_s"])[:2] == [1, 2] and math.isnan(
        worse["output_tokens_per_s"].iloc[2]
    )
    assert list(worse["ttft_p99_s"]) == [2, 1, math.inf] and list(worse["error_share"]) == [
        1,
        1,
        math.inf,
    ]
    assert list(worse["goodput_per_s"]) == [math.inf, 2, 1]


def test_a_cell_of_the_heat_map_without_a_number_is_a_dash_and_all_are_readable():
    picture = tradeoffs.draw_heat_map(
        compare(output_tokens_per_s=[100.0, 50.0, math.nan], ttft_p99_s=[0.2, 0.1, 9.0]), HEADLINE
    )
    (axes,) = picture.figure.axes
    cells = {(t.get_position()[1], t.get_position()[0]): t for t in axes.texts}
    assert [cells[row, 0].get_text() for row in range(3)] == ["1", "2.0", "–"]
    (image,) = axes.get_images()
    for (row, column), cell in cells.items():
        value = image.get_array()[row, column]
        back = (1, 1, 1) if value is np.ma.masked else image.cmap(image.norm(value))[:3]
        assert contrast(back, matplotlib.colors.to_rgb(cell.get_color())) >= 4.5, (
            row,
            column,
            value,
        )


def contrast(a, b):
    """WCAG 2.2's contrast ratio."""
    linear = [
        [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb] for rgb in (a, b)
    ]
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear]
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_with_many_servers_each_distribution_has_a_panel_and_each_row_its_name(many):
    found, (comparison, _) = many
    names = {label for _, label, _ in style.line_looks(comparison)}
    assert len(names) > style.MANY
    panels = figures.draw_latency_cdf(found, comparison).figure.axes
    assert {axes.get_title("left") for axes in panels if axes.get_visible()} == names
    for picture in (
        figures.draw_throughput(comparison),
        figures.draw_tail(comparison),
        tradeoffs.draw_heat_map(comparison, HEADLINE),
    ):
        assert {t.get_text() for t in picture.figure.axes[0].get_yticklabels()} == names


def test_a_distribution_ends_below_one_where_requests_failed(tmp_path):
    folder = tmp_path / "campaign"
    folder.mkdir()
    rows = synthetic_campaign.requests()
    for row in rows[::25]:
        synthetic_campaign.fail(row)
    case = synthetic_campaign.run(served=synthetic_campaign.served(rows))
    synthetic_campaign.write_case(folder, case, rows, synthetic_campaign.telemetry())
    synthetic_campaign.schema.write_json(
        folder / "campaign.json", synthetic_campaign.campaign_data([case["case"]], max_errors=0.2)
    )
    found = summary.summarise(dataset.read_campaign(folder))
    (comparison,) = summary.build_comparisons(found)
    data = figures.draw_latency_cdf(found, comparison).data
    assert (
        data.loc[np.isfinite(data["e2e_s"]), "share"].max() == pytest.approx(0.96)
        and data["e2e_s"].max() == math.inf
    )
