"""Load workers on other machines: `python -m loadtests.worker` against --listen, over 127.0.0.1,
also with another clock.
"""

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from loadtests.__main__ import main as campaign_command
from loadtests.generator.locust_process import LoadFailed, Workers
from loadtests.generator.remote_worker import main as worker_command
from loadtests.generator.status import LoadStatus
from loadtests.workload import arrivals, prompts
from servers.profile.access import Access
from servers.runtime import catalog, limits, ports
from tests.helpers.campaign_process import PATIENCE_S, QUICK, Bench, call_command, said_of, wait_for
from tests.helpers.installed import require_installed
from tests.helpers.python_program import command_of, output_of
from tests.helpers.recording_server import CLOSED, SCENARIO, SEED, Driven, Witness, drive, task_of
from tests.loadtests.campaign.test_bad_input import dead_port

Start = Callable[..., "subprocess.Popen[str]"]
COMMAND = [sys.executable, "-m", "loadtests.worker"]


@pytest.fixture
def port() -> int:
    return ports.find_free_port()


@pytest.fixture
def start(marked: Bench, port: int) -> Iterator[Start]:
    """Starts workers for that port. At the end each gets SIGTERM, exits with 0, and leaves no
    process behind.
    """
    started = []

    def one(*before: str) -> "subprocess.Popen[str]":
        started.append(
            subprocess.Popen(
                [*before, *COMMAND, f"127.0.0.1:{port}"],
                cwd=catalog.ROOT,
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
        return started[-1]

    yield one
    for process in [
        each
        for each in marked.processes()
        if "loadtests.worker" in (command := said_of(each)) and "unshare" not in command
    ]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), outputs
    assert not any("Traceback" in text for text in outputs), outputs


def requests_of(driven: Driven, user: int) -> list[tuple[int, int]]:
    rows = sorted(
        (row for row in driven.rows if row["user"] == user), key=lambda row: row["request"]
    )
    return [(row["prompt_tokens_asked"], row["max_tokens"]) for row in rows]


def planned_of(driven: Driven, seed: str, user: int) -> list[tuple[int, int]]:
    wanted = (
        prompts.make_prompt(seed, CLOSED, user, turn)
        for turn in range(len(requests_of(driven, user)))
    )
    return [(each.tokens, each.max_tokens) for each in wanted]


def test_two_workers_run_one_case_after_the_other(tmp_path: Path, start: Start, port: int) -> None:
    start()
    start()
    for case in ("first", "second"):
        with Witness(answer_s=0.02) as witness:
            driven = drive(
                tmp_path / case,
                task_of(witness.url, SCENARIO, rate=20.0),
                Workers(2, ("127.0.0.1", port)),
            )
        assert (
            {driven.said[name] for name in ("sent", "rows", "locust_requests")}
            == {len(driven.rows)}
            == {len(witness.asked)}
        )
        planned = [arrival.at_s for arrival in arrivals.window_arrivals(SEED, SCENARIO, 20.0, 1.0)]
        assert [
            row["scheduled_s"] - driven.window[0] for row in driven.in_window()
        ] == pytest.approx(planned, abs=2e-6)
        assert {row["worker"] for row in driven.rows} == {0, 1} and {
            row["answer"] for row in driven.rows
        } == {"exact"}
        for each in driven.said["workers"]:
            assert (
                each["offset_s"] == 0
                and abs(each["estimated_offset_s"]) <= each["round_trip_s"] / 2
            )


def test_a_worker_s_clock_is_distinguished_from_ours(
    tmp_path: Path, start: Start, port: int
) -> None:
    """The worker's monotonic clock is 1000 s ahead on the same machine; the rows are on the
    driver's clock.
    """
    require_installed("unshare")
    ahead = ("unshare", "--time", "--monotonic", "1000", "--fork", "--")
    if subprocess.run([*ahead, "true"], capture_output=True).returncode:
        pytest.skip("no time namespace can be made here")
    start(*ahead)
    with Witness(answer_s=0.02) as witness:
        task = task_of(witness.url, SCENARIO, rate=20.0)
        driven = drive(tmp_path / "load", task, Workers(1, ("127.0.0.1", port)))
    [worker] = driven.said["workers"]
    assert worker["offset_s"] == worker["estimated_offset_s"]
    error_s = abs(worker["offset_s"] - 1000)
    assert error_s <= worker["round_trip_s"] / 2 + 1e-6, (
        "a namespace's offset is exact: both clocks are the same"
    )
    came_s = {asked.request_id: asked.at_s - task.clock_zero_s for asked in witness.asked}
    assert len(came_s) == len(driven.rows) > 10
    for row in driven.rows:
        assert (
            row["sent_s"] - error_s - 1e-6
            <= came_s[f"0-{row['request']}"]
            <= row["done_s"] + error_s + 1e-6
        )


def test_a_worker_without_the_campaign_s_headers_sends_nothing(
    tmp_path: Path, start: Start, port: int
) -> None:
    start()
    access = Access((("Authorization", "Bearer k"), ("Api-Key", "k")))
    with (
        Witness() as witness,
        pytest.raises(LoadFailed, match="load worker 0: it has no header api"),
    ):
        drive(
            tmp_path / "load",
            task_of(witness.url, SCENARIO, rate=20.0),
            Workers(1, ("127.0.0.1", port)),
            access=access,
        )
    assert not witness.asked


def test_the_documented_packages_are_all_that_a_worker_imports() -> None:
    line = re.search(r"pip install (locust .*)", (catalog.ROOT / "docs/distributed.md").read_text())
    assert line
    installed, more = set(), {canonicalize_name(name) for name in line[1].split()}
    while more:
        installed |= more
        below = [Requirement(text) for name in more for text in metadata.requires(name) or ()]
        more = {
            canonicalize_name(each.name)
            for each in below
            if not each.marker or each.marker.evaluate({"extra": ""})
        } - installed
    by_module = metadata.packages_distributions()
    imported = {module.partition(".")[0] for module in output_of("list_modules", "send").split()}
    unknown = {
        module
        for module in imported & by_module.keys()
        if not installed & {canonicalize_name(name) for name in by_module[module]}
    }
    assert not unknown


def test_a_late_worker_has_no_part_in_the_load(tmp_path: Path, start: Start, port: int) -> None:
    start()
    late: list[Any] = []

    def watch(status: LoadStatus | None) -> None:
        if not late and status and status.state == "running":
            late.append(start())

    with Witness(answer_s=0.02) as witness:
        driven = drive(
            tmp_path / "load",
            task_of(witness.url, CLOSED, users=2, duration_s=5.0),
            Workers(1, ("127.0.0.1", port)),
            watch,
        )
    assert late and [each["rows"] for each in driven.said["workers"]] == [len(driven.rows)] == [
        len(witness.asked)
    ]
    for user in range(2):
        assert requests_of(driven, user) == planned_of(driven, SEED, user)
        rows = sorted(
            (row for row in driven.rows if row["user"] == user), key=lambda row: row["request"]
        )
        assert all(
            after["scheduled_s"] == pytest.approx(before["done_s"], abs=2e-6)
            for before, after in pairwise(rows)
        ), "without a break"
        assert rows[-1]["done_s"] >= driven.window[1] and rows[-1]["error"] is None, "to the end"


def test_the_load_of_a_driver_that_vanishes_does_not_reach_the_next_one(
    tmp_path: Path, marked: Bench, start: Start, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVEOFF_LOST_AFTER_S", "4")
    start()
    with Witness(answer_s=0.02) as first, Witness(answer_s=0.02) as second:
        driver = subprocess.Popen(
            command_of("drive_load", str(tmp_path / "first"), first.url, str(port)),
            cwd=catalog.ROOT,
        )
        wait_for(lambda: len(first.asked) > 20, "the first load")
        [coordinator] = [
            process for process in marked.load_workers() if "--worker" not in said_of(process)
        ]
        for each in (coordinator, driver):  # as in a power failure: no worker is notified
            each.kill()
        driver.wait(PATIENCE_S)
        driven = drive(
            tmp_path / "second",
            task_of(second.url, CLOSED, users=2, seed="2"),
            Workers(1, ("127.0.0.1", port)),
        )
        asked = len(first.asked)
        assert (
            {driven.said[name] for name in ("sent", "rows", "locust_requests")}
            == {len(driven.rows)}
            == {len(second.asked)}
        )
        assert all(requests_of(driven, user) == planned_of(driven, "2", user) for user in range(2))
        assert len(first.asked) == asked, "the first server gets no more requests"


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (
            signal.SIGSTOP,
            "the load was stopped on Locust's web page, or all load workers were lost",
        ),
        (signal.SIGTERM, "load worker 0 was stopped"),
    ],
    ids=["stopped", "ended"],
)
def test_a_lost_worker_fails_the_case(
    tmp_path: Path, marked: Bench, start: Start, port: int, number: int, sentence: str
) -> None:
    start()
    victims: list[psutil.Process] = []

    def watch(status: LoadStatus | None) -> None:
        if not victims and status and status.state == "running" and status.rows >= 20:
            victims.extend(each for each in marked.load_workers() if "--worker" in said_of(each))
            victims[0].send_signal(number)

    with Witness(answer_s=0.02) as witness, pytest.raises(LoadFailed) as failed:
        drive(
            tmp_path / "load",
            task_of(witness.url, CLOSED, users=2, duration_s=600),
            Workers(1, ("127.0.0.1", port)),
            watch,
        )
    assert f"({sentence}); its last log lines:\n" in str(failed.value)
    if number == signal.SIGSTOP:
        victims[0].resume()


