"""The conductor of a load: one for all load workers. It keeps their rows, decides when the window
opens and when the load ends, and tells the driver once a second how it goes (load.json).

It runs in Locust's master, or in its only process. What goes to and fro between conductor and
workers are Locust's messages.
"""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import psutil

from loadtests import schema
from loadtests.generator import steady_state
from loadtests.generator.gevent_tools import BackgroundWriter, abort_process
from loadtests.workload import arrivals
from servers.runtime.limits import LOST_AFTER_S, SETTLE_S

OPENS_IN_S = 0.3  # every worker knows of the window before it opens


class Coordinator:
    """`broadcast(type, data)` reaches all workers, `quit` ends Locust. Times are on the rows'
    clock, in seconds.
    """

    def __init__(
        self,
        load: dict[str, Any],
        broadcast: Callable[[str, dict[str, Any]], None],
        quit: Callable[[], None],
        stats: Any,
    ):
        self.load, self.broadcast, self.quit, self.stats = load, broadcast, quit, stats
        self.scenario: dict[str, Any] = load["scenario"]
        self.folder = Path(load["folder"])
        self.planned = None  # requests of the window, of an open loop
        if self.scenario["arrivals"] != "closed":
            self.planned = len(
                arrivals.window_arrivals(
                    load["seed"], self.scenario, load["rate"], load["duration_s"]
                )
            )
        self.rows = (self.folder / "requests.jsonl").open("ab", buffering=0)
        self.files = BackgroundWriter(lambda error: abort_process(self.failed or error))
        self.reports: dict[int, dict[str, Any]] = {}  # the last of each worker
        # first and last report, for what a worker used meanwhile
        self.in_window: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.stalls: dict[int, list[tuple[float, float]]] = {}  # of each worker
        self.heard_s: dict[int, float] = {}
        self.workers: list[dict[str, Any]] = []  # {worker, offset_s, ...} of each, as in run.json
        self.began_s = self.now()
        self.collector: steady_state.SeriesCollector | None = None
        self.window: dict[str, float] | None = None
        self.warmup: dict[str, Any] | None = None  # as in run.json
        # workers that Locust forked here: their end is seen at once
        self.children: dict[int, psutil.Process] = {}
        self.finishing = False  # so that workers may end
        self.failed: str | None = None  # why
        self.greenlets: list[gevent.Greenlet] = []
        self.report("starting")

    def now(self) -> float:
        return time.perf_counter() - float(self.load["clock_zero_s"])

    def fail(self, why: str) -> None:
        """Ends all of it at once: one sentence for run.json. What was recorded so far is kept."""
        try:
            if self.failed is None:
                self.failed = why
                self.report(why)
            self.files.join()
        finally:
            abort_process(self.failed)

    def begin(self, workers: list[dict[str, Any]], pids: dict[int, int]) -> None:
        """The workers are ready: users and arrivals begin now. `pids`: of each worker, on its own
        machine.
        """
        self.workers = workers
        own = {child.pid: child for child in psutil.Process().children()}
        self.children = {worker: own[pid] for worker, pid in pids.items() if pid in own}
        self.began_s = self.now() + (0.05 if len(workers) > 1 else 0.0)
        # Users begin one after the other in the first half of the shortest warm-up
        # (loadtests/generator/locustfile.py).
        ramp_s = self.scenario["warmup_s"] / 2 if self.scenario["arrivals"] == "closed" else 0.0
        self.collector = steady_state.SeriesCollector(self.began_s + ramp_s)
        self.broadcast("begin", {"began_s": self.began_s})
        self.greenlets = [gevent.spawn(self.conduct)]
        self.greenlets[0].link_exception(lambda failed: self.fail(str(failed.exception)))

    def take(self, report: dict[str, Any]) -> None:
        """What one worker reports (loadtests/generator/recorder.py)."""
        lines, ended = report.pop("lines"), report.pop("latencies")
        self.stalls.setdefault(report["worker"], []).extend(report.pop("stalls"))
        if self.window is None and self.collector:
            self.collector.take(report["worker"], report["at_s"], report["bytes"], ended)
        if lines:
            self.files.do(lambda: self._append(lines))
        self.reports[report["worker"]] = report
        self.heard_s[report["worker"]] = self.now()
        if self.window and self.window["start_s"] <= report["at_s"] < self.window["end_s"]:
            first, _ = self.in_window.get(report["worker"], (report, report))
            self.in_window[report["worker"]] = (first, report)
        if report["ended"] and not self.finishing:
            self.fail(f"load worker {report['worker']} was ended")

    def _append(self, lines: bytes) -> None:
        # half of it: the disk is full, and no line may follow that half
        if self.rows.write(lines) != len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def conduct(self) -> None:
        self._warm_up()
        self._open_window()
        assert self.window is not None
        last_s = self.window["end_s"] + 0.2  # a little later nobody sends any more
        self._wait_until(last_s)
        drained_s = self.window["end_s"] + self.scenario["drain_s"]
        # A report from before `last_s` may know nothing of the last requests.
        while self.now() < drained_s and (
            self._total("in_flight") or any(each["at_s"] < last_s for each in self.reports.values())
        ):
            self._wait_until(self.now() + 0.1)
        self.finish(SETTLE_S)
        self.quit()

    def _warm_up(self) -> None:
        """At least warmup_s, then until steady, where the demand does not vary by plan and the
        scenario allows for more.
        """
        least_s = self.began_s + self.scenario["warmup_s"] - OPENS_IN_S
        last_s = self.began_s + arrivals.longest_warm_up_s(self.scenario) - OPENS_IN_S
        if last_s <= least_s:
            self._wait_until(least_s)
            why = (
                "the demand varies by plan"
                if arrivals.varies_by_plan(self.scenario)
                else "warmup_max_s leaves no time for it"
            )
            self.warmup = {"steady": None, "why": f"not asked: {why}"}
            return
        assert self.collector is not None
        collector, judge = self.collector, steady_state.SteadyJudge(self.load["duration_s"])
        while True:
            self._wait_until(min(self.now() + 1.0, last_s))
            verdict = judge.ask(*collector.series())
            if (verdict.steady and self.now() >= least_s) or self.now() >= last_s:
                self.warmup = {"steady": verdict.steady, "why": verdict.why}
                return

    def _open_window(self) -> None:
        assert self.warmup is not None
        at_s = max(self.now() + OPENS_IN_S, self.began_s + self.scenario["warmup_s"])
        self.window = {"start_s": at_s, "end_s": at_s + self.load["duration_s"]}
        self.warmup = {"took_s": round(at_s - self.began_s, 3)} | self.warmup
        self.broadcast("window", self.window)

    def finish(self, patience_s: float) -> None:
        """Ends users that still wait, and collects the last rows, and what Locust counted."""
        self.finishing = True
        self.broadcast("finish", {})
        end_s = self.now() + patience_s
        while self.now() < end_s and not (
            all(report["ended"] for report in self.reports.values())
            and self.stats.total.num_requests >= self._total("rows")
        ):
            gevent.sleep(0.02)

    def _wait_until(self, at_s: float) -> None:
        """Reports to the driver meanwhile."""
        while (left_s := at_s - self.now()) > 0:
            gevent.sleep(min(left_s, 1.0))
            self.report("running")
            self._look_for_lost_ones()

    def _look_for_lost_ones(self) -> None:
        for worker, child in self.children.items():
            if not child.is_running() or child.status() == psutil.STATUS_ZOMBIE:
                self.fail(f"load worker {worker} ended by itself")
        for each in self.workers:
            if self.now() - self.heard_s.get(each["worker"], self.began_s) > LOST_AFTER_S:
                self.fail(f"load worker {each['worker']} has not reported for {LOST_AFTER_S:g} s")

    def _total(self, name: str) -> int:
        return sum(int(report[name]) for report in self.reports.values())

    def report(self, state: str) -> None:
        if self.failed not in (None, state):  # that is the last that is said
            return
        stats = self.stats.total
        said = {
            "state": state,
            "now_s": self.now(),
            "began_s": self.began_s,
            "warmup": self.warmup,
            "window": self.window,
            "planned": self.planned,
            **{name: self._total(name) for name in ("sent", "rows", "cut_off", "tokens")},
            "workers": [
                worker
                | self._used(worker["worker"])
                | {"stalls": None if state == "running" else self._stalls(worker["worker"])}
                for worker in self.workers
            ],
            "locust_requests": stats.num_requests,
            "locust_failures": stats.num_failures,
            "e2e_p99_s": (
                (stats.get_current_response_time_percentile(0.99) or 0) / 1e3
                if state == "running"
                else None
            ),
        }
        self.files.do(lambda: schema.write_json(self.folder / "load.json", said, durable=False))

    def _stalls(self, worker: int) -> list[tuple[float, float]]:
        return [
            (round(start_s, 6), round(end_s, 6)) for start_s, end_s in self.stalls.get(worker, [])
        ]

    def _used(self, worker: int) -> dict[str, Any]:
        report = self.reports.get(worker, {})
        used: dict[str, Any] = {
            "rows": report.get("rows", 0),
            "reader": report.get("reader"),
            "cpu_share": None,
            "waited_share": None,
        }
        first, last = self.in_window.get(worker, (None, None))
        if first is not None and last is not None and first is not last:
            for share, total in (("cpu_share", "cpu_s"), ("waited_share", "waited_s")):
                if last[total] is not None:
                    used[share] = round(
                        max(0.0, last[total] - first[total]) / (last["at_s"] - first["at_s"]), 5
                    )
        return used

    def close(self) -> None:
        gevent.killall(self.greenlets)
        lost = [
            worker["worker"]
            for worker in self.workers
            if not self.reports.get(worker["worker"], {}).get("ended")
        ]
        self.report(f"lost load worker {', '.join(map(str, lost))}" if lost else "ended")
        self.files.join()
        self.rows.close()
