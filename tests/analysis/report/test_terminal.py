"""The report on a terminal."""

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from analysis import dataset, summary
from analysis.report import comparison_section, terminal, writer
from analysis.summary import Summary
from tests.helpers import synthetic_campaign


def shown(found: Summary, width: int) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    terminal.show_summary(found, console)
    return console.export_text().splitlines()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    folder = synthetic_campaign.campaign(tmp_path_factory.mktemp("terminal") / "campaign")
    return summary.summarise(dataset.read_campaign(folder))


def as_open(found: Summary) -> Summary:
    """The same cases as an open loop."""
    table = found.table.copy()
    table["users"], table["rate"] = math.nan, 3.0
    return Summary(found.campaign, found.slo, table, found.checks, found.latencies, found.timelines)


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_table_fits_and_begins_with_throughput_and_percentiles(
    found: Summary, width: int
) -> None:
    lines = shown(found, width)
    start = next(i for i, line in enumerate(lines) if line.startswith("server"))
    heading, first = lines[start], lines[start + 1]
    columns = heading.split()
    assert columns[1] == "tok/s" and max(map(len, lines[start - 1 : start + 5])) <= width
    if width >= 80:
        assert re.findall(r"P\d\d", heading) == ["P50", "P95", "P99"] * 2
        assert heading.rstrip().endswith("req/s    %") and "±" in first
    else:
        assert "P99" in heading and "…" not in first


def test_an_open_loop_has_no_throughput_in_its_table(found: Summary) -> None:
    text = "\n".join(shown(as_open(found), 140))
    assert "tok/s" not in text and "tokens/s" not in text and "throughput" not in text
    assert "had the lowest E2E P" in text and "TTFT" in text and "good" in text


def test_concerns_come_after_the_tables_the_worst_first(tmp_path: Path) -> None:
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    for path in sorted(folder.glob("cases/*beta*/run.json")):
        run = json.loads(path.read_text())
        synthetic_campaign.schema.write_json(path, run | {"verify_after": None})
    data = json.loads((folder / "campaign.json").read_text())
    data["manifest"]["dirty"] = True
    synthetic_campaign.schema.write_json(folder / "campaign.json", data)
    lines = shown(summary.summarise(dataset.read_campaign(folder)), 100)
    kinds = [found[1] for line in lines if (found := re.match(r"(invalid|warning): ", line))]
    assert kinds == sorted(kinds) and {*kinds} == {"invalid", "warning"}
    assert any(
        re.match(r"invalid: contract, in \d of \d cases: \w+", line) for line in lines
    ) and any(line.startswith(f"warning: {writer.UNCOMMITTED[:20]}") for line in lines)


def test_a_busy_machine_is_a_concern_of_a_valid_case_beside_an_invalid_one(found: Summary) -> None:
    """Where every busy case is invalid, the remedy of the invalid ones has it already."""
    remedy = "stop other programs"
    both = [
        (0, "send lag", "invalid", f"{remedy} and measure again"),
        (0, "other", "warning", remedy),
    ]
    columns = ["index", "name", "severity", "remedy"]
    for busy, count in ((both, 0), ([*both, (1, "other", "warning", remedy)], 1)):
        checks = pd.DataFrame(busy, columns=columns).assign(ok=False, detail="", value=1.0)
        lines = shown(replace(found, checks=checks), 140)
        assert sum(line.startswith("warning: other, in 2") for line in lines) == count
        assert sum(line.startswith("warning: other") for line in lines) == count
        assert sum(line.startswith("invalid: send lag, in 1") for line in lines) == 1


def test_commands_stay_whole_on_a_narrow_terminal() -> None:
    console = Console(width=40, record=True, file=io.StringIO())
    command = "python -m loadtests " + "--servers a,b " * 10
    terminal.show_next_commands([("what it shows", command)], console)
    assert console.export_text().splitlines() == [
        "",
        "Next steps:",
        "  # what it shows",
        f"  {command}",
    ]


@pytest.mark.usefixtures("undrawn")
def test_the_page_of_an_open_loop_neither_ranks_nor_draws_throughput(found: Summary) -> None:
    view = writer.build_view(as_open(found))
    [sweep] = view["sweeps"]
    [comparison] = sweep["comparisons"]
    kinds = {figure["stem"].split("-", 1)[1] for figure in comparison["figures"]}
    drawn = " ".join(kinds)
    assert "tail" in drawn and "heat-map" in drawn
    assert "throughput" not in drawn and "pareto" not in drawn and "curve" not in drawn
    [heat_map] = [each for each in comparison["figures"] if "heat-map" in each["stem"]]
    assert "output_tokens_per_s" not in heat_map["csv"]
    labels = [label for label, _, _ in comparison["headline"]]
    demand = [labels.index(f"{what} (the demand)") for what in ("output throughput", "requests")]
    assert min(demand) > labels.index("E2E P99")
    others = [label for label in labels if "demand" not in label]
    assert "throughput" not in " ".join(others + view["first"]["answers"])
    assert len(comparison["rows"][0]["cells"]) == len(labels)
    closed = writer.build_view(found)["sweeps"][0]["comparisons"][0]
    assert closed["headline"][0][0] == "output throughput"
    assert any("throughput" in figure["stem"] for figure in closed["figures"])


@pytest.mark.usefixtures("undrawn")
def test_an_open_loop_at_several_rates_is_drawn_over_its_demand(found: Summary) -> None:
    opened = as_open(found)
    opened.table.loc[opened.table["repetition"] > 1, "rate"] = 6.0
    [sweep] = summary.build_sweeps(summary.build_comparisons(opened))
    curves = comparison_section.sweep_view(opened, sweep, 1)["curves"]
    assert [curve["name"] for curve in curves] == ["Demand and E2E", "Demand and TTFT"]
    assert all("output_tokens_per_s" not in curve["csv"] for curve in curves)


def test_an_invalid_server_has_one_word_and_its_reason(found: Summary) -> None:
    lines = shown(found, 100)
    [row] = [line for line in lines if line.startswith("gamma")]
    assert re.fullmatch(r"gamma \(simulated\) +invalid(?: +–)+ *", row)
    why = "failed: load: the server died"
    assert [line for line in lines if why in line] == [
        f"no valid case of gamma (simulated), chat: {why}"
    ]


def test_a_server_with_some_invalid_runs_has_their_number_and_the_reason_once(
    tmp_path: Path,
) -> None:
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    path = sorted(folder.glob("cases/*beta*/run.json"))[0]
    run = json.loads(path.read_text())
    synthetic_campaign.schema.write_json(path, run | {"status": "failed: launch: it died"})
    lines = shown(summary.summarise(dataset.read_campaign(folder)), 100)
    [line] = [line for line in lines if "it died" in line]
    assert re.fullmatch(r"  beta \(simulated\), 1 of \d runs: failed: launch: it died", line)


def test_the_first_table_has_the_highest_percentile_that_is_known(found: Summary) -> None:
    [comparison] = summary.build_comparisons(found)
    columns, deciding = comparison_section.shown_metrics(found, comparison)
    assert {"ttft_p99_s", "e2e_p99_s"} < {*columns[:deciding]} and "e2e_p95_s" in columns[deciding:]
    table = found.table.assign(e2e_p99_s=math.nan)
    [few] = summary.build_comparisons(replace(found, table=table))
    columns, deciding = comparison_section.shown_metrics(found, few)
    assert {"ttft_p99_s", "e2e_p95_s"} < {*columns[:deciding]}
    assert "e2e_p99_s" not in columns[:deciding] and len(columns) == len(set(columns))
