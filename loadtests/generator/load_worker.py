"""A load worker: its part of one load, its requests, and their rows."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import gevent
from gevent.event import AsyncResult

from loadtests.client import http
from loadtests.client.connection import Connection
from loadtests.client.gevent_connection import make_gevent_connection
from loadtests.client.reader import socket_reader
from loadtests.generator.gevent_tools import FairSemaphore
from loadtests.generator.messages import SENT_AFTER_S, Assignment, Start, Window, WorkerReport
from loadtests.generator.recorder import CUT_OFF, InFlightRequest, Recorder
from loadtests.workload import arrivals, prompts
from loadtests.workload.given_prompts import GivenPrompts
from servers.profile.access import AccessError, read_access

NumberedArrival = tuple[int, arrivals.Arrival]


@dataclass(slots=True)
class PreparedRequest:
    prompt: prompts.Prompt
    path: str
    body: bytes
    exchange: http.Exchange


class WorkerPlan:
    """One worker's part of the arrivals and of the slots, computed before the load starts. Raises
    AccessError if the worker lacks a header of the load's requests.
    """

    def __init__(self, assignment: Assignment):
        self.task, self.number, self.workers = (
            assignment.task,
            assignment.number,
            assignment.workers,
        )
        task, scenario = self.task, self.task.scenario
        # secrets are not sent to other machines, whose workers have their own options
        if missing := set(task.headers) - set(read_access(task.target).header_names()):
            raise AccessError(
                f"it has no header {', '.join(sorted(missing))}: start it with the same --header"
                " as the campaign, or set SERVEOFF_API_KEY there"
            )
        given = assignment.inputs.prompts
        self.given = GivenPrompts(given, task.seed, task.users) if given else None
        self.warm_up: list[NumberedArrival] = []
        self.in_window: list[NumberedArrival] = []
        if not task.is_closed:
            self.warm_up = self.own_share(task.warm_up_arrivals(assignment.inputs))
            self.in_window = self.own_share(task.window_arrivals(assignment.inputs))
        cap = scenario.get("max_in_flight")
        self.slots = (
            None
            if cap is None
            else FairSemaphore(cap // self.workers + (self.number < cap % self.workers))
        )
        socket_reader()  # made now, because a request must not wait for its compilation

    def own_share(self, planned: list[arrivals.Arrival]) -> list[NumberedArrival]:
        """Returns this worker's share of all arrivals. Every worker computes them all, so together
        they are the same for any number of workers.
        """
        return list(enumerate(planned))[self.number :: self.workers]


class LoadWorker:
    """One load worker, from its assignment to its last row. Users and arrivals wait for
    `began_s`.
    """

    def __init__(
        self,
        plan: WorkerPlan,
        offset_s: float,
        send_report: Callable[[WorkerReport], None],
        fire: Callable[..., None],
    ):
        """`offset_s` is our monotonic clock minus the coordinator's; `fire` is Locust's request
        event.
        """
        self.plan, self.task, self.scenario = plan, plan.task, plan.task.scenario
        self.users_started = 0
        self.access = read_access(self.task.target)
        self.began_s = AsyncResult()  # on the rows' clock, like all times
        self.window_start_s = AsyncResult()
        gc.collect()  # it takes about 50 ms, which the recorder would report as a stall
        self.recorder = Recorder(
            self.task, plan.number, self.task.clock_zero_s + offset_s, send_report, fire
        )
        # keep the collector from visiting thousands of Locust's objects and of arrivals again and
        # again while tokens wait
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)

    def on_start(self, start: Start) -> None:
        self.began_s.set(start.began_s)

    def on_window(self, window: Window) -> None:
        self.recorder.send_until(window.end_s + SENT_AFTER_S)
        self.window_start_s.set(window.start_s)

    def next_user_index(self) -> int:
        """Returns the number of the next user, which is unique among all workers."""
        index = self.users_started * self.plan.workers + self.plan.number
        self.users_started += 1
        return index

    def prepare_request(
        self,
        user: int,
        turn: int,
        arrival: arrivals.Arrival | None = None,
        history: tuple[prompts.PromptMessage, ...] = (),
    ) -> PreparedRequest:
        task, given = self.task, self.plan.given
        if given is not None:
            prompt = given.make_prompt(self.scenario, user, turn, arrival, task.lengths)
        else:
            prompt = prompts.make_prompt(
                task.seed, self.scenario, user, turn, arrival, history, task.lengths
            )
        path, body = prompts.request_body(self.scenario, self.task.model, prompt, self.task.dialect)
        return PreparedRequest(prompt, path, body, http.Exchange())

    def connect(self) -> Connection:
        websocket = self.scenario.get("transport") == "websocket"
        return make_gevent_connection(
            self.task.base_url,
            self.scenario["timeout_s"],
            self.access,
            self.task.dialect.path(self.scenario["endpoint"]) if websocket else None,
        )

    @contextmanager
    def record(self, request: InFlightRequest) -> Iterator[None]:
        """Ends the request's row, even if this greenlet is killed while it waits for a slot or for
        the response.
        """
        try:
            yield
        except gevent.GreenletExit:
            request.exchange.error, request.exchange.done_s = CUT_OFF, time.perf_counter()
            raise
        finally:
            self.recorder.end(request)

    def post(
        self, connection: Connection, request: InFlightRequest, prepared: PreparedRequest
    ) -> None:
        connection.post(
            prepared.path, prepared.body, request.exchange, f"{self.plan.number}-{request.number}"
        )

    def close(self) -> None:
        self.recorder.close()
