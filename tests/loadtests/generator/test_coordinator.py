"""The coordinator with workers that the test plays. Each test has its own process, because a
failure ends the process.
"""

import gc
import json
import subprocess
from pathlib import Path

import pytest

from loadtests import schema
from tests.helpers.python_program import run_program
from tests.helpers.recording_server import SCENARIO, task_of


def run(folder: Path, case: str, *options: str) -> "subprocess.CompletedProcess[str]":
    task = task_of(
        "http://127.0.0.1:1",
        SCENARIO | {"warmup_s": 0.1, "warmup_max_s": 0.1},
        rate=5.0,
        duration_s=0.5,
        folder=str(folder),
    )
    return run_program(
        "coordinate_scripted_workers", case, *options, SERVEOFF_LOAD=json.dumps(task.to_json())
    )


def test_a_report_from_before_the_window_s_end_does_not_end_the_drain(tmp_path: Path) -> None:
    done = run(tmp_path, "late report")
    assert done.stdout == "fine\n", done.stderr


def test_an_hour_of_reports_takes_no_more_memory_than_a_few(tmp_path: Path) -> None:
    done = run(tmp_path, "hour of reports")
    assert done.stdout == "fine\n", done.stderr


def test_a_busy_disk_delays_no_token(tmp_path: Path) -> None:
    """When a greenlet wrote rows and load.json, the load generator sometimes read nothing for half
    a second.
    """
    done = run(tmp_path, "busy disk")
    assert done.stdout == "fine\n", done.stderr


@pytest.mark.parametrize(
    ("case", "options", "sentence"),
    [
        ("ended early", [], "load worker 1 was stopped"),
        (
            "link workers",
            ["--workers", "3"],
            "3 load workers are connected, but --load-workers is 2: stop the extra ones",
        ),
        (
            "link workers",
            ["--problem", "trace.csv cannot be read: No such file or directory"],
            "load worker 0: trace.csv cannot be read: No such file or directory",
        ),
    ],
    ids=["ended early", "too many", "cannot compute its arrivals"],
)
def test_a_fault_that_invalidates_the_load_ends_it_with_a_sentence(
    tmp_path: Path, case: str, options: list[str], sentence: str
) -> None:
    done = run(tmp_path, case, *options)
    assert (done.returncode, done.stdout, done.stderr) == (
        4,
        "",
        f"the load generator gave up: {sentence}\n",
    )
    assert schema.read_json(tmp_path / "load.json")["state"] == sentence
    if case == "ended early":
        assert schema.read_lines(tmp_path / "requests.jsonl") == [{"request": 0}, {"request": 1}], (
            "rows so far are kept"
        )


def test_a_failure_that_cannot_be_written_to_disk_is_still_printed(tmp_path: Path) -> None:
    done = run(tmp_path, "folder removed")
    assert (done.returncode, done.stdout, done.stderr) == (
        4,
        "",
        "the load generator gave up: the reason\n",
    )


def test_clocks_of_one_machine_may_differ_and_other_workers_reports_are_ignored(
    tmp_path: Path,
) -> None:
    done = run(tmp_path, "link workers")
    assert done.stdout == "fine\n", done.stderr


def test_writing_the_status_leaves_nothing_for_the_garbage_collector(tmp_path: Path) -> None:
    """A load generator's collector runs about every half hour."""
    report = {
        "state": "running",
        "workers": [{"worker": 0, "rows": 5, "cpu_share": None}],
        "window": {"start_s": 1.0},
    }
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            schema.write_json(tmp_path / "load.json", report, durable=False)
        assert gc.collect() == 0
    finally:
        gc.enable()
    assert schema.read_json(tmp_path / "load.json") == report
