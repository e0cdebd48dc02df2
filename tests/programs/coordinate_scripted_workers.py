"""The coordinator with workers that are played by this program.

The first argument names one of CASES; SERVEOFF_LOAD has the load. A failure of the load ends the
process with exit code 4.
"""

import argparse
import json
import os
import shutil
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent

from loadtests.generator.channel import MessageChannel, read_clock
from loadtests.generator.coordinator import Coordinator
from loadtests.generator.messages import Finish, Message, Window, WorkerReport
from loadtests.generator.status import RUNNING, WorkerClock
from loadtests.generator.task import LoadTask

CLOCK_OFFSET_S = 5.0
task = LoadTask.from_json(json.loads(os.environ["SERVEOFF_LOAD"]))
stats = SimpleNamespace(
    total=SimpleNamespace(
        num_requests=0, num_failures=0, get_current_response_time_percentile=lambda share: None
    )
)


def report(worker: int, at_s: float, **changes: Any) -> WorkerReport:
    unchanged = WorkerReport(
        worker=worker,
        at_s=at_s,
        sent=0,
        rows=0,
        failed=0,
        failure=None,
        tokens=0,
        cut_off=0,
        in_flight=0,
        received_bytes=0,
        reader="python",
        cpu_s=0.0,
        waited_s=0.0,
        ended=False,
        latencies=[],
        lines=b"",
        stalls=[],
    )
    return replace(unchanged, **changes)


def clock_of(worker: int) -> WorkerClock:
    return WorkerClock(worker, 0.0, 0.0, 0.0)


def coordinate() -> Coordinator:
    """A coordinator whose messages reach nobody."""
    return Coordinator(task, lambda message: None, lambda: None, stats)


def late_report(arguments: argparse.Namespace) -> None:
    """The last report before the window's end knows of no request; the one that was sent after it
    becomes known later.
    """
    broadcasts: list[tuple[str, float]] = []
    ended: list[bool] = []

    def broadcast(message: Message) -> None:
        broadcasts.append((message.kind, coordinator.now()))
        if isinstance(message, Finish):
            coordinator.on_report(report(0, coordinator.now(), ended=True))

    coordinator = Coordinator(task, broadcast, lambda: ended.append(True), stats)
    coordinator.start([clock_of(0)], {})
    gevent.sleep(0.02)
    end_s = coordinator.window.end_s
    coordinator.on_report(report(0, end_s - 0.02))
    gevent.sleep(end_s + 0.5 - coordinator.now())
    coordinator.on_report(report(0, end_s + 0.5, in_flight=1))
    gevent.sleep(0.4)
    assert "finish" not in dict(broadcasts), "a request is still unanswered"
    coordinator.on_report(report(0, end_s + 0.9))
    gevent.sleep(0.3)
    assert ended
    assert [kind for kind, _ in broadcasts] == ["begin", "window", "finish"], broadcasts
    coordinator.close()


def hour_of_reports(arguments: argparse.Namespace) -> None:
    coordinator = coordinate()
    coordinator.window = Window(0.0, 3600.0)
    tracemalloc.start()
    before = 0
    for number in range(5 * 3600):
        if number == 1000:
            before, _ = tracemalloc.get_traced_memory()
        coordinator.on_report(report(0, number / 5, cpu_s=number / 10, waited_s=number / 50))
    grown = tracemalloc.get_traced_memory()[0] - before
    assert grown < 100_000, f"{grown:,} bytes"
    used = coordinator.worker_status(clock_of(0), RUNNING)
    assert (used.cpu_share, used.waited_share) == (0.5, 0.1), used


