"""The display while a campaign runs: one line per case in a file, a live view on a terminal."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from loadtests.generator.messages import Window
from loadtests.progress import estimate
from loadtests.progress import watch as progress
from loadtests.progress.rows import CaseRow, RowLayout
from loadtests.schema import Case
from tests.helpers.load_status import running_status
from tests.helpers.pty_command import Terminal
from tests.helpers.python_program import ROOT, command_of
from tests.programs import show_progress

CASES = [
    Case(index, server, "simulated", "chat", 1, 4, None, 10.0)
    for index, server in enumerate(("one", "two", "three"), 1)
]
TABLE = {"arrivals": "closed", "warmup_s": 2.0, "warmup_max_s": 30.0}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ROW = CaseRow(
    True,
    "",
    {
        "output_tokens_per_s": "1,234",
        "ttft_p50_s": "21.3",
        "ttft_p95_s": "40.1",
        "ttft_p99_s": "n=120",
        "e2e_p50_s": "210",
        "e2e_p95_s": "310",
        "e2e_p99_s": "∞",
        "error_share": "2.50",
    },
)


@pytest.fixture(autouse=True)
def no_forced_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def watching(cases: list[Case], more: bool = False) -> progress.ProgressWatch:
    watch = progress.ProgressWatch({"chat": TABLE})
    watch.plan(cases, done=0, more=more)
    return watch


def test_a_search_does_not_show_the_number_of_cases(capsys: pytest.CaptureFixture[str]) -> None:
    with watching(CASES, more=True) as watch:
        watch.start(CASES[1])
        watch.end("ok")
    assert capsys.readouterr().out.splitlines() == [
        "the first round has 3 cases, about 2 min 21 s; each prints a line when it ends",
        "case 2  two / simulated / chat 4 users, run 1: ok (0 s; about 0 s left of this round)",
    ]


def test_a_log_has_one_line_per_case(capsys: pytest.CaptureFixture[str]) -> None:
    with watching(CASES) as watch:
        with watch.waiting("calibrating the load generator", 30):
            pass
        for status, row in (
            ("ok", ROW),
            ("ok", CaseRow(False, "send lag: P99 9.0 ms, bound 5.0 ms", {})),
            (f"failed: launch: it has [brackets], {'unbroken ' * 30}; its log:\n    last", None),
        ):
            watch.start(CASES[watch.done])
            for stage in ("prepare", "launch", "verify", "load", "verify again", "stop"):
                watch.stage(stage)
                watch.load(running_status(1.0, 1, 0, 0.1, Window(0, 9)))
            watch.end(status, row)
    found = capsys.readouterr()
    assert found.out.splitlines() == [
        "3 cases, about 2 min 21 s; each prints a line when it ends",
        "calibrating the load generator: about 30 s",
        "case 1 of 3  one / simulated / chat 4 users, run 1: valid, 1,234 tokens/s,"
        " TTFT P50 21.3 ms P99 unknown (n=120), E2E P50 210 ms P99 ∞ ms, 2.50% errors"
        " (0 s; about 0 s left)",
        "case 2 of 3  two / simulated / chat 4 users, run 1: invalid: send lag: P99"
        " 9.0 ms, bound 5.0 ms (0 s; about 0 s left)",
        "case 3 of 3  three / simulated / chat 4 users, run 1: failed: launch: it has [brackets],"
        f" {'unbroken ' * 30}; its log: (0 s)",
        "    last",
    ]
    assert "\x1b" not in found.out and found.err == ""


def test_a_row_from_before_calibration_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    with watching(CASES, more=True) as watch:
        watch.start(CASES[0])
        watch.end("ok", ROW._replace(why="before calibration"))
    assert "run 1: valid (before calibration), 1,234 tokens/s" in capsys.readouterr().out


def test_a_row_of_an_open_loop_has_no_throughput(capsys: pytest.CaptureFixture[str]) -> None:
    """There the throughput is the demand."""
    case = replace(CASES[0], users=None, rate=2.5)
    with watching([case]) as watch:
        watch.start(case)
        watch.end("ok", ROW)
    assert "chat 2.5/s, run 1: valid, TTFT P50 21.3 ms" in capsys.readouterr().out
    layout = RowLayout.of([*CASES, case], 100)
    assert "1,234" not in layout.row(case, "ok", ROW) and "1,234" in layout.row(CASES[0], "ok", ROW)


def test_a_forced_colour_makes_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CI systems set FORCE_COLOR, and frames of a live view would fill their logs."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with watching(CASES) as watch:
        watch.start(CASES[0])
        watch.stage("launch")
        watch.end("ok", ROW)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_remaining_time_learns_from_the_cases_that_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    watch = watching(CASES)
    watch.start(CASES[0])
    assert watch._left_s() == 3 * (12 + estimate.OVERHEAD_S)
    clock += 20
    assert watch._left_s() == 3 * (12 + estimate.OVERHEAD_S) - 20
    watch.end("ok")
    watch.start(CASES[1])
    assert watch._left_s() == 2 * 20, "as long as the previous case"
    clock += 1000
    assert watch._left_s() == 20, "one case is late, the other takes its usual time"
    watch.load(running_status(1.0, 1, 0, 0.1, Window(0, 31)))
    assert watch._left_s() == 20 + 30, "the length of a window is known when it opens"
    watch.end("failed: launch: no")
    watch.start(CASES[2])
    assert watch._left_s() == 20, "a failed case does not change the estimate"


def test_the_remaining_time_grows_with_a_late_case(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    watch = progress.ProgressWatch({"chat": TABLE})
    watch.plan(CASES[:1], done=0)
    planned = 12 + estimate.OVERHEAD_S
    watch.start(CASES[0])
    watch.stage("launch")
    assert watch._left_s() == planned and watch._describe_delay() == ""
    clock += planned
    assert watch._left_s() == 12, "the load is still to come"
    assert watch._describe_delay() == ""
    clock += 30
    line = "case 1 of 1 takes longer than planned: waiting until the server is ready, "
    assert watch._describe_delay() == f"{line}77 s; about 12 s left"
    clock += 10
    assert watch._describe_delay() == "", "not again until the delay has doubled"
    watch.stage("load")
    assert watch._left_s() == 12
    clock += 12
    assert watch._left_s() == 10 + 10, "the warm-up is 10 s late, and may take 10 s more"
    clock += 15
    assert watch._left_s() == 3 + 10, "the window opens at the latest after 30 s"
    clock += 10
    assert watch._left_s() == 10
    watch.load(running_status(1.0, 1, 0, 0.1, Window(0, 31)))
    clock += 40
    watch.stage("verify again")
    assert watch._left_s() == 0


def test_the_estimate_for_another_scenario_differs_by_the_length_of_its_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    watch = progress.ProgressWatch(
        {
            name: TABLE | {"warmup_s": s, "warmup_max_s": max(s, 30.0)}
            for name, s in (("chat", 2.0), ("other", 30.0))
        }
    )
    other = Case(2, "one", "simulated", "other", 1, 4, None, 60.0)
    watch.plan([CASES[0], other], done=0)
    watch.start(CASES[0])
    clock += 20  # 8 s more than the load
    watch.end("ok")
    assert watch._left_s() == 30 + 60 + 8


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("cases", [CASES, show_progress.CASES], ids=["short", "long"])
def test_rows_fit_the_terminal_and_align_with_their_headings(width: int, cases: list[Case]) -> None:
    layout = RowLayout.of(cases, width)
    groups, heading = layout.heading().splitlines()
    rows = [layout.row(case, "ok", ROW) for case in cases]
    assert max(map(len, [groups, heading, *rows])) <= width
    for column, text in (("tok/s", "1,234"), ("err%", "2.50")):
        if column == "tok/s" and cases is not CASES:
            continue  # open loops
        if column in heading and width >= 60:
            end = heading.index(column) + len(column)
            assert {row[:end].split()[-1] for row in rows} == {text}
    assert ("P95" in heading) == (width >= (80 if cases is CASES else 200))
    if width >= 80:
        assert heading.count("P99") == 2 and heading.count("P50") == 2


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (120, 24), (80, 8)])
def test_a_terminal_shows_cases_stages_times_and_waits(
    tmp_path: Path, columns: int, lines: int
) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TTY_", "NO_COLOR", "FORCE_COLOR"))
    }
    command = [*command_of("show_progress"), str(tmp_path / "server.log")]
    terminal = Terminal(command, environment, ROOT, columns, lines)
    assert terminal.wait() == 0, terminal.text
    erased = [each.count("A") for each in re.findall(r"(?:\x1b\[1A\x1b\[2K)+", terminal.text)]
    assert max(erased) < lines, "a frame that is taller than the terminal scrolls it"
    text = ESCAPES.sub("", terminal.text)
    longest = max(re.split(r"[\r\n]+", text), key=len)
    assert len(longest) <= columns, longest
    for pattern in (
        r"calibrating the load generator, \d s",
        r"0 of 60 cases done, \d s elapsed, about 4[67] min \d+ s left",
        r"waiting until the server is ready, \d s",
        r"its log: loading weights 50% loading",
        r"warm-up, 3 s\s+7 requests, .*E2E P99 1\.23 s",
        r"waiting until the load is steady: TTFT would change by \+12% over the window",
        r"measuring, 2 of 6 s\s+77 requests, 1,234 tokens/s, E2E P99 1\.23 s",
        r"drain\s+80 requests, 3 failed, ",
        r"waiting for the last 2 responses",
        r"and \d\d more to come",
        rf"and {25 if lines > 10 else 27} more to come",
    ):
        assert re.search(pattern, text), pattern
    kept = [line for line in re.split(r"[\r\n]+", text) if re.match(r" ?\d+ a_", line)]
    rows = {
        int(line.split()[0]): line
        for line in kept
        if not line.endswith("to come") and " preparing" not in line
    }
    assert {*range(1, 32)} <= {*rows}
    assert "123456" in rows[30] and "n=120" in rows[30]
    # a reason that does not fit into the row stands below it, and only there
    assert rows[1].endswith("invalid") and "    send lag: P99" in text
    assert "skipped: vllm is not installed" in rows[3] and rows[4].endswith("failed")
    assert "    launch: it has [brackets]" in text
    assert "    second" in text and text.count("tok/s") >= 2
