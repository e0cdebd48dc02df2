"""The process that responds to a campaign's requests: the row of a case, the next cases, the
systems without a valid case.
"""

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis import dataset, session, summary
from analysis.formatting import format_number
from tests.helpers import synthetic_campaign
from tests.helpers.python_program import ROOT


def respond(*requests: list[Any]) -> tuple[list[dict[str, Any]], str]:
    """The responses of one process, and what it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "analysis.session"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        input="".join(json.dumps(request) + "\n" for request in requests),
    )
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_a_row_has_the_report_s_numbers(tmp_path: Path) -> None:
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    table = summary.summarise(dataset.read_campaign(folder)).table
    for index, case in table.iterrows():
        row = session.make_row(str(folder), int(str(index)))
        assert (row["valid"], row["why"]) == (case["valid"], case["why"])
        assert row["numbers"].keys() == set(session.NUMBERS)
        assert row["numbers"]["output_tokens_per_s"] == format_number(case["output_tokens_per_s"])
        assert row["numbers"]["ttft_p50_s"] == format_number(1000 * case["ttft_p50_s"])
        n = case["requests_scheduled"]
        assert (row["numbers"]["e2e_p99_s"] == f"n={n:.0f}") == (0 < n < 299)


def test_a_row_names_the_cause_of_an_invalid_case(tmp_path: Path) -> None:
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    path = sorted(folder.glob("cases/*alpha*/run.json"))[0]
    run = json.loads(path.read_text())
    synthetic_campaign.schema.write_json(path, run | {"verify_after": None})
    row = session.make_row(str(folder), run["case"]["index"])
    assert row["valid"] is False
    assert row["why"].startswith("contract: it was not verified after the load")


def test_one_process_responds_to_all_requests_and_imports_no_drawing_library(
    tmp_path: Path,
) -> None:
    """It runs between two cases, on the load generator's core."""
    folder = str(synthetic_campaign.campaign(tmp_path / "campaign"))
    gate = str(synthetic_campaign.gate(tmp_path / "gate", []))
    responses, imported = respond(
        ["row", folder, 1],
        ["row", folder, 99],
        ["missing", folder],
        ["needed", gate],
        ["slo", "ttft=fast"],
        ["slo", "ttft_p99=1s"],
        ["row", folder],
        ["row", folder, 1],
    )
    row, no_case, missing, needed, bad_slo, slo, bug, again = responses
    assert row == again == {"result": session.make_row(folder, 1), "ends": False}
    assert no_case["error"] == f"{folder} has no case 99: give one of its cases"
    assert all(name and why for name, why in missing["result"])
    assert needed["result"] == [True]
    assert "cannot read the SLO" in bad_slo["error"] and slo["result"] is None
    assert "TypeError" in bug["traceback"]
    modules = set(re.findall(r"\| +(\w+)$", imported, re.MULTILINE))
    assert "pandas" in modules
    assert not modules & {"matplotlib", "jinja2", "mistune", "nbclient", "PIL"}


def test_a_process_that_has_grown_large_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LARGEST_BYTES", 1)
    monkeypatch.setattr(session.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO('["slo", "ttft_p99=1s"]\n' * 2))
    monkeypatch.setattr(sys, "stdout", responses := io.StringIO())
    session.main()
    assert responses.getvalue() == '{"result": null, "ends": true}\n'
