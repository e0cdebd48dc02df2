"""Users and arrivals: Locust drives, our own client measures. The only module that imports Locust.

    SERVEOFF_LOAD='{...}' locust -f loadtests/generator/locustfile.py --headless ClosedLoop|OpenLoop
        as loadtests/generator/locust_process.py starts it
    locust -f loadtests/generator/locustfile.py --worker --master-host ...
        as loadtests/generator/remote_worker.py starts it, on another machine

Each request becomes one row (loadtests/generator/recorder.py) and one of Locust's request events.
So Locust's statistics, CSV, web UI and distribution work as usual, and its count is compared with
ours. A single Locust process is both coordinator and load worker; with several load workers,
Locust's master is the coordinator and sends them messages (loadtests/generator/messages.py).
"""

import json
import os
from functools import partial
from typing import Any

import gevent
from gevent.event import AsyncResult
from locust import User, events, runners, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

from loadtests.client import http
from loadtests.client.connection import Connection
from loadtests.generator import messages
from loadtests.generator.channel import MessageChannel, read_clock
from loadtests.generator.coordinator import Coordinator
from loadtests.generator.gevent_tools import IoYield, abort_process
from loadtests.generator.load_worker import LoadWorker, NumberedArrival, PreparedRequest, WorkerPlan
from loadtests.generator.messages import (
    KNOWN_BEFORE_S,
    Assignment,
    ClockOffset,
    Finish,
    Ping,
    Ready,
    Start,
    Window,
)
from loadtests.generator.pacer import make_pacer
from loadtests.generator.recorder import InFlightRequest
from loadtests.generator.task import LoadTask
from loadtests.workload import arrivals, prompts
from servers.contract import oracle
from servers.runtime.limits import LOST_AFTER_S

# an open loop prepares a request that is due this soon before any other work
URGENT_S = 0.02
LEAST_PAUSE_S, MOST_PAUSE_S = 0.005, 1.0  # of a user after a failed request


class ClosedLoop(User):
    """One user: sends a request, waits for the response, thinks, and sends the next. The load falls
    when the server is slow. With `turns` the user holds conversations.
    """

    def __init__(self, environment: Environment):
        super().__init__(environment)
        self.worker = worker_of(environment)
        self.recorder, scenario = self.worker.recorder, self.worker.scenario
        self.index = self.worker.next_user_index()
        self.first_turn = self.turn = 0
        self.free_s = 0.0  # the time from which this user could send
        self.think_s: float = scenario.get("think_s", 0.0)
        self.converses = "turns" in scenario and self.worker.plan.given is None
        self.sends_at_once = not self.think_s and not self.converses
        self.connection = self.worker.connect()
        self.connection.on_next_sent = self.on_sent_ahead
        self.failures = 0  # in a row
        self.prepared: gevent.Greenlet | None = None  # prepares the next request
        self.next_request: PreparedRequest | None = None  # the connection sends it by itself
        self.sent_ahead: InFlightRequest | None = None  # the connection has sent it

    @task
    def run_user(self) -> None:
        worker, recorder, users = self.worker, self.recorder, self.worker.task.users
        if users and self.index >= users:
            # Locust gives every worker the same number of users; this one is surplus
            raise StopUser
        self.prepared = gevent.spawn(worker.prepare_request, self.index, 0)
        began_s = worker.began_s.get()
        # users start one after the other in the first half of the warm-up: if they started
        # together, they would stay together
        if users:
            warmup_s = worker.scenario["warmup_s"]
            gevent.sleep(began_s + warmup_s / 2 * self.index / users - recorder.now())
        try:
            self.connection.open()
        except (OSError, http.ResponseError):
            pass  # the first request reports it in its row
        self.free_s = recorder.now()
        while self.sent_ahead or not recorder.is_over():
            self.send_once()
            if (think_s := self.free_s - recorder.now()) > 0:
                gevent.sleep(think_s)
        raise StopUser

    def on_sent_ahead(self, number: int, done_s: float) -> None:
        """Opens the row of `next_request`. The connection sent it when the previous response ended,
        at `done_s`.
        """
        assert self.next_request is not None
        self.sent_ahead = self.recorder.begin(
            self.index,
            done_s - self.recorder.zero_s,
            self.next_request.prompt,
            self.next_request.exchange,
            number,
        )

    def prepare_next(self) -> PreparedRequest:
        """Prepares the next request. Without think time it goes out the moment the response ends,
        so it is built beforehand: a cold cache costs microseconds.
        """
        prepared = self.worker.prepare_request(self.index, self.turn)
        self.next_request = prepared
        if self.sends_at_once:
            self.connection.prepare(
                prepared.path,
                prepared.body,
                http.id_prefix(self.worker.plan.number),
                prepared.exchange,
            )
        return prepared

    def send_once(self) -> None:
        assert self.prepared is not None
        prepared: PreparedRequest = self.prepared.get()
        request, self.sent_ahead = self.sent_ahead, None
        if request is None:
            request = self.recorder.begin(
                self.index, self.free_s, prepared.prompt, prepared.exchange
            )
        self.turn += 1
        if not self.converses:
            self.prepared = gevent.spawn(self.prepare_next)  # runs during the wait for the response
        with self.worker.record(request):
            self.worker.post(self.connection, request, prepared)
        self.free_s = request.exchange.done_s - self.recorder.zero_s + self.think_s
        self.pause_after_failure(request.exchange)
        if self.converses:
            self.prepared = gevent.spawn(self.prepare_next_turn, prepared.prompt, request)

    def pause_after_failure(self, exchange: http.Exchange) -> None:
        """Pauses after a failure, so a server that fails at once does not turn the loop into a
        flood. Each failure in a row doubles the pause; Retry-After extends it if the load respects
        it.
        """
        status = exchange.status
        if exchange.error is None and status is not None and 200 <= status < 300:
            self.failures = 0
            return
        self.failures += 1
        wait_s = min(MOST_PAUSE_S, LEAST_PAUSE_S * 2 ** min(self.failures, 20))
        if self.worker.task.respect_retry_after:
            wait_s = max(wait_s, http.parse_retry_after(exchange.retry_after) or 0.0)
        gevent.sleep(min(wait_s, max(0.0, self.recorder.seconds_left())))
        self.free_s = self.recorder.now()

    def prepare_next_turn(
        self, prompt: prompts.Prompt, request: InFlightRequest
    ) -> PreparedRequest:
        """Prepares the next turn of the conversation, with its history, or the first turn of a new
        one.
        """
        worker = self.worker
        response_text = request.response_text.get()
        turns = prompts.conversation_turns(
            worker.task.seed, worker.scenario, self.index, self.first_turn
        )
        if response_text is not None and self.turn - self.first_turn < turns:
            history = (
                *prompt.history,
                prompts.PromptMessage("user", prompt.text, prompt.text_tokens),
                prompts.PromptMessage(
                    "assistant",
                    response_text.strip(),
                    # as a prompt it has at least the tokens of its words
                    max(
                        request.response_tokens,
                        worker.task.lengths.tokens_of(oracle.count_tokens(response_text)),
                    ),
                ),
            )
            prepared = worker.prepare_request(self.index, self.turn, history=history)
            context = worker.scenario.get("context", arrivals.CONTEXT)
            if (prepared.prompt.tokens or 0) + prepared.prompt.max_tokens <= context:
                return prepared
        self.first_turn = self.turn
        return worker.prepare_request(self.index, self.turn)


