"""A whole campaign whose load comes from another machine: two network namespaces, connected by a
cable.
"""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from servers.runtime import catalog
from tests.helpers.campaign_process import (
    PATIENCE_S,
    QUICK,
    Bench,
    is_complete,
    runs,
    table,
    wait_for,
)
from tests.helpers.installed import require_installed

HERE, THERE = "10.231.7.1", "10.231.7.2"
PORT = 5557  # each namespace has ports of its own


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@pytest.fixture
def machines() -> Iterator[tuple[list[str], list[str]]]:
    """Yields two prefixes of a command, which run it on one machine and on the other."""
    require_installed("ip")
    names = [f"serveoff-{os.getpid()}-{letter}" for letter in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip(
            "-n",
            names[0],
            "link",
            "add",
            "cable",
            "type",
            "veth",
            "peer",
            "name",
            "cable",
            "netns",
            names[1],
        )
        for name, address in zip(names, (HERE, THERE), strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield ["ip", "netns", "exec", names[0]], ["ip", "netns", "exec", names[1]]
    except RuntimeError as problem:
        pytest.skip(f"no network namespaces can be made here: {problem}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_the_load_comes_from_another_machine(
    bench: Bench, machines: tuple[list[str], list[str]]
) -> None:
    here, there = machines
    worker = subprocess.Popen(
        [*there, sys.executable, "-m", "loadtests.worker", f"{HERE}:{PORT}"],
        cwd=catalog.ROOT,
        text=True,
        env=bench.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    command = bench.command(
        *QUICK,
        "--servers",
        "fastapi_threadpool",
        "--repeat",
        "2",
        "--duration",
        "1",
        "--listen",
        f"{HERE}:{PORT}",
        "--out",
        "two",
    )
    done = subprocess.run(
        [*here, *command],
        cwd=bench.folder,
        env=bench.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert is_complete(done.returncode, done.stderr), done.stdout + done.stderr
    wait_for(
        lambda: [process.pid for process in bench.processes()] == [worker.pid],
        "the worker alone, waiting for the next case",
    )
    worker.terminate()
    assert (
        worker.communicate(timeout=PATIENCE_S) == ("case done\ncase done\n", "")
        and worker.returncode == 0
    )
    assert bench.left_over() == []

    assert len(runs(bench.folder / "two")) == 2
    for folder, run in runs(bench.folder / "two"):
        rows = table(folder, "requests")
        assert run["status"] == "ok" and HERE in run["command"], (
            "the server listens where the other machine can reach it"
        )
        assert {run["counts"][name] for name in ("sent", "rows", "locust_requests")} == {
            len(rows)
        } and len(rows) > 20
        assert {row["answer"] for row in rows} == {"exact"} and {row["user"] for row in rows} == {
            0,
            1,
            2,
        }
        [found] = run["load_workers"]
        assert found["rows"] == len(rows) and found["offset_s"] == 0, (
            "both have the same clock, whatever they estimate"
        )
        assert abs(found["estimated_offset_s"]) <= found["round_trip_s"] / 2
        for row in rows:
            assert (
                row["scheduled_s"]
                <= row["sent_s"]
                < row["first_s"]
                <= row["last_s"]
                <= row["done_s"]
            )
