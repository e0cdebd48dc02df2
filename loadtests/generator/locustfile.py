"""Users and arrivals: Locust drives, our own client measures. The only module that imports Locust.

    SERVEOFF_LOAD='{...}' locust -f loadtests/generator/locustfile.py --headless ClosedLoop|OpenLoop
    ...
    (loadtests/generator/locust_process.py does that)
    locust -f loadtests/generator/locustfile.py --worker --master-host ...
    (loadtests/generator/remote_worker.py does
    that, on another machine)

Each request becomes one row (loadtests/generator/recorder.py) and one of Locust's request events,
so Locust's statistics, CSV, web UI and distribution work as ever, and its count is held against
ours. One process of Locust is both conductor and load worker; with several load workers, Locust's
master is the conductor, and tells the workers what to do (loadtests/generator/messages.py).
"""

import gc
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from loadtests.client.gevent_connection import make_gevent_connection
from loadtests.client.reader import socket_reader
from loadtests.generator import messages
from loadtests.generator.coordinator import Coordinator
from loadtests.generator.gevent_tools import FairSemaphore, IoYield, abort_process
from loadtests.generator.pacer import make_pacer
from loadtests.generator.recorder import CUT_OFF, InFlightRequest, Recorder
from loadtests.workload import arrivals, prompts
from servers.runtime.limits import LOST_AFTER_S

# so long before an open loop's request is due it is made before anything else is done
IN_HURRY_S = 0.02
# workers know of the window OPENS_IN_S before it opens, minus what the message takes
KNOWN_BEFORE_S = 0.1


class LoadWorker:
    """One load worker: its part of the users and of the arrivals. `number` from 0 to
    `workers` - 1.
    """

    def __init__(self, environment: Environment, told: dict[str, Any]):
        self.environment = environment
        socket_reader()  # now: where it has to be compiled, nobody shall wait for that later
        self.load: dict[str, Any] = told["load"]
        self.scenario: dict[str, Any] = self.load["scenario"]
        self.number: int = told["number"]
        self.workers: int = told["workers"]
        self.users = 0  # begun so far
        self.began = AsyncResult()  # on the rows' clock, s
        self.windowed = AsyncResult()  # its start
        self.warm_up: list[tuple[int, arrivals.Arrival]] = []
        self.in_window: list[tuple[int, arrivals.Arrival]] = []
        if self.scenario["arrivals"] != "closed":
            seed, rate = self.load["seed"], self.load["rate"]
            self.warm_up = self.mine(arrivals.warm_up_arrivals(seed, self.scenario, rate))
            self.in_window = self.mine(
                arrivals.window_arrivals(seed, self.scenario, rate, self.load["duration_s"])
            )
        cap = self.scenario.get("max_in_flight")
        self.slots = (
            None
            if cap is None
            else FairSemaphore(cap // self.workers + (self.number < cap % self.workers))
        )

    def mine(self, planned: list[arrivals.Arrival]) -> list[tuple[int, arrivals.Arrival]]:
        """Every worker computes all arrivals and takes its part, so that together they are the same
        for any number of workers.
        """
        return list(enumerate(planned))[self.number :: self.workers]

    def clock(self, offset_s: float) -> None:
        """`offset_s`: our monotonic clock minus the conductor's."""
        runner = self.environment.runner
        gc.collect()  # takes some 50 ms, which the recorder would take for a stall
        self.recorder = Recorder(
            self.load,
            self.number,
            self.load["clock_zero_s"] + offset_s,
            lambda report: runner.send_message("report", report),
            self.environment.events.request.fire,
        )
        # thousands of objects of Locust and of the arrivals need not be looked at again and again
        # while tokens wait
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)

    def prepare(
        self,
        user: int,
        turn: int,
        arrival: arrivals.Arrival | None = None,
        history: tuple[prompts.PromptMessage, ...] = (),
    ) -> "PreparedRequest":
        wanted = prompts.make_prompt(self.load["seed"], self.scenario, user, turn, arrival, history)
        return (
            wanted,
            *prompts.request_body(self.scenario, self.load["model"], wanted),
            http.Exchange(),
        )

    def connect(self) -> Connection:
        websocket = self.scenario.get("transport") == "websocket"
        return make_gevent_connection(
            self.load["base_url"],
            self.scenario["timeout_s"],
            os.environ.get("SERVEOFF_API_KEY"),
            prompts.request_path(self.scenario) if websocket else None,
        )

    @contextmanager
    def row(self, sent: InFlightRequest) -> Iterator[None]:
        """A request's row. It is written also if this greenlet is killed meanwhile, waiting for a
        slot or for the answer.
        """
        try:
            yield
        except gevent.GreenletExit:
            sent.exchange.error, sent.exchange.done_s = CUT_OFF, time.perf_counter()
            raise
        finally:
            self.recorder.end(sent)

    def close(self) -> None:
        if hasattr(self, "recorder"):
            self.recorder.close()

    def post(
        self, connection: Connection, sent: InFlightRequest, prepared: "PreparedRequest"
    ) -> None:
        connection.post(prepared[1], prepared[2], sent.exchange, f"{self.number}-{sent.number}")