def busy_disk(arguments: argparse.Namespace) -> None:
    """A full pipe is as a busy disk: the one who writes waits."""
    rows = Path(task.folder) / "requests.jsonl"
    os.mkfifo(rows)
    reader = os.open(rows, os.O_RDONLY | os.O_NONBLOCK)
    coordinator = coordinate()
    pieces = [b"%d" % number * 300_000 for number in range(3)]
    for number, piece in enumerate(pieces):
        coordinator.on_report(report(0, number / 5, lines=piece))
        coordinator.write_status(RUNNING)
    gevent.sleep(0.2)
    assert coordinator.writer.waiting, "nobody has read, and still we are here"
    coordinator.reports[0] = replace(coordinator.reports[0], ended=True)
    closing = gevent.spawn(coordinator.close)
    gevent.sleep(0.2)
    assert not closing.dead, "not before all is written"
    written = b""
    while len(written) < sum(map(len, pieces)):
        gevent.sleep(0.001)
        try:
            written += os.read(reader, 1 << 20)
        except BlockingIOError:
            pass
    closing.join()
    assert written == b"".join(pieces), "in order"
    assert json.loads(Path(task.folder, "load.json").read_text())["state"] == "ended"


def ended_early(arguments: argparse.Namespace) -> None:
    coordinator = coordinate()
    coordinator.start([clock_of(0), clock_of(1)], {})
    coordinator.on_report(report(0, coordinator.now(), lines=b'{"request": 0}\n'))
    coordinator.on_report(report(1, coordinator.now(), ended=True, lines=b'{"request": 1}\n'))


def folder_removed(arguments: argparse.Namespace) -> None:
    coordinator = coordinate()
    coordinator.writer.join()
    shutil.rmtree(task.folder)
    coordinator.fail("the reason")


class Runner:
    """Locust's runner with `count` workers, whose clocks are CLOCK_OFFSET_S ahead of ours."""

    def __init__(self, count: int, problem: str | None) -> None:
        self.problem = problem
        ready = [SimpleNamespace(id=f"client{number}") for number in range(count)]
        self.clients = SimpleNamespace(ready=ready)
        self.listeners: dict[str, Any] = {}

    def register_message(self, kind: str, listener: Any) -> None:
        self.listeners[kind] = listener

    def send_message(self, kind: str, data: object, client: str) -> None:
        """Lets the worker respond at once."""
        if kind == "task":
            self.deliver("ready", client, {"problem": self.problem})
        elif kind == "ping":
            clock_s = time.perf_counter() + CLOCK_OFFSET_S
            self.deliver("pong", client, replace(read_clock(), clock_s=clock_s).to_data())

    def deliver(self, kind: str, client: str, data: dict[str, Any]) -> None:
        message = SimpleNamespace(data=data, node_id=client)
        self.listeners[kind](environment=None, msg=message)


def link_workers(arguments: argparse.Namespace) -> None:
    """Two workers are expected; --workers of them are there, all with --problem."""
    hook = SimpleNamespace(add_listener=lambda listener: None)
    environment = SimpleNamespace(
        runner=Runner(arguments.workers, arguments.problem),
        parsed_options=SimpleNamespace(expect_workers=2, expect_workers_max_wait=0),
        stats=stats,
        web_ui=None,
        events=SimpleNamespace(test_start=hook, spawning_complete=hook, test_stopping=hook),
    )
    channel = MessageChannel(environment, task, True)
    channel.on_test_start()
    clocks = channel.coordinator.clocks
    assert [clock.worker for clock in clocks] == [0, 1]
    for clock in clocks:
        error_s = abs(clock.offset_s - CLOCK_OFFSET_S)
        assert error_s <= clock.round_trip_s / 2 + 1e-6, clock
    foreign = report(0, 1.0, rows=7, lines=b"{}").to_data()
    channel.on_report(SimpleNamespace(node_id="from another load", data=foreign))
    assert not channel.coordinator.reports


CASES = {
    "late report": late_report,
    "hour of reports": hour_of_reports,
    "busy disk": busy_disk,
    "ended early": ended_early,
    "folder removed": folder_removed,
    "link workers": link_workers,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--problem")
    given = parser.parse_args()
    CASES[given.case](given)
    print("fine")
