"""A campaign whose disk is full."""

import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from loadtests import schema
from tests.helpers.campaign_process import (
    PATIENCE_S,
    QUICK,
    Bench,
    case_folder,
    rows_when_under_load,
    runs,
    table,
)
from tests.helpers.installed import require_installed

# longer than PATIENCE_S: only the failure can end the campaign in time
LONG = ("--servers", "fastapi_threadpool", *QUICK, "--duration", "600")


def test_a_recorder_that_cannot_write_fails_the_case(bench: Bench) -> None:
    """Limits only the load generator's files, as a quota may."""
    driver = bench.start(*LONG, "--out", "limited")
    rows_when_under_load(bench.folder / "limited", 1)
    [locust] = bench.load_workers()
    size = case_folder(bench.folder / "limited", 1).joinpath("requests.jsonl").stat().st_size
    locust.rlimit(psutil.RLIMIT_FSIZE, (size + 5000, resource.RLIM_INFINITY))
    text, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 1 and bench.left_over() == []
    [(folder, run)] = runs(bench.folder / "limited")
    assert run["status"].startswith(
        "failed: load: the load generator ended with exit code 4 (running)"
    ), run["status"]
    assert "gave up: [Errno 2" in run["status"] and "gave up: [Errno 2" in text
    rows = table(folder, "requests")
    assert len(rows) >= 10 and {row["answer"] for row in rows} == {"exact"}


@pytest.fixture
def small_disk(bench: Bench) -> Iterator[Path]:
    require_installed("mount")
    place = bench.folder / "disk"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(place)], capture_output=True
    ).returncode:
        pytest.skip("a file system of 128 KB cannot be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_ends_the_campaign_with_one_sentence_and_the_rows_so_far(
    bench: Bench, small_disk: Path
) -> None:
    done = bench.run(*LONG, "--out", "disk/campaign")
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.fullmatch(
        r"error: .*No space left on device: choose a writable folder .*\n", done.stderr
    ), done.stderr
    assert bench.left_over() == []
    [(folder, run)] = runs(small_disk / "campaign")
    assert run["status"].startswith(
        "failed: load: no space left on the disk: the load generator ended"
    ), run["status"]
    assert not any(folder.glob("*.partial")) and not (folder / "reserve").exists()
    rows = schema.read_lines(folder / "requests.jsonl")
    assert len(rows) >= 10 and {row["answer"] for row in rows} == {"exact"}