PreparedRequest = tuple[prompts.Prompt, str, bytes, http.Exchange]  # with path and body
worker: LoadWorker
conductor: Coordinator


class ClosedLoop(User):
    """Asks, waits for the answer, thinks, asks again: the load falls when the server is slow. With
    `turns` it holds conversations.
    """

    @task
    def ask_on(self) -> None:
        scenario, recorder = worker.scenario, worker.recorder
        self.index = worker.users * worker.workers + worker.number
        worker.users += 1
        users = worker.load["users"]
        if users and self.index >= users:
            # Locust was told a number of users that every worker gets the same part of
            raise StopUser
        self.first_turn = self.turn = 0
        self.recorder, self.connection = recorder, worker.connect()
        self.prepared = gevent.spawn(worker.prepare, self.index, 0)
        self.sent: InFlightRequest | None = None  # in the moment in which the answer before ended
        self.at_once = not scenario.get("think_s") and "turns" not in scenario
        self.connection.on_next_sent = self.was_sent
        began_s = worker.began.get()
        # one after the other through the first half of the warm-up: together they would stay
        # together
        if users:
            gevent.sleep(began_s + scenario["warmup_s"] / 2 * self.index / users - recorder.now())
        try:
            self.connection.open()
        except (OSError, http.ResponseError):
            pass  # the first request says so in its row
        self.free_s = recorder.now()
        while self.sent or not recorder.over():
            self.ask_once()
            if (left_s := self.free_s - recorder.now()) > 0:  # it thinks
                gevent.sleep(left_s)
        raise StopUser

    def was_sent(self, number: int, done_s: float) -> None:
        self.sent = self.recorder.begin(
            self.index, done_s - self.recorder.zero_s, self.next[0], self.next[3], number
        )

    def prepare_next(self) -> PreparedRequest:
        """Whoever does not think asks again in the moment in which the answer ends. What can be
        done before is done before: whatever a processor has not touched for a while takes it
        microseconds, and the request waits for them.
        """
        self.next = prepared = worker.prepare(self.index, self.turn)
        if self.at_once:
            self.connection.prepare(prepared[1], prepared[2], f"{worker.number}-", prepared[3])
        return prepared

    def ask_once(self) -> None:
        prepared = self.prepared.get()
        sent, self.sent = (
            self.sent or worker.recorder.begin(self.index, self.free_s, prepared[0], prepared[3]),
            None,
        )
        self.turn += 1
        think_s = worker.scenario.get("think_s", 0.0)
        if "turns" not in worker.scenario:
            # runs while this one waits for its answer
            self.prepared = gevent.spawn(self.prepare_next)
        with worker.row(sent):
            worker.post(self.connection, sent, prepared)
        self.free_s = sent.exchange.done_s - worker.recorder.zero_s + think_s
        if sent.exchange.error is not None:  # a dead server must not turn the loop into a flood
            gevent.sleep(0.01)
            self.free_s = worker.recorder.now()
        if "turns" in worker.scenario:
            self.prepared = gevent.spawn(self.prepare_on, prepared[0], sent)

    def prepare_on(self, asked: prompts.Prompt, sent: InFlightRequest) -> PreparedRequest:
        """The next question of the conversation, which the server is sent whole; or the first one
        of another.
        """
        said = sent.said.get()
        turns = prompts.conversation_turns(
            worker.load["seed"], worker.scenario, self.index, self.first_turn
        )
        if said is not None and self.turn - self.first_turn < turns:
            history = (
                *asked.history,
                prompts.PromptMessage("user", asked.text),
                prompts.PromptMessage("assistant", said.strip()),
            )
            prepared = worker.prepare(self.index, self.turn, history=history)
            if prepared[0].tokens + prepared[0].max_tokens <= worker.scenario.get(
                "context", arrivals.CONTEXT
            ):
                return prepared
        self.first_turn = self.turn
        return worker.prepare(self.index, self.turn)


