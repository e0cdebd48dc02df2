"""One campaign that is killed, then interrupted, then loses its server, and then completes. It
keeps its results and measures only the missing cases.
"""

import fcntl
import re
import shutil
import subprocess
from typing import Any

import pytest

from analysis import dataset
from loadtests import schema
from tests.helpers.campaign_process import (
    ESCAPES,
    PATIENCE_S,
    QUICK,
    STAGES,
    Bench,
    case_folder,
    is_complete,
    rows_when_under_load,
    runs,
    said_of,
    table,
    wait_for,
)

COMMAND = (
    *QUICK,
    "--servers",
    "fastapi_threadpool,flask_gunicorn",
    "--workers",
    "1",
    "--duration",
    "4",
    "--out",
    "broken",
)


@pytest.fixture(scope="module")
def killed(bench: Bench) -> dict[str, Any]:
    """`kill -9` of the driver."""
    campaign = bench.folder / "broken"
    driver = bench.start(*COMMAND)
    seen = rows_when_under_load(campaign, 1)
    driver.kill()
    driver.communicate()
    wait_for(lambda: not bench.left_over(), "nothing left of a killed campaign")
    folder = case_folder(campaign, 1)
    return {
        "seen": seen,
        "files": sorted(path.name for path in folder.iterdir()),
        "run": schema.read_json(folder / "run.json"),
        "rows": schema.read_lines(folder / "requests.jsonl"),
        "telemetry": schema.read_lines(folder / "telemetry.jsonl"),
    }


@pytest.fixture(scope="module")
def interrupted(bench: Bench, killed: dict[str, Any]) -> dict[str, Any]:
    """Ctrl-C on a terminal."""
    campaign = bench.folder / "broken"
    terminal = bench.on_terminal(*COMMAND)
    seen = rows_when_under_load(campaign, 1)
    wait_for(lambda: "P99" in terminal.text, "the live view")
    terminal.press(b"\x03")
    code = terminal.wait()
    left = bench.left_over()
    folder = case_folder(campaign, 1)
    return {
        "code": code,
        "left": left,
        "seen": seen,
        "text": ESCAPES.sub("", terminal.text),
        "rows": table(folder, "requests"),
        "run": schema.read_json(folder / "run.json"),
        "cases": len(runs(campaign)),
    }


@pytest.fixture(scope="module")
def server_died(bench: Bench, interrupted: dict[str, Any]) -> dict[str, Any]:
    """`kill -9` of the first server's root process."""
    campaign = bench.folder / "broken"
    driver = bench.start(*COMMAND)
    rows_when_under_load(campaign, 1)
    wanted = {"servers.runtime.supervise", "servers.flask_gunicorn.app:app"}
    [supervisor] = [process for process in bench.processes() if wanted <= {*said_of(process)}]
    [root] = supervisor.children()
    root.kill()
    text, _ = driver.communicate(timeout=PATIENCE_S)
    left = bench.left_over()
    return {
        "code": driver.returncode,
        "left": left,
        "text": text,
        "runs": runs(campaign),
        "cases": dataset.read_campaign(campaign).cases,
        "rows": table(case_folder(campaign, 1), "requests"),
    }