# --- mistakes


def test_no_worker_connects(
    tmp_path: Path, marked: Bench, monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    monkeypatch.setattr(limits, "REMOTE_START_S", 2.0)
    with pytest.raises(LoadFailed) as failed:
        drive(
            tmp_path / "load",
            task_of("http://127.0.0.1:1", CLOSED, users=2),
            Workers(2, ("127.0.0.1", port)),
        )
    remedy = f"run `python -m loadtests.worker 127.0.0.1:{port}` on the other machines"
    assert f"(0 of 2 load workers had connected after 2 s: {remedy}); its last log lines:\n" in str(
        failed.value
    )


@pytest.mark.parametrize(
    "listen", ["10.0.0.5", ":5557", "0.0.0.0:5557", "10.0.0.5:70000", "10.0.0.5:x"]
)
def test_bad_addresses_are_refused_on_both_sides(
    bench: Bench, listen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_command(worker_command, listen) == 2
    refused = r"error: argument coordinator: '.*' is not (ADDRESS:PORT,|a port from) .*\n"
    assert re.fullmatch(refused, capsys.readouterr().err)
    assert call_command(campaign_command, *QUICK, "--listen", listen) == 2
    assert capsys.readouterr().err.startswith("error: argument --listen: ")


def test_a_bad_address_starts_nothing(bench: Bench) -> None:
    listen = "10.0.0.5"
    done = subprocess.run([*COMMAND, listen], cwd=catalog.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    bench.refuses("argument --listen: ", *QUICK, "--listen", listen, "--out", "not_to_be")


def test_unusable_ports_are_refused_before_anything_starts(bench: Bench) -> None:
    with Witness() as witness:
        taken = str(witness.server_port)
        for option, place in (("--listen", f"127.0.0.1:{taken}"), ("--web-port", taken)):
            bench.refuses(
                f"port {taken} on 127.0.0.1 cannot be used (Address already in use): choose another"
                f" one with {option}",
                *QUICK,
                option,
                place,
                "--out",
                "not_to_be",
            )
    bench.refuses(
        "port 5557 on 192.0.2.1 cannot be used (Cannot assign requested address): choose another"
        " one with --listen",
        *QUICK,
        "--listen",
        "192.0.2.1:5557",
        "--out",
        "not_to_be",
    )


def test_a_worker_without_a_coordinator_gives_up(bench: Bench) -> None:
    place = f"127.0.0.1:{dead_port()}"
    done = subprocess.run(
        [*COMMAND, place, "--patience", "0.5"], cwd=catalog.ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"error: no coordinator at {place} within 0.5 s: start `nox -s bench -- --listen"
        f" {place} ...` there\n"
    )