class OpenLoop(User):
    """The one user of a worker that sends at the scheduled times, whether or not earlier requests
    have ended: the load does not yield. With `max_in_flight` a request waits for a slot, and its
    latency includes that wait.
    """

    def __init__(self, environment: Environment):
        super().__init__(environment)
        self.worker = worker_of(environment)
        self.recorder, self.slots = self.worker.recorder, self.worker.plan.slots
        self.io_yield = IoYield()
        self.in_flight: set[gevent.Greenlet] = set()
        self.pacer = make_pacer(
            self.worker.connect(), http.id_prefix(self.worker.plan.number), ahead=self.slots is None
        )

    @task
    def run_schedule(self) -> None:
        worker = self.worker
        try:
            self.send_arrivals(
                -1, worker.plan.warm_up, worker.began_s.get(), until_s=worker.window_start_s
            )
            self.send_arrivals(0, worker.plan.in_window, worker.window_start_s.get(), until_s=None)
            self.pacer.join()
            gevent.joinall(list(self.in_flight))
            raise StopUser
        finally:
            self.pacer.close()
            gevent.killall(list(self.in_flight))

    def send_arrivals(
        self, user: int, planned: list[NumberedArrival], start_s: float, until_s: AsyncResult | None
    ) -> None:
        """Sends the planned arrivals, timed from `start_s`, up to `until_s` if it is given."""
        recorder = self.recorder
        for number, arrival in planned:
            scheduled_s = start_s + arrival.at_s
            if scheduled_s - recorder.now() > URGENT_S:
                self.io_yield.yield_to_io()
            prepared = self.worker.prepare_request(user, number, arrival)
            if (early_s := scheduled_s - KNOWN_BEFORE_S - recorder.now()) > 0:
                gevent.sleep(early_s) if until_s is None else until_s.wait(early_s)
            # The window's first arrivals must not wait for the warm-up's next one, which may be
            # later.
            if until_s is not None and until_s.ready() and scheduled_s >= until_s.get():
                break
            self.pacer.send(
                recorder.zero_s + scheduled_s,
                prepared.path,
                prepared.body,
                prepared.exchange,
                partial(self.track, scheduled_s, prepared),
            )

    def track(
        self,
        scheduled_s: float,
        prepared: PreparedRequest,
        connection: Connection | None,
        number: int | None,
    ) -> None:
        """Waits for the response in a greenlet. `connection` and `number` are None if the request
        has not been sent.
        """
        request = self.recorder.begin(None, scheduled_s, prepared.prompt, prepared.exchange, number)
        greenlet = gevent.spawn(self.await_response, request, prepared, connection)
        greenlet.link_exception(lambda failed: abort_process(repr(failed.exception)))
        self.in_flight.add(greenlet)
        greenlet.rawlink(self.in_flight.discard)

    def await_response(
        self, request: InFlightRequest, prepared: PreparedRequest, connection: Connection | None
    ) -> None:
        with self.worker.record(request):
            if self.slots is not None:
                self.slots.acquire()
                request.slot_s = self.recorder.now()
            connection = connection or self.pacer.acquire_idle() or self.worker.connect()
            self.worker.post(connection, request, prepared)
        self.pacer.return_idle(connection)
        if self.slots is not None:  # a killed greenlet keeps its slot: no other may proceed
            self.slots.release()


