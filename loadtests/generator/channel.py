"""The coordinator's end of Locust's messages, which are calls if there is only one process.

When workers come, leave or are late, Locust would rebalance the load. Here that is disabled, or it
ends the load with one sentence.
"""

import os
import time
from pathlib import Path
from typing import Any

import gevent
from gevent.event import AsyncResult

from loadtests.generator import messages
from loadtests.generator.coordinator import Coordinator
from loadtests.generator.messages import (
    Assignment,
    ClockOffset,
    Message,
    MessageT,
    Ping,
    Pong,
    Ready,
    WorkerReport,
)
from loadtests.generator.status import WorkerClock
from loadtests.generator.task import LoadTask
from servers.runtime.limits import START_S

CLOCK_PINGS = 10
# processes that read the same id mostly share their monotonic clock
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def machine_id() -> str | None:
    return BOOT_ID.read_text() if BOOT_ID.exists() else None


def read_clock() -> Pong:
    return Pong(time.perf_counter(), machine_id(), os.getpid())


class MessageChannel:
    """Connects a coordinator to its workers. `environment` is Locust's; `is_master` is true in
    Locust's master, and false in its only process.
    """

    def __init__(self, environment: Any, task: LoadTask, is_master: bool):
        self.environment, self.runner, self.options, self.is_master = (
            environment,
            environment.runner,
            environment.parsed_options,
            is_master,
        )
        # Ignore clients that connect later or are left over from another load.
        self.clients: list[str | None] = []
        self.replies: dict[str, AsyncResult] = {}
        self.coordinator = Coordinator(task, self.broadcast, self.quit, environment.stats)
        messages.listen(self.runner, Ready, self.on_reply)
        messages.listen(self.runner, Pong, self.on_reply)
        self.runner.register_message(
            WorkerReport.kind, lambda environment, msg, **_: self.on_report(msg)
        )
        environment.events.test_start.add_listener(self.on_test_start)
        environment.events.spawning_complete.add_listener(self.on_spawning_complete)
        environment.events.test_stopping.add_listener(self.on_test_stopping)
        if self.is_master and self.options.expect_workers_max_wait:
            gevent.spawn_later(self.options.expect_workers_max_wait, self.on_late_start)

    def broadcast(self, message: Message) -> None:
        for client in self.clients:
            messages.send(self.runner, message, client)

    def quit(self) -> None:
        self.runner.quit()
        if self.environment.web_ui:
            self.environment.web_ui.stop()

    def request(self, message: Message, reply: type[MessageT], client: str | None) -> MessageT:
        """Sends the message to one worker and returns its reply. Raises gevent.Timeout."""
        self.replies[reply.kind] = AsyncResult()
        messages.send(self.runner, message, client)
        received = self.replies[reply.kind].get(timeout=START_S)
        assert isinstance(received, reply)
        return received

    def on_reply(self, reply: Message) -> None:
        self.replies[reply.kind].set(reply)

    def on_test_start(self, **_: Any) -> None:
        self.clients = (
            sorted(client.id for client in self.runner.clients.ready) if self.is_master else [None]
        )
        try:
            if self.is_master and len(self.clients) != self.options.expect_workers:
                raise RuntimeError(
                    f"{len(self.clients)} load workers are connected, but --load-workers is"
                    f" {self.options.expect_workers}: stop the extra ones"
                )
            for number, client in enumerate(self.clients):
                assignment = Assignment(
                    self.coordinator.task, number, len(self.clients), self.coordinator.inputs
                )
                if problem := self.request(assignment, Ready, client).problem:
                    raise RuntimeError(f"load worker {number}: {problem}")
            compared = [
                self.compare_clocks(number, client) for number, client in enumerate(self.clients)
            ]
            self.coordinator.start(
                [clock for clock, _pid in compared], {clock.worker: pid for clock, pid in compared}
            )
        except gevent.Timeout:
            self.coordinator.fail(f"a load worker did not reply within {START_S:g} s")
        except Exception as error:
            self.coordinator.fail(str(error))

    def compare_clocks(self, number: int, client: str | None) -> tuple[WorkerClock, int]:
        """Returns a worker's clock and process id, and sends the worker its clock's offset."""
        estimates = []
        for _ping in range(CLOCK_PINGS):
            before_s = time.perf_counter()
            pong = self.request(Ping(), Pong, client)
            after_s = time.perf_counter()
            estimates.append((after_s - before_s, pong.clock_s - (before_s + after_s) / 2))
        # the quickest round trip is the most exact: the error is at most half of it (Cristian 1989)
        round_trip_s, estimated_s = min(estimates)
        # Containers on one machine may have monotonic clocks of their own.
        is_same = (
            pong.machine is not None
            and pong.machine == machine_id()
            and abs(estimated_s) <= round_trip_s / 2
        )
        offset_s = 0.0 if is_same else estimated_s
        messages.send(self.runner, ClockOffset(offset_s), client)
        return WorkerClock(number, offset_s, estimated_s, round_trip_s), pong.pid

    def on_report(self, message: Any) -> None:
        if not self.is_master or message.node_id in self.clients:
            self.coordinator.on_report(WorkerReport.from_data(message.data))

    def on_spawning_complete(self, **_: Any) -> None:
        # Otherwise Locust moves users between workers when another worker connects, or when a
        # heartbeat is late.
        self.runner._users_dispatcher = None

    def on_test_stopping(self, **_: Any) -> None:
        if not self.coordinator.finishing:
            self.coordinator.fail(
                "the load was stopped on Locust's web page, or all load workers were lost"
            )

    def on_late_start(self) -> None:
        connected, options = len(self.runner.clients.ready), self.options
        if not self.coordinator.clocks and connected < options.expect_workers:
            where = f"{options.master_bind_host}:{options.master_bind_port}"
            remedy = (
                "see its log"
                if options.processes
                else f"run `python -m loadtests.worker {where}` on the other machines"
            )
            self.coordinator.fail(
                f"{connected} of {options.expect_workers} load workers had connected after"
                f" {options.expect_workers_max_wait} s: {remedy}"
            )
