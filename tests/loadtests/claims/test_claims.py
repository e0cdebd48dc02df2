"""The runner of the claims: what it measured, and that it stops its campaign when it is stopped
itself. tests/analysis/studies/test_claims.py checks its campaigns.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests import schema
from loadtests.campaign import analysis_process
from loadtests.claims import __main__ as claims
from tests.helpers.campaign_process import PATIENCE_S, ROOT, Bench, call_command, wait_for


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_no_process(bench: Bench, number: signal.Signals) -> None:
    out = bench.folder / f"claims-{number}"
    command = [sys.executable, "-m", "loadtests.claims", "blocking", "--out", str(out)]
    # In a session of its own, whose processes all get SIGINT, as from a terminal.
    claims = subprocess.Popen(
        command,
        cwd=ROOT,
        env=bench.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: (out / "blocking" / "campaign.json").exists(), "a campaign")
    if number == signal.SIGINT:
        os.killpg(claims.pid, number)
    else:
        claims.send_signal(number)
    assert claims.wait(PATIENCE_S) == 130
    assert bench.left_over() == []


def test_by_default_the_committed_results_stay_as_they_are() -> None:
    _, out = claims.choose_campaigns([])
    assert not out.exists() and out.parent == Path("results"), "a new folder"
    ignored = ["git", "check-ignore", "--quiet", str(out / "README.md")]
    assert subprocess.run(ignored, cwd=ROOT).returncode == 0, "it is local"


def test_a_refused_run_makes_no_page_and_ends_with_its_code(bench: Bench) -> None:
    """The committed campaign has no rows to continue from, or is one of another machine."""
    published = ROOT / "results" / "claims" / "blocking"
    out = bench.folder / "claims"
    shutil.copytree(published, out / "blocking", ignore=shutil.ignore_patterns("cases"))
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.claims", "blocking", "--out", str(out)],
        cwd=ROOT,
        env=bench.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "choose another --out" in done.stderr and "nothing was measured" in done.stderr
    assert "refused   blocking: its error is above" in done.stdout
    assert [path.name for path in out.iterdir()] == ["blocking"], "no page of old results"


@pytest.fixture
def run_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[list[str]], tuple[int | str | None, str, bool]]:
    """Runs two campaigns of one case each, which end with these statuses. Returns the exit code,
    the output, and whether a page was made.
    """

    def run(statuses: list[str]) -> tuple[int | str | None, str, bool]:
        left, pages = iter(statuses), list[Path]()

        def measure(command: list[str]) -> int:
            case, status = Path(command[-1]) / "cases" / "001-it", next(left)
            case.mkdir(parents=True, exist_ok=True)
            schema.write_json(case / "run.json", {"status": status})
            return int(status != "ok")

        monkeypatch.setattr(claims, "_run", measure)
        monkeypatch.setattr(
            analysis_process, "make_claims_page", lambda folder: bool(pages.append(folder))
        )
        code = call_command(claims.main, "engines", "gateways", "--out", str(tmp_path / "out"))
        printed = capsys.readouterr()
        return code, printed.out + printed.err, bool(pages)

    return run


def test_the_summary_names_what_was_measured_and_what_was_not(
    run_two: Callable[[list[str]], tuple[int | str | None, str, bool]],
) -> None:
    code, printed, page = run_two(["ok", "skipped: node is not installed"])
    assert (code, page) == (1, True)
    assert "measured  engines: 1 case\n" in printed
    assert "skipped   gateways: 1 case without a result: skipped: node is not" in printed
    code, printed, page = run_two(["ok", "skipped: node is not installed"])
    assert (code, page) == (1, False), "nothing new"
    assert "skipped   engines: 1 case had a result before\n" in printed
    assert "error: nothing was measured" in printed
    assert run_two(["ok", "ok"])[::2] == (0, True)
    assert run_two(["ok", "ok"])[::2] == (1, False), "complete before"