class OpenLoop(User):
    """One user on each worker that sends at the scheduled times, whatever has become of the
    requests before: the load does not yield. With `max_in_flight` a request waits for a slot, and
    that is waiting as well.
    """

    @task
    def dispatch(self) -> None:
        recorder, turn = worker.recorder, IoYield()
        in_flight: set[gevent.Greenlet] = set()
        sender = make_pacer(worker.connect(), f"{worker.number}-", ahead=worker.slots is None)

        def one(
            sent: InFlightRequest, prepared: PreparedRequest, connection: Connection | None
        ) -> None:
            with worker.row(sent):
                if worker.slots is not None:
                    worker.slots.take()
                    sent.slot_s = recorder.now()
                connection = connection or sender.acquire_idle() or worker.connect()
                worker.post(connection, sent, prepared)
            sender.return_idle(connection)
            if worker.slots is not None:  # not if this greenlet was killed: nobody shall go on then
                worker.slots.give()

        def look_after(
            scheduled_s: float,
            prepared: PreparedRequest,
            connection: Connection | None,
            number: int | None,
        ) -> None:
            greenlet = gevent.spawn(
                one,
                recorder.begin(None, scheduled_s, prepared[0], prepared[3], number),
                prepared,
                connection,
            )
            greenlet.link_exception(lambda failed: abort_process(repr(failed.exception)))
            in_flight.add(greenlet)
            greenlet.rawlink(in_flight.discard)

        def send(
            user: int,
            part: list[tuple[int, arrivals.Arrival]],
            start_s: float,
            until: AsyncResult | None,
        ) -> None:
            for number, arrival in part:
                scheduled_s = start_s + arrival.at_s
                if scheduled_s - recorder.now() > IN_HURRY_S:
                    turn.pass_on()
                prepared = worker.prepare(user, number, arrival)
                if (early_s := scheduled_s - KNOWN_BEFORE_S - recorder.now()) > 0:
                    gevent.sleep(early_s) if until is None else until.wait(early_s)
                # The window's first arrivals must not wait behind the warm-up's next one, which may
                # be after them.
                if until is not None and until.ready() and scheduled_s >= until.get():
                    break
                sender.send(
                    recorder.zero_s + scheduled_s,
                    *prepared[1:],
                    partial(look_after, scheduled_s, prepared),
                )

        try:
            send(-1, worker.warm_up, worker.began.get(), until=worker.windowed)
            send(0, worker.in_window, worker.windowed.get(), until=None)
            sender.join()
            gevent.joinall(list(in_flight))
            raise StopUser
        finally:
            sender.close()
            gevent.killall(list(in_flight))


@events.init.add_listener
def on_init(environment: Environment, **_: Any) -> None:
    """What a load worker is told by which of Locust's messages. In one process, conductor and
    worker are both here.
    """
    global conductor
    runner = environment.runner

    def listen(kind: str, listener: Any) -> None:
        runner.register_message(kind, lambda environment, msg, **_: listener(msg.data))

    if not isinstance(runner, MasterRunner):
        listen("task", lambda told: on_task(environment, told))
        listen("ping", lambda _: runner.send_message("pong", messages.clock_reply()))
        listen("clock", lambda told: worker.clock(told["offset_s"]))
        listen("begin", lambda told: worker.began.set(told["began_s"]))
        listen("window", on_window)
        listen("finish", lambda _: on_finish(environment))
    if not isinstance(runner, WorkerRunner):
        conductor = messages.MessageChannel(
            environment, json.loads(os.environ["SERVEOFF_LOAD"]), isinstance(runner, MasterRunner)
        ).conductor
    else:
        # a conductor that was killed must not leave a load behind for a minute
        runners.MASTER_HEARTBEAT_TIMEOUT = LOST_AFTER_S
    # Not before now: Locust calls what was added last first, and its own listener, which was added
    # just before, disconnects.
    events.quitting.add_listener(on_quitting)


def on_task(environment: Environment, told: dict[str, Any]) -> None:
    global worker
    problem = None
    try:
        worker = LoadWorker(environment, told)
    except Exception as error:
        problem = str(error) or repr(error)
    environment.runner.send_message("ready", {"problem": problem})


def on_window(told: dict[str, float]) -> None:
    # a little later, so that the window closes while load goes on
    worker.recorder.end_at(told["end_s"] + 0.1)
    worker.windowed.set(told["start_s"])


def on_finish(environment: Environment) -> None:
    """Users that still wait for an answer are ended; then the last rows can be written."""
    environment.stop_timeout = 0
    environment.runner.stop()
    worker.close()
    if isinstance(environment.runner, WorkerRunner):
        # now, so that the conductor need not hope that Locust's last ones come in time
        environment.runner._send_stats()


@events.user_error.add_listener
def on_user_error(exception: Exception, **_: Any) -> None:
    abort_process(repr(exception))  # Locust would go on, with one user less


def on_quitting(environment: Environment, **_: Any) -> None:
    # normally nobody runs any more; after SIGTERM nobody is waited for
    environment.stop_timeout = 0
    if isinstance(environment.runner, WorkerRunner):
        environment.runner.stop()
        if "worker" in globals():
            worker.close()
    else:
        conductor.finishing = True
        if isinstance(environment.runner, MasterRunner):
            conductor.finish(patience_s=2.0)


@events.quit.add_listener
def on_quit(**_: Any) -> None:
    if "worker" in globals():
        worker.close()
    if "conductor" in globals():
        conductor.close()
