"""How the conductor reaches the load workers: by Locust's messages, which in one process are calls.

    task, ready         each worker is given its number, and says that its arrivals are made, or why
    not
    ping, pong, clock   each worker's clock is compared with the conductor's, and it is told the
    difference
    begin, window       when users and arrivals begin; when the window opens
    report              from each worker, five times a second: what it sent and received, and its
    new rows
    finish              the last answers are settled and reported

What Locust would do by itself when workers come, go or are late is switched off, or ends the load
with one sentence.
"""

import os
import time
from pathlib import Path
from typing import Any

import gevent
from gevent.event import AsyncResult

from loadtests.generator.coordinator import Coordinator
from servers.runtime.limits import START_S

CLOCK_PINGS = 10
# processes that read the same here mostly share their monotonic clock
MACHINE = Path("/proc/sys/kernel/random/boot_id")


def machine_id() -> str | None:
    return MACHINE.read_text() if MACHINE.exists() else None


def clock_reply() -> dict[str, Any]:
    return {"clock_s": time.perf_counter(), "machine": machine_id(), "pid": os.getpid()}


class MessageChannel:
    """The conductor's end. `environment` is Locust's; `master`: whether it runs in Locust's master,
    or else in its only process.
    """

    def __init__(self, environment: Any, load: dict[str, Any], master: bool):
        self.environment, self.runner, self.options, self.master = (
            environment,
            environment.runner,
            environment.parsed_options,
            master,
        )
        # of this load: one that comes later, or is left from another load, has no part in it
        self.clients: list[str | None] = []
        self.answers: dict[str, AsyncResult] = {}
        self.conductor = Coordinator(load, self.broadcast, self.end, environment.stats)
        self.runner.register_message(
            "ready", lambda environment, msg, **_: self.answers["ready"].set(msg.data["problem"])
        )
        self.runner.register_message(
            "pong", lambda environment, msg, **_: self.answers["pong"].set(msg.data)
        )
        self.runner.register_message("report", lambda environment, msg, **_: self.on_report(msg))
        environment.events.test_start.add_listener(self.on_test_start)
        environment.events.spawning_complete.add_listener(self.on_spawning_complete)
        environment.events.test_stopping.add_listener(self.on_test_stopping)
        if self.master and self.options.expect_workers_max_wait:
            gevent.spawn_later(self.options.expect_workers_max_wait, self.on_late_start)

    def broadcast(self, kind: str, data: dict[str, Any]) -> None:
        for client in self.clients:
            self.runner.send_message(kind, data, client)

    def end(self) -> None:
        self.runner.quit()
        if self.environment.web_ui:
            self.environment.web_ui.stop()

    def ask(self, kind: str, data: dict[str, Any], answer: str, client: str | None) -> Any:
        self.answers[answer] = AsyncResult()
        self.runner.send_message(kind, data, client)
        return self.answers[answer].get(timeout=START_S)

    def on_test_start(self, **_: Any) -> None:
        self.clients = (
            sorted(client.id for client in self.runner.clients.ready) if self.master else [None]
        )
        try:
            if self.master and len(self.clients) != self.options.expect_workers:
                raise RuntimeError(
                    f"{len(self.clients)} load workers are there, and --load-workers is"
                    f" {self.options.expect_workers}: end the others"
                )
            for number, client in enumerate(self.clients):
                told = {"load": self.conductor.load, "number": number, "workers": len(self.clients)}
                if problem := self.ask("task", told, "ready", client):
                    raise RuntimeError(f"load worker {number}: {problem}")
            found = [
                self.compare_clocks(number, client) for number, client in enumerate(self.clients)
            ]
            self.conductor.begin(
                [worker for worker, _pid in found], {worker["worker"]: pid for worker, pid in found}
            )
        except gevent.Timeout:
            self.conductor.fail(f"a load worker did not answer within {START_S:g} s")
        except Exception as error:
            self.conductor.fail(str(error))

    def compare_clocks(self, number: int, client: str | None) -> tuple[dict[str, Any], int]:
        """One of run.json's load_workers, and its process id."""
        estimates = []
        for _ping in range(CLOCK_PINGS):
            before_s = time.perf_counter()
            said = self.ask("ping", {}, "pong", client)
            after_s = time.perf_counter()
            estimates.append((after_s - before_s, said["clock_s"] - (before_s + after_s) / 2))
        # the quickest one is the surest (Cristian 1989): off by half of it at most
        round_trip_s, estimated_s = min(estimates)
        # Containers of one machine may have a monotonic clock each.
        same = (
            said["machine"] is not None
            and said["machine"] == machine_id()
            and abs(estimated_s) <= round_trip_s / 2
        )
        offset_s = 0.0 if same else estimated_s
        self.runner.send_message("clock", {"offset_s": offset_s}, client)
        return {
            "worker": number,
            "offset_s": offset_s,
            "estimated_offset_s": estimated_s,
            "round_trip_s": round_trip_s,
        }, said["pid"]

    def on_report(self, message: Any) -> None:
        if not self.master or message.node_id in self.clients:
            self.conductor.take(message.data)

    def on_spawning_complete(self, **_: Any) -> None:
        # Locust would move users from one worker to another when one more connects, or when one is
        # late with its heartbeat.
        self.runner._users_dispatcher = None

    def on_test_stopping(self, **_: Any) -> None:
        if not self.conductor.finishing:
            self.conductor.fail(
                "the load was stopped on Locust's page, or all load workers were lost"
            )

    def on_late_start(self) -> None:
        found, options = len(self.runner.clients.ready), self.options
        if not self.conductor.workers and found < options.expect_workers:
            where = f"{options.master_bind_host}:{options.master_bind_port}"
            remedy = (
                "its log says why"
                if options.processes
                else f"run `python -m loadtests.worker {where}` on the other machines"
            )
            self.conductor.fail(
                f"{found} of {options.expect_workers} load workers were there after"
                f" {options.expect_workers_max_wait} s: {remedy}"
            )
