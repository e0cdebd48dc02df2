"""Broken servers never win: sentences, tables and exit codes of campaigns in which requests failed,
responses have reasoning, or usage is missing.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from analysis import __main__, conclusions, dataset, summary
from analysis.report import terminal, writer
from tests.helpers import synthetic_campaign
from tests.helpers.checked_case import FOREIGN

pytestmark = pytest.mark.usefixtures("undrawn")

Rows = list[dict[str, Any]]


def sound() -> Rows:
    return synthetic_campaign.requests()


def failing(
    share: float, error: str = "http 500", detail: str = "CUDA error: out of memory"
) -> Rows:
    rows = synthetic_campaign.requests()
    for i, row in enumerate(rows):
        if i % 10 < 10 * share:
            synthetic_campaign.fail(row, error, detail)
    return rows


def breaking() -> Rows:
    """Every stream ends in an error after 5 of its 11 tokens."""
    rows = synthetic_campaign.requests()
    for row in rows:
        row |= {
            "error": "server error in the stream",
            "error_detail": "engine died",
            "tokens": None,
        }
        row |= {"token_s": row["token_s"][:5], "token_n": [1] * 5, "answer": "unchecked"}
    return rows


def reasoning() -> Rows:
    rows = synthetic_campaign.requests(n=400, rate=40, ttft_s=0.1, tpot_s=0.02, tokens=48)
    for row in rows:
        row |= {"first_visible_s": row["token_s"][40], "reasoning_tokens": 40}
    return rows


def without_usage() -> Rows:
    return [row | {"tokens": None, "token_source": "counted"} for row in sound()]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(servers: dict[str, Rows], **changes: Any) -> Path:
        folder = tmp_path / "campaign"
        folder.mkdir()
        data = changes.pop("data", {})
        cases = []
        for index, (server, rows) in enumerate(servers.items()):
            run = {"served": None} | changes
            cases.append(synthetic_campaign.run(index, server, **run))
            synthetic_campaign.write_case(folder, cases[-1], rows, synthetic_campaign.telemetry())
        synthetic_campaign.schema.write_json(
            folder / "campaign.json",
            synthetic_campaign.campaign_data([case["case"] for case in cases], **data),
        )
        return folder

    return make


def answer(folder: Path) -> str:
    found = summary.summarise(dataset.read_campaign(folder))
    (comparison,) = summary.build_comparisons(found)
    return conclusions.describe_result(comparison)


def report(folder: Path, *options: str) -> int:
    return __main__.main(["report", str(folder), "--no-notebooks", *options])


def test_no_server_wins_if_all_fail(write, capsys):
    folder = write({"alpha": failing(1.0), "beta": breaking()})
    why = "errors: 100% http 500: CUDA error: out of memory"
    broke = "errors: 100% server error in the stream: engine died"
    assert answer(folder) == (
        f"Under chat, 8 users, no server has a valid case: alpha (simulated): {why};"
        f" beta (simulated): {broke}."
    )
    assert report(folder, "--strict") == 1
    out, error = capsys.readouterr()
    assert error.splitlines() == [
        f"no valid case of alpha (simulated), chat: {why}",
        f"no valid case of beta (simulated), chat: {broke}",
    ]
    assert why not in out and broke not in out, "the reasons stand once, on stderr"
    assert "| simulated | 0 of 1 | invalid: errors: 100%" in (folder / "report.md").read_text()
    page, text = ((folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    for said in (out, page, text):
        assert "most valid" not in said and "lowest" not in said and "client-bound" not in said
    assert page.index("CUDA error") < page.index("<table")
    assert report(folder) == 0, "a report is always made, and fails only with --strict"
    out, error = capsys.readouterr()
    assert not error and [out.count(each) for each in (why, broke)] == [1, 1]
    assert __main__.main(["validity", str(folder)]) == 1


def test_a_server_does_not_win_against_an_invalid_one(write, capsys):
    folder = write({"alpha": sound(), "beta": failing(0.1)})
    why = "errors: 10% http 500: CUDA error: out of memory"
    assert answer(folder) == (
        "Under chat, 8 users, alpha (simulated) has an output throughput of 440 tokens/s (one run),"
        f" and there is nothing to compare it with: beta (simulated) has no valid case: {why}."
    )
    found = summary.summarise(dataset.read_campaign(folder))
    (comparison,) = summary.build_comparisons(found)
    assert [system.rank for system in comparison.systems] == [1, None]
    assert report(folder, "--strict") == 1
    out, error = capsys.readouterr()
    assert error == f"no valid case of beta (simulated), chat: {why}\n" and why not in out
    assert "it with: beta (simulated) has no valid case." in " ".join(out.split())
    for options, code in ((["--max-errors", "10%"], 0), (["--max-errors", "0.09"], 1)):
        assert __main__.main(["validity", str(folder), *options]) == code
    assert __main__.main(["checks", str(folder), "--max-errors", "10%"]) == 0
    capsys.readouterr()
    for wrong in ("much", "-1%", "101%", "nan"):
        assert __main__.main(["validity", str(folder), f"--max-errors={wrong}"]) == 2
        assert "give a share of the requests, such as 5%" in capsys.readouterr().err


def test_two_valid_servers_are_compared_and_the_invalid_third_is_named(write):
    slow = synthetic_campaign.requests(200, 20.0, 0.1, 0.02)
    said = answer(
        write(
            {"alpha": sound(), "beta": slow, "gamma": failing(1.0, "http 404", "no such model")},
            counts=None,
        )
    )
    assert "alpha (simulated) sustained the highest output throughput" in said
    assert said.endswith(
        " Not ranked: gamma (simulated) has no valid case: errors: 100% http 404: no such model."
    )


def test_a_single_server_has_no_contest(write):
    assert answer(write({"alpha": sound()})) == (
        "Under chat, 8 users, alpha (simulated) has an output throughput of 440 tokens/s (one run)."
    )


def test_the_report_of_a_reasoning_model(write, capsys):
    notes = [*FOREIGN["profile"]["notes"], "no NVIDIA GPU: GPU columns are null"]
    folder = write({"target": reasoning()}, notes=notes, **FOREIGN)
    assert report(folder, "--strict") == 0
    text = (folder / "report.md").read_text()
    for said in ("visible TTFT P50, ms", "reasoning tokens, %"):
        assert said in text, said
    assert " 83.3 |" in text and " 900 |" in text
    assert "## What the endpoint supports" in text and "ignore\\_eos: refused, left out" in text
    assert text.count("greedy text is not stable under load: 20% of the responses differ") == 1
    assert "no NVIDIA GPU" in text
    page = (folder / "report.html").read_text()
    assert "What the endpoint supports" in page and "visible TTFT P99" in page
    console = Console(width=140, record=True, file=io.StringIO())
    terminal.show_summary(writer.write_report(folder), console)
    assert "target (external)" in console.export_text()


def test_the_report_of_an_endpoint_without_usage(write):
    folder = write({"target": without_usage()}, **FOREIGN)
    assert report(folder, "--strict") == 0
    text = (folder / "report.md").read_text()
    assert text.index("target (external), usage: missing in 400 of 400") < text.index("| engine |")
    assert "### Warning: usage" in text and "missing in 400 of 400 responses" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| target | external | 1 ")]
    assert row.split(" | ")[4] == "40.0", "its TPOT is per chunk"


def test_the_report_has_the_lengths_of_prompts_and_their_source(write):
    lengths = {"source": "usage.prompt_tokens", "words": 512, "per_word": 1.0}
    folder = write({"target": sound()}, prompt_lengths=lengths, **FOREIGN)
    assert report(folder, "--strict") == 0
    text = (folder / "report.md").read_text()
    found = "mean 32.0 tokens sent, 32.0 by usage"
    assert f"| target | chat | {found} | usage.prompt\\_tokens |" in text
    assert "Prompts are generated" in text
    assert "Lengths of prompts" in (folder / "report.html").read_text()


def test_the_report_names_the_file_of_prompts(write):
    given = {"file": "mine.jsonl", "prompts": 5000, "requests": 9000, "kept": 400}
    data = FOREIGN["data"] | {"prompts": given}
    rows = [row | {"prompt_tokens_asked": None} for row in sound()]
    folder = write({"target": rows}, **FOREIGN | {"data": data})
    assert report(folder, "--strict") == 0
    text = (folder / "report.md").read_text()
    assert "mine.jsonl: 5,000 with 9,000 requests, of which 400 are used" in text
    assert "the expected number is not known" in text


def test_a_report_without_a_finished_case_states_that_nothing_was_checked(write):
    folder = write({"alpha": sound()}, status="failed: load: all requests failed: http 401")
    assert report(folder, "--strict") == 1
    text = (folder / "report.md").read_text()
    assert "No case has finished, so there is nothing to check." in text
    assert "has no valid case: failed: load: all requests failed: http 401." in text


def test_a_report_of_our_servers_has_no_profile(write):
    folder = write({"alpha": sound()})
    report(folder)
    assert "What the endpoint supports" not in (folder / "report.md").read_text()
    assert "visible TTFT P50, ms" not in (folder / "report.md").read_text()


def test_skipped_cases_are_no_failure_while_another_is_valid(write, capsys):
    folder = write({"alpha": sound()})
    skipped = synthetic_campaign.run(1, "beta", status="skipped: nginx is missing", window=None)
    synthetic_campaign.write_case(folder, skipped)
    assert __main__.main(["validity", str(folder)]) == 0
    for path in folder.glob("cases/*alpha*/run.json"):
        run = synthetic_campaign.schema.read_json(path)
        synthetic_campaign.schema.write_json(path, run | {"status": "failed: launch: it died"})
    assert __main__.main(["validity", str(folder)]) == 1
    assert "no valid case of beta (simulated), chat: skipped: nginx is missing" in (
        capsys.readouterr().err
    )


def test_the_log_lines_of_a_failed_case_stay_out_of_the_sentence(write):
    folder = write({"alpha": sound(), "beta": sound()})
    for path in folder.glob("cases/*beta*/run.json"):
        run = synthetic_campaign.schema.read_json(path)
        why = "failed: load: the server ended by itself; its last log lines:\nTraceback (...)"
        synthetic_campaign.schema.write_json(path, run | {"status": why})
    assert answer(folder).endswith(
        "beta (simulated) has no valid case: failed: load: the server ended by itself."
    )
