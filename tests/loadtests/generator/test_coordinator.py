"""The conductor with workers that are played by the test, in a process of its own: its failures end
the process.
"""

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtests import schema
from tests.helpers.recording_server import SCENARIO, task_of

BEGIN = """
import json, os, sys, time
from types import SimpleNamespace as Names
import gevent
from loadtests import link
from loadtests.conductor import Conductor

load = json.loads(os.environ["SERVEOFF_LOAD"])
stats = Names(total=Names(num_requests=0, num_failures=0, get_current_response_time_percentile=lambda share: None))

def report(worker, at_s, **changes):
    return {"worker": worker, "at_s": at_s, "sent": 0, "rows": 0, "tokens": 0, "cut_off": 0, "in_flight": 0, "bytes": 0, "cpu_s": 0.0,
            "waited_s": 0.0, "ended": False, "latencies": [], "lines": b"", "stalls": [], **changes}
"""
# Its last report before the window's end knows of no request; the one that was sent after it is
# known only later.
LATE_NEWS = (
    BEGIN
    + """
told, ended = [], []

def broadcast(kind, data):
    told.append((kind, conductor.now()))
    if kind == "finish":
        conductor.take(report(0, conductor.now(), ended=True))

conductor = Conductor(load, broadcast, lambda: ended.append(True), stats)
conductor.begin([{"worker": 0}], {})
gevent.sleep(0.02)
end_s = conductor.window["end_s"]
conductor.take(report(0, end_s - 0.02))
gevent.sleep(end_s + 0.5 - conductor.now())
conductor.take(report(0, end_s + 0.5, in_flight=1))
gevent.sleep(0.4)
assert "finish" not in dict(told), "a request is still unanswered"
conductor.take(report(0, end_s + 0.9))
gevent.sleep(0.3)
assert ended and [kind for kind, _ in told] == ["begin", "window", "finish"], told
conductor.close()
print("fine")
"""
)
AN_HOUR = (
    BEGIN
    + """
import tracemalloc

conductor = Conductor(load, lambda kind, data: None, lambda: None, stats)
conductor.window = {"start_s": 0.0, "end_s": 3600.0}
tracemalloc.start()
for number in range(5 * 3600):
    if number == 1000:
        before, _ = tracemalloc.get_traced_memory()
    conductor.take(report(0, number / 5, cpu_s=number / 10, waited_s=number / 50))
grown = tracemalloc.get_traced_memory()[0] - before
assert grown < 100_000, f"{grown:,} bytes"
used = conductor._used(0)
assert (used["cpu_share"], used["waited_share"]) == (0.5, 0.1), used
print("fine")
"""
)
# A pipe that is full is a disk that is busy: who writes waits.
BUSY_DISK = (
    BEGIN
    + """
from pathlib import Path

rows = Path(load["folder"]) / "requests.jsonl"
os.mkfifo(rows)
reader = os.open(rows, os.O_RDONLY | os.O_NONBLOCK)
conductor = Conductor(load, lambda kind, data: None, lambda: None, stats)
said = [b"%d" % number * 300_000 for number in range(3)]
for number, lines in enumerate(said):
    conductor.take(report(0, number / 5, lines=lines))
    conductor.report("running")
gevent.sleep(0.2)
assert conductor.files.waiting, "nobody has read, and still we are here"
conductor.reports[0]["ended"] = True
closing, written = gevent.spawn(conductor.close), b""
gevent.sleep(0.2)
assert not closing.dead, "not before all is written"
while len(written) < sum(map(len, said)):
    gevent.sleep(0.001)
    try:
        written += os.read(reader, 1 << 20)
    except BlockingIOError:
        pass
closing.join()
assert written == b"".join(said), "in order"
assert json.loads(Path(load["folder"], "load.json").read_text())["state"] == "ended"
print("fine")
"""
)
ENDED_EARLY = (
    BEGIN
    + """
conductor = Conductor(load, lambda kind, data: None, lambda: None, stats)
conductor.begin([{"worker": 0}, {"worker": 1}], {})
conductor.take(report(0, conductor.now(), lines=b'{"request": 0}\\n'))
conductor.take(report(1, conductor.now(), ended=True, lines=b'{"request": 1}\\n'))
"""
)
NOWHERE_TO_SAY_IT = (
    BEGIN
    + """
import shutil

conductor = Conductor(load, lambda kind, data: None, lambda: None, stats)
conductor.files.join()
shutil.rmtree(load["folder"])
conductor.fail("the reason")
"""
)
LINKED = (
    BEGIN
    + """
PROBLEM, CONNECTED = %r, %d

class Runner:
    clients = Names(ready=[Names(id=f"client{n}") for n in range(CONNECTED)])
    def register_message(self, kind, listener):
        setattr(self, kind, listener)
    def send_message(self, kind, data, client):
        said = {"task": ("ready", {"problem": PROBLEM}), "ping": ("pong", link.pong() | {"clock_s": time.perf_counter() + 5})}.get(kind)
        if said:
            getattr(self, said[0])(environment=None, msg=Names(data=said[1], node_id=client))

hook = Names(add_listener=lambda listener: None)
linked = link.Link(Names(runner=Runner(), parsed_options=Names(expect_workers=2, expect_workers_max_wait=0), stats=stats, web_ui=None,
                         events=Names(test_start=hook, spawning_complete=hook, test_stopping=hook)), load, True)
linked.on_test_start()
assert all(abs(worker["offset_s"] - 5) <= worker["round_trip_s"] / 2 + 1e-6 for worker in linked.conductor.workers)
assert [worker["worker"] for worker in linked.conductor.workers] == [0, 1]
linked.on_report(Names(node_id="from another load", data=report(0, 1.0, rows=7, lines=b"{}")))
assert not linked.conductor.reports
print("fine")
"""
)


