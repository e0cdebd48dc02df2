"""The coordinator of a load: it writes the rows of all load workers, opens the window, ends the
load, and writes load.json for the driver once per second.

It runs in Locust's master, or in its only process, and exchanges messages with the workers
(loadtests/generator/messages.py).
"""

import errno
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gevent
import psutil

from loadtests import schema
from loadtests.generator import steady_state
from loadtests.generator.gevent_tools import BackgroundWriter, abort_process
from loadtests.generator.messages import (
    ANNOUNCED_BEFORE_S,
    STOPPED_AFTER_S,
    Finish,
    Message,
    Stall,
    Start,
    Window,
    WorkerReport,
)
from loadtests.generator.status import (
    ENDED,
    RUNNING,
    STARTING,
    LoadStatus,
    WarmUp,
    WorkerClock,
    WorkerStatus,
)
from loadtests.generator.task import LoadTask, take_inputs
from loadtests.workload import arrivals
from servers.runtime.limits import LOST_AFTER_S, SETTLE_S

HOPELESS_ROWS, HOPELESS_S = 10, 2.0  # a load without a success ends after this many rows and s


class AllRequestsFailed(Exception):
    """All requests of a load have failed so far; the message is the reason."""


class Coordinator:
    """Coordinates one load. `broadcast` sends to all workers, `quit` ends Locust, and `stats` are
    Locust's. Times are on the rows' clock, in seconds.
    """

    def __init__(
        self,
        task: LoadTask,
        broadcast: Callable[[Message], None],
        quit: Callable[[], None],
        stats: Any,
    ):
        self.task, self.broadcast, self.quit, self.stats = task, broadcast, quit, stats
        self.scenario = task.scenario
        self.folder = Path(task.folder)
        self.inputs = take_inputs(self.folder)
        self.planned = None  # an open loop's requests in the window
        if not task.is_closed:
            self.planned = len(task.window_arrivals(self.inputs))
        self.rows = (self.folder / "requests.jsonl").open("ab", buffering=0)
        self.writer = BackgroundWriter(lambda error: abort_process(self.failed or error))
        self.reports: dict[int, WorkerReport] = {}  # the last counters of each worker
        # first and last report of each worker in the window, for its shares of a core
        self.in_window: dict[int, tuple[WorkerReport, WorkerReport]] = {}
        self.stalls: dict[int, list[Stall]] = {}  # of each worker
        self.reported_s: dict[int, float] = {}  # time of each worker's last report
        self.clocks: Sequence[WorkerClock] = []  # of all workers, once they are ready
        self.began_s = self.now()
        self.collector: steady_state.SeriesCollector | None = None
        self.window: Window | None = None
        self.warmup: WarmUp | None = None
        self.unsteady: str | None = None  # the reason why the warm-up continues
        # workers that Locust forked here: the coordinator sees their end at once
        self.children: dict[int, psutil.Process] = {}
        self.finishing = False  # once true, workers may end
        self.failed: str | None = None  # the reason why the load failed
        self.all_failed: str | None = None  # the reason why all requests failed
        self.greenlets: list[gevent.Greenlet] = []
        self.write_status(STARTING)

    def now(self) -> float:
        return time.perf_counter() - self.task.clock_zero_s

    def fail(self, reason: str) -> None:
        """Ends the load at once, with one sentence for run.json. Keeps all rows so far."""
        try:
            if self.failed is None:
                self.failed = reason
                self.write_status(reason)
            self.writer.join()
        finally:
            abort_process(self.failed)

    def start(self, clocks: Sequence[WorkerClock], pids: dict[int, int]) -> None:
        """Starts users and arrivals on the workers, which are ready. `pids` has each worker's
        process id on its own machine.
        """
        self.clocks = clocks
        own = {child.pid: child for child in psutil.Process().children()}
        self.children = {worker: own[pid] for worker, pid in pids.items() if pid in own}
        self.began_s = self.now() + (0.05 if len(clocks) > 1 else 0.0)
        # Users start one after the other in the first half of the shortest warm-up
        # (loadtests/generator/locustfile.py).
        ramp_s = self.scenario["warmup_s"] / 2 if self.task.is_closed else 0.0
        self.collector = steady_state.SeriesCollector(self.began_s + ramp_s)
        self.broadcast(Start(self.began_s))
        self.greenlets = [gevent.spawn(self.run, self.collector)]
        self.greenlets[0].link_exception(lambda failed: self.fail(str(failed.exception)))

    def on_report(self, report: WorkerReport) -> None:
        worker, totals = report.worker, report.without_news()
        self.stalls.setdefault(worker, []).extend(report.stalls)
        if self.window is None and self.collector:
            self.collector.add(worker, report.at_s, report.received_bytes, report.latencies)
        if report.lines:
            self.writer.submit(lambda: self._append(report.lines))
        self.reports[worker] = totals
        self.reported_s[worker] = self.now()
        if self.window and self.window.start_s <= report.at_s < self.window.end_s:
            first, _ = self.in_window.get(worker, (totals, totals))
            self.in_window[worker] = (first, totals)
        if report.ended and not self.finishing:
            self.fail(f"load worker {worker} was stopped")

    def _append(self, lines: bytes) -> None:
        # a partial write means a full disk; no line may follow a broken one
        if self.rows.write(lines) != len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def run(self, collector: steady_state.SeriesCollector) -> None:
        """Runs warm-up, window and drain. A load whose first requests all fail ends early: it would
        measure nothing and only flood the server.
        """
        try:
            self._run_load(collector)
        except AllRequestsFailed as error:
            self.all_failed = str(error)
        self.finish(SETTLE_S)
        self.quit()

    def _run_load(self, collector: steady_state.SeriesCollector) -> None:
        steady, why = self._warm_up(collector)
        window = self._open_window(steady, why, self._window_s(collector))
        stopped_s = window.end_s + STOPPED_AFTER_S
        self._wait_until(stopped_s)
        drained_s = window.end_s + self.scenario["drain_s"]
        # A report from before `stopped_s` may not include the last requests.
        while self.now() < drained_s and (
            self._total("in_flight")
            or any(report.at_s < stopped_s for report in self.reports.values())
        ):
            self._wait_until(self.now() + 0.1)

    def _warm_up(self, collector: steady_state.SeriesCollector) -> tuple[bool | None, str]:
        """Warms up for at least warmup_s. Unless the demand varies by plan or the scenario leaves
        no time for it, continues until the load is steady. Returns (steady, why).
        """
        least_s = self.began_s + self.scenario["warmup_s"] - ANNOUNCED_BEFORE_S
        last_s = self.began_s + arrivals.longest_warm_up_s(self.scenario) - ANNOUNCED_BEFORE_S
        if last_s <= least_s:
            self._wait_until(least_s)
            why = (
                "the demand varies by plan"
                if arrivals.varies_by_plan(self.scenario)
                else "warmup_max_s leaves no time for it"
            )
            return None, f"not tested: {why}"
        judge = steady_state.SteadyJudge()
        while True:
            self._wait_until(min(self.now() + 1.0, last_s))
            verdict = judge.judge(*collector.series(), self._window_s(collector))
            self.unsteady = verdict.describe_wait()
            if (verdict.steady and self.now() >= least_s) or self.now() >= last_s:
                return verdict.steady, verdict.why

    def _window_s(self, collector: steady_state.SeriesCollector) -> float:
        """Returns the length of a window that would open now. If a closed loop's scenario has
        `requests`, it follows from the rate of responses in the warm-up; for an open loop, the plan
        has already extended the window.
        """
        wanted = self.scenario.get("requests")
        if not (wanted and self.task.is_closed):
            return self.task.duration_s
        return arrivals.window_for_requests(
            wanted, collector.responses_per_s(self.now()), self.scenario, self.task.duration_s
        )

    def _open_window(self, steady: bool | None, why: str, length_s: float) -> Window:
        at_s = max(self.now() + ANNOUNCED_BEFORE_S, self.began_s + self.scenario["warmup_s"])
        self.window = Window(at_s, at_s + length_s)
        self.warmup = WarmUp(round(at_s - self.began_s, 3), steady, why)
        self.broadcast(self.window)
        return self.window

    def finish(self, patience_s: float) -> None:
        """Stops users that still wait, and collects the last rows and Locust's last counts."""
        self.finishing = True
        self.broadcast(Finish())
        end_s = self.now() + patience_s
        while self.now() < end_s and not (
            all(report.ended for report in self.reports.values())
            and self.stats.total.num_requests >= self._total("rows")
        ):
            gevent.sleep(0.02)

    def _wait_until(self, at_s: float) -> None:
        """Waits; meanwhile writes load.json and checks for lost workers and failing requests."""
        while (left_s := at_s - self.now()) > 0:
            gevent.sleep(min(left_s, 1.0))
            self.write_status(RUNNING)
            self._fail_if_worker_lost()
            self._raise_if_all_failed()

    def _raise_if_all_failed(self) -> None:
        rows = self._total("rows")
        if rows < HOPELESS_ROWS or self._total("failed") < rows:
            return
        if self.now() - self.began_s >= HOPELESS_S:
            reasons = [report.failure for report in self.reports.values() if report.failure]
            raise AllRequestsFailed(reasons[0])

    def _fail_if_worker_lost(self) -> None:
        for worker, child in self.children.items():
            if not child.is_running() or child.status() == psutil.STATUS_ZOMBIE:
                self.fail(f"load worker {worker} ended by itself")
        for clock in self.clocks:
            if self.now() - self.reported_s.get(clock.worker, self.began_s) > LOST_AFTER_S:
                self.fail(f"load worker {clock.worker} has not reported for {LOST_AFTER_S:g} s")

    def _total(self, counter: str) -> int:
        return sum(int(getattr(report, counter)) for report in self.reports.values())

    def write_status(self, state: str) -> None:
        if self.failed not in (None, state):  # the reason for a failure is the last status
            return
        stats = self.stats.total
        status = LoadStatus(
            state=state,
            now_s=self.now(),
            began_s=self.began_s,
            warmup=self.warmup,
            window=self.window,
            planned=self.planned,
            sent=self._total("sent"),
            rows=self._total("rows"),
            cut_off=self._total("cut_off"),
            tokens=self._total("tokens"),
            all_failed=self.all_failed,
            unsteady=None if self.window else self.unsteady,
            workers=[self.worker_status(clock, state) for clock in self.clocks],
            locust_requests=stats.num_requests,
            locust_failures=stats.num_failures,
            e2e_p99_s=(
                (stats.get_current_response_time_percentile(0.99) or 0) / 1e3
                if state == RUNNING
                else None
            ),
        ).to_json()
        self.writer.submit(
            lambda: schema.write_json(self.folder / "load.json", status, durable=False)
        )

    def worker_status(self, clock: WorkerClock, state: str) -> WorkerStatus:
        report = self.reports.get(clock.worker)
        cpu_share = waited_share = None
        first, last = self.in_window.get(clock.worker, (None, None))
        if first is not None and last is not None and first is not last:
            span_s = last.at_s - first.at_s
            cpu_share = share_of(last.cpu_s - first.cpu_s, span_s)
            if first.waited_s is not None and last.waited_s is not None:
                waited_share = share_of(last.waited_s - first.waited_s, span_s)
        stalls = [
            (round(start_s, 6), round(end_s, 6))
            for start_s, end_s in self.stalls.get(clock.worker, [])
        ]
        return WorkerStatus(
            **vars(clock),
            rows=report.rows if report else 0,
            reader=report.reader if report else None,
            cpu_share=cpu_share,
            waited_share=waited_share,
            stalls=None if state == RUNNING else stalls,
        )

    def close(self) -> None:
        gevent.killall(self.greenlets)
        lost = [
            str(clock.worker)
            for clock in self.clocks
            if clock.worker not in self.reports or not self.reports[clock.worker].ended
        ]
        self.write_status(f"lost load worker {', '.join(lost)}" if lost else ENDED)
        self.writer.join()
        self.rows.close()


def share_of(used_s: float, span_s: float) -> float:
    """Returns the share, never below 0: clocks of different kinds can give a negative time."""
    return round(max(0.0, used_s) / span_s, 5)