@pytest.fixture(scope="module")
def ended(bench: Bench, server_died: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
    return bench.run(*COMMAND)


def test_a_killed_campaign_leaves_every_row_and_no_process(killed: dict[str, Any]) -> None:
    assert (
        killed["run"]["status"] == "running" and killed["run"]["case"]["server"] == "flask_gunicorn"
    )
    assert len(killed["rows"]) >= killed["seen"]
    numbers = {row["request"] for row in killed["rows"]}
    assert len(numbers) == len(killed["rows"])
    assert len(set(range(max(numbers))) - numbers) <= 3, (
        "only the requests of the 3 users in flight may be missing"
    )
    assert {row["answer"] for row in killed["rows"][: killed["seen"]]} == {"exact"}
    assert len(killed["telemetry"]) >= 1


def test_ctrl_c_ends_at_once_and_keeps_the_rows(interrupted: dict[str, Any]) -> None:
    assert interrupted["code"] == 130 and interrupted["left"] == []
    assert interrupted["run"]["status"] == "failed: load: interrupted by Ctrl-C"
    assert interrupted["run"]["counts"]["rows"] == len(interrupted["rows"]) >= interrupted["seen"]
    assert interrupted["cases"] == 1, "the next case must not start"
    assert "the same command with --out broken continues the campaign" in interrupted["text"]
    assert "Traceback" not in interrupted["text"]


def test_the_live_view_shows_the_progress(interrupted: dict[str, Any]) -> None:
    text = interrupted["text"]
    assert re.search(
        r"1 flask_gunicorn     quick    3 users (warm-up, \d+ s|measuring, \d of 4 s)\s+"
        r"\d+ requests, [\d,]+ tokens/s, E2E P99 \d+\.\d\d s\s+"
        r"2 fastapi_threadpool quick    3 users to come\s+"
        r"0 of 2 cases done, \d+ s elapsed, about [\d min]+ s left",
        text,
    )


def test_the_next_run_prints_the_end_of_the_last_one(
    interrupted: dict[str, Any], server_died: dict[str, Any], ended: Any
) -> None:
    name = "001-flask_gunicorn-simulated-quick-r1"
    case, again = f"case 1 ({name})", f"its files are now in attempts/{name}.%d, and it runs again"
    assert f"{case} was interrupted; {again % 1}" in interrupted["text"]
    assert f"{case} failed: load: interrupted by Ctrl-C; {again % 2}" in server_died["text"]
    assert f"{case} failed: load: the server ended by itself (exit code 137)" in ended.stdout


def test_a_server_that_dies_fails_its_case_and_not_the_next(server_died: dict[str, Any]) -> None:
    assert server_died["code"] == 1 and server_died["left"] == []
    first, second = (run for _, run in server_died["runs"])
    assert first["status"].startswith(
        "failed: load: the server ended by itself (exit code 137); its last log lines:\n"
    )
    assert [stage["name"] for stage in first["stages"]] == STAGES[:4]
    assert first["verify_after"] is None and first["counts"]["rows"] == len(server_died["rows"])
    assert second["status"] == "ok" and [stage["name"] for stage in second["stages"]] == STAGES
    assert second["clock_zero_s"] > first["clock_zero_s"] + first["stages"][-1]["end_s"]
    assert server_died["cases"]["state"].tolist() == ["failed", "ok"]


def test_a_load_generator_that_was_killed_leaves_its_rows_and_no_counts(bench: Bench) -> None:
    """Its last counts are older than its last rows."""
    campaign = bench.folder / "no-load"
    driver = bench.start(
        *QUICK, "--servers", "fastapi_threadpool", "--duration", "600", "--out", "no-load"
    )
    seen = rows_when_under_load(campaign, 1)
    bench.load_workers()[0].kill()
    driver.communicate(timeout=PATIENCE_S)
    [(folder, run)] = runs(campaign)
    assert driver.returncode == 1 and run["status"].startswith(
        "failed: load: the load generator ended with exit code 137 (running)"
    )
    assert (
        run["counts"] is None and len(table(folder, "requests")) >= seen and bench.left_over() == []
    )


def test_finished_cases_are_not_repeated_and_broken_ones_are_kept(
    bench: Bench, ended: Any, killed: dict[str, Any]
) -> None:
    campaign = bench.folder / "broken"
    assert is_complete(ended.returncode, ended.stderr), ended.stdout + ended.stderr
    assert (
        "continuing broken: 1 of 2 cases are done" in ended.stdout
        and "case 2 of 2" not in ended.stdout
    )
    assert [run["status"] for _, run in runs(campaign)] == ["ok", "ok"]
    assert dataset.read_campaign(campaign).cases["state"].tolist() == ["ok", "ok"], (
        "an attempt must not stand in for its case"
    )
    attempts = sorted((campaign / "attempts").iterdir())
    assert [path.suffix for path in attempts] == [".1", ".2", ".3"]
    assert schema.read_lines(attempts[0] / "requests.jsonl") == killed["rows"]
    assert len(table(attempts[1], "requests")) > 0 and len(table(attempts[2], "requests")) > 0
    assert bench.left_over() == []


def test_a_campaign_is_continued_only_by_its_own_command_and_one_process(
    bench: Bench, ended: Any
) -> None:
    bench.refuses(
        "broken is another campaign, by its seed: repeat its command to continue it, or choose"
        " another --out",
        *COMMAND,
        "--seed",
        "3",
    )
    published = shutil.copytree(
        bench.folder / "broken", bench.folder / "published", ignore=lambda *_: ["cases"]
    )
    (published / "cases.json").touch()
    bench.refuses(
        "published was published without its requests and cannot be continued: choose another"
        " --out",
        *COMMAND,
        "--out",
        "published",
    )
    with (bench.folder / "broken" / "campaign.json").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # as the process that runs the campaign does
        bench.refuses(
            "another process is measuring broken: wait until it ends, or choose another --out",
            *COMMAND,
        )