class LoadProcess:
    """The part of this Locust process in the load: it coordinates, sends, or does both."""

    def __init__(self, environment: Environment):
        self.environment, self.runner = environment, environment.runner
        self.coordinator: Coordinator | None = None
        self.plan: WorkerPlan | None = None
        self.worker: LoadWorker | None = None  # once clocks have been compared
        if not isinstance(self.runner, MasterRunner):
            self.listen_as_worker()
        if not isinstance(self.runner, WorkerRunner):
            load = LoadTask.from_json(json.loads(os.environ["SERVEOFF_LOAD"]))
            is_master = isinstance(self.runner, MasterRunner)
            self.coordinator = MessageChannel(environment, load, is_master).coordinator

    def listen_as_worker(self) -> None:
        messages.listen(self.runner, Assignment, self.on_assignment)
        messages.listen(self.runner, Ping, lambda _: messages.send(self.runner, read_clock()))
        messages.listen(self.runner, ClockOffset, self.start_recording)
        messages.listen(self.runner, Start, lambda start: self.recording_worker.on_start(start))
        messages.listen(self.runner, Window, lambda window: self.recording_worker.on_window(window))
        messages.listen(self.runner, Finish, lambda _: self.finish_worker())

    @property
    def recording_worker(self) -> LoadWorker:
        if self.worker is None:
            raise RuntimeError("the load has not started")
        return self.worker

    def on_assignment(self, assignment: Assignment) -> None:
        problem = None
        try:
            self.plan = WorkerPlan(assignment)
        except Exception as error:
            problem = str(error) or repr(error)
        messages.send(self.runner, Ready(problem))

    def start_recording(self, clock: ClockOffset) -> None:
        assert self.plan is not None, "the assignment comes first"
        self.worker = LoadWorker(
            self.plan,
            clock.offset_s,
            partial(messages.send, self.runner),
            self.environment.events.request.fire,
        )

    def finish_worker(self) -> None:
        """Stops users that still wait for a response; then writes the last rows."""
        self.stop_users()
        self.close_worker()
        if isinstance(self.runner, WorkerRunner):
            # send them now, because Locust's own last statistics may reach the coordinator too late
            self.runner._send_stats()

    def stop_users(self) -> None:
        self.environment.stop_timeout = 0
        assert self.runner is not None
        self.runner.stop()

    def on_quitting(self, **_: Any) -> None:
        """Ends the process's part. Normally no user still runs; after SIGTERM it waits for none."""
        self.environment.stop_timeout = 0
        if isinstance(self.runner, WorkerRunner):
            self.stop_users()
            self.close_worker()
        elif self.coordinator is not None:
            self.coordinator.finishing = True
            if isinstance(self.runner, MasterRunner):
                self.coordinator.finish(patience_s=2.0)

    def on_quit(self, **_: Any) -> None:
        self.close_worker()
        if self.coordinator is not None:
            self.coordinator.close()

    def close_worker(self) -> None:
        if self.worker is not None:  # otherwise it has recorded nothing
            self.worker.close()


def process_of(environment: Environment) -> LoadProcess:
    process: LoadProcess = environment.load_process  # type: ignore[attr-defined]
    return process


def worker_of(environment: Environment) -> LoadWorker:
    return process_of(environment).recording_worker


@events.init.add_listener
def on_init(environment: Environment, **_: Any) -> None:
    process = LoadProcess(environment)
    environment.load_process = process  # type: ignore[attr-defined]
    if isinstance(environment.runner, WorkerRunner):
        # after a coordinator was killed, its load must not continue for a minute
        runners.MASTER_HEARTBEAT_TIMEOUT = LOST_AFTER_S
    # Add these only now: Locust calls the last listener first, and its own, added just before,
    # disconnects.
    environment.events.quitting.add_listener(process.on_quitting)
    environment.events.quit.add_listener(process.on_quit)


@events.user_error.add_listener
def on_user_error(exception: Exception, **_: Any) -> None:
    abort_process(repr(exception))  # otherwise Locust continues with one user fewer