def run(folder: Path, code: str) -> "subprocess.CompletedProcess[str]":
    load = task_of(
        "http://127.0.0.1:1",
        SCENARIO | {"warmup_s": 0.1, "warmup_max_s": 0.1},
        rate=5.0,
        duration_s=0.5,
    )
    load |= {"folder": str(folder), "clock_zero_s": time.perf_counter()}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SERVEOFF_LOAD": json.dumps(load)},
    )


def test_the_drain_does_not_end_on_news_from_before_the_window_s_end(tmp_path: Path) -> None:
    done = run(tmp_path, LATE_NEWS)
    assert done.stdout == "fine\n", done.stderr


def test_an_hour_of_reports_takes_no_more_memory_than_a_few(tmp_path: Path) -> None:
    done = run(tmp_path, AN_HOUR)
    assert done.stdout == "fine\n", done.stderr


def test_a_busy_disk_keeps_no_token_waiting(tmp_path: Path) -> None:
    """It did: with rows and load.json written by a greenlet, the load generator now and then read
    nothing for half a second.
    """
    done = run(tmp_path, BUSY_DISK)
    assert done.stdout == "fine\n", done.stderr


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (ENDED_EARLY, "load worker 1 was ended"),
        (LINKED % (None, 3), "3 load workers are there, and --load-workers is 2: end the others"),
        (
            LINKED % ("trace.csv cannot be read: No such file or directory", 2),
            "load worker 0: trace.csv cannot be read: No such file or directory",
        ),
    ],
    ids=["ended early", "too many", "cannot make its arrivals"],
)
def test_what_makes_a_measurement_worthless_ends_it_with_a_sentence(
    tmp_path: Path, code: str, sentence: str
) -> None:
    done = run(tmp_path, code)
    assert (done.returncode, done.stdout, done.stderr) == (
        4,
        "",
        f"the load generator gave up: {sentence}\n",
    )
    assert schema.read_json(tmp_path / "load.json")["state"] == sentence
    if code is ENDED_EARLY:
        assert schema.read_lines(tmp_path / "requests.jsonl") == [{"request": 0}, {"request": 1}], (
            "what came is kept"
        )


def test_a_failure_that_cannot_be_written_down_is_still_said(tmp_path: Path) -> None:
    done = run(tmp_path, NOWHERE_TO_SAY_IT)
    assert (done.returncode, done.stdout, done.stderr) == (
        4,
        "",
        "the load generator gave up: the reason\n",
    )


def test_clocks_of_one_machine_may_differ_and_reports_of_others_are_ignored(tmp_path: Path) -> None:
    done = run(tmp_path, LINKED % (None, 2))
    assert done.stdout == "fine\n", done.stderr


def test_its_report_leaves_nothing_that_only_a_garbage_collection_would_take_away(
    tmp_path: Path,
) -> None:
    """In a load generator there is one in half an hour."""
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
