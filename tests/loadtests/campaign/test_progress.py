"""What the user sees while a campaign runs: plain lines into a file, a live line on a terminal."""

import os
import re

import pytest

from loadtests.campaign import progress
from loadtests.generator.messages import Window
from loadtests.schema import Case
from tests.helpers.load_status import running_status
from tests.helpers.pty_command import Terminal
from tests.helpers.python_program import ROOT, command_of

CASES = [
    Case(index, server, "simulated", "chat", 1, 4, None, 10.0)
    for index, server in enumerate(("one", "two", "three"), 1)
]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def watching(cases: list[Case], more: bool = False) -> progress.ProgressWatch:
    watch = progress.ProgressWatch({"chat": 2.0})
    watch.plan(cases, done=0, more=more)
    return watch


def test_a_search_does_not_say_of_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    with watching(CASES, more=True) as watch:
        watch.start(CASES[1])
        watch.end("ok")
    assert capsys.readouterr().out.startswith(
        "case 2  two / simulated / chat 4 users, run 1: ok (0 s)"
    )


def test_plain_lines_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    with watching(CASES) as watch:
        watch.start(CASES[1])
        watch.stage("launch")
        watch.load(running_status(1.0, 1, 0, 0.1, Window(0, 9)))
        watch.end(
            "failed: launch: it has [brackets] and a very long sentence "
            + "which is not broken into lines " * 10
        )
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "case 2 of 3  two / simulated / chat 4 users, run 1: launch"
    assert lines[1].startswith(
        "case 2 of 3  two / simulated / chat 4 users, run 1: failed: launch: it has [brackets] and"
    )
    assert lines[1].endswith("(0 s)") and len(lines) == 2
    assert "\x1b" not in said.out and said.err == ""


def test_the_remaining_time_learns_from_the_cases_that_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    watch = watching(CASES)
    watch.start(CASES[0])
    assert watch._remaining_s() == 3 * (12 + progress.OVERHEAD_S)
    clock += 20
    assert watch._remaining_s() == 3 * (12 + progress.OVERHEAD_S) - 20
    watch.end("ok")  # 20 s: 8 s more than the load
    watch.start(CASES[1])
    assert watch._remaining_s() == 2 * (12 + 8)
    clock += 1000
    assert watch._remaining_s() == 20, "one case is late, the other still takes its time"
    watch.end("failed: launch: no")
    watch.start(CASES[2])
    assert watch._remaining_s() == 20, "a case that failed says nothing about how long one takes"


def test_a_terminal_shows_case_stage_time_throughput_and_p99() -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TTY_", "NO_COLOR", "FORCE_COLOR"))
    }
    terminal = Terminal(command_of("show_progress"), environment, ROOT)
    assert terminal.wait() == 0, terminal.text
    text = ESCAPES.sub("", terminal.text)
    assert "case 2 of 3  two / simulated / chat 2.5/s, run 1: launch" in text
    assert re.search(r"run 1: load  measuring, 77 requests, 1,234 tokens/s, P99 1\.23 s\s", text)
    assert re.search(r"\d s elapsed, about \d+ s left", text)
    assert "case 2 of 3  two / simulated / chat 2.5/s, run 1: ok (1 s)" in text
