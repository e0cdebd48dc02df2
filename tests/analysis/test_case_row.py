"""One case's row, which the campaign shows after each case."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import case_row, dataset, summary
from analysis.formatting import format_number
from tests.helpers import synthetic_campaign
from tests.helpers.python_program import ROOT


def test_a_row_has_the_report_s_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    table = summary.summarise(dataset.read_campaign(folder)).table
    for index, case in table.iterrows():
        assert case_row.main([str(folder), str(index)]) == 0
        row = json.loads(capsys.readouterr().out)
        assert (row["valid"], row["why"]) == (case["valid"], case["why"])
        assert row["numbers"].keys() == set(case_row.NUMBERS)
        assert row["numbers"]["output_tokens_per_s"] == format_number(case["output_tokens_per_s"])
        assert row["numbers"]["ttft_p50_s"] == format_number(1000 * case["ttft_p50_s"])
        n = case["requests_scheduled"]
        assert (row["numbers"]["e2e_p99_s"] == f"n={n:.0f}") == (0 < n < 299)


def test_a_row_names_the_cause_of_an_invalid_case(tmp_path: Path) -> None:
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    path = sorted(folder.glob("cases/*alpha*/run.json"))[0]
    run = json.loads(path.read_text())
    synthetic_campaign.schema.write_json(path, run | {"verify_after": None})
    row = case_row.make_row(str(folder), run["case"]["index"])
    assert row["valid"] is False
    assert str(row["why"]).startswith("contract: it was not verified after the load")


def test_a_missing_case_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    assert case_row.main([str(folder), "99"]) == 2
    assert capsys.readouterr().err == f"{folder} has no case 99: give one of its cases\n"


def test_a_row_imports_no_drawing_library(tmp_path: Path) -> None:
    """The row is made between two cases, on the load generator's core."""
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "analysis.case_row", str(folder), "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["numbers"]["e2e_p99_s"] == "n=160"
    imported = set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))
    assert "pandas" in imported
    assert not imported & {"matplotlib", "jinja2", "mistune", "nbclient", "PIL"}
