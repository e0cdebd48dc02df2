"""Users, arrivals and the recorder: Locust drives, our own client measures. The only module that imports Locust.

    SERVEOFF_LOAD='{...}' locust -f loadtests/locustfile.py --headless ClosedLoop|OpenLoop ...      (loadtests/run.py does that)

Each request becomes one row (loadtests/records.py) in this worker's own file and one of Locust's request events, so Locust's
statistics, CSV and web UI work as ever, and its count is held against ours. What an answer says is read and checked by a
greenlet of its own, after the answer has ended and never in the timed path.
"""

import errno
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from locust import User, constant, events, task
from locust.env import Environment
from locust.exception import StopUser

from loadtests import arrivals, prompts, records, sse
from loadtests.hub import Alarm, HubConnection
from servers import rule

LOAD: dict[str, Any] = json.loads(os.environ["SERVEOFF_LOAD"])
SCENARIO: dict[str, Any] = LOAD["scenario"]
ZERO: float = LOAD["clock_zero_s"]
FOLDER = Path(LOAD["folder"])
CUT_OFF = "cut off: unanswered when the drain ended"
RECORDER_FAILED = 4  # exit code


def now() -> float:
    return time.perf_counter() - ZERO


@dataclass(slots=True)
class Sent:
    user: int | None
    scheduled_s: float  # on the clock of the rows
    prompt: prompts.Prompt
    exchange: sse.Exchange
    number: int


def yield_to_sockets() -> None:
    """Whatever has become readable or has to be sent meanwhile comes first."""
    gevent.sleep(0)


class Recorder:
    """Settles finished exchanges, writes their rows at once, and tells the driver once a second how it goes."""

    def __init__(self, environment: Environment):
        self.environment = environment
        self.rows = (FOLDER / "requests.jsonl").open("ab", buffering=0)
        self.finished: deque[Sent] = deque()
        self.wake = Event()
        self.sent = self.written = self.tokens = self.cut_off = 0
        self.began_s = now()
        start = self.began_s + SCENARIO["warmup_s"]
        self.window = {"start_s": start, "end_s": start + LOAD["duration_s"]}
        self.greenlets = [gevent.spawn(work) for work in (self.settle_for_ever, self.report_for_ever, self.end_after_window)]
        for greenlet in self.greenlets:
            greenlet.link_exception(self.give_up)
        self.report("running")

    def give_up(self, greenlet: gevent.Greenlet) -> None:
        """A recorder that cannot record (a full disk, say) must not go on as if it did: Locust would swallow the exception."""
        try:
            print(f"the recorder failed: {greenlet.exception}", file=sys.stderr, flush=True)
        finally:  # on a full disk, stderr, which is a log, fails as well
            os._exit(RECORDER_FAILED)

    def end_after_window(self) -> None:
        """The window closes while load goes on; then users finish what they have begun, for drain_s at most."""
        gevent.sleep(self.window["end_s"] - now() + 0.1)
        self.environment.runner.quit()

    def settle_for_ever(self) -> None:
        while True:
            self.wake.wait()
            self.wake.clear()
            while self.finished:
                self.write(self.finished[0], pause=yield_to_sockets)
                self.finished.popleft()  # not before: if this greenlet is ended in a pause, close() still finds it
                yield_to_sockets()

    def report_for_ever(self) -> None:
        while True:
            gevent.sleep(1)
            self.report("running")

    def report(self, state: str) -> None:
        stats = self.environment.stats.total
        records.write_json(FOLDER / "load.json", {
            "state": state, "now_s": now(), "began_s": self.began_s, "window": self.window, "sent": self.sent, "rows": self.written,
            "planned": None if planned is None else sum(arrival.at_s >= SCENARIO["warmup_s"] for arrival in planned),
            "cut_off": self.cut_off, "tokens": self.tokens, "locust_requests": stats.num_requests, "locust_failures": stats.num_failures,
            "e2e_p99_s": (stats.get_current_response_time_percentile(0.99) or 0) / 1e3 if state == "running" else None}, durable=False)

    def add(self, sent: Sent) -> None:
        self.finished.append(sent)
        self.wake.set()

    def write(self, sent: Sent, pause: Callable[[], None] = lambda: None) -> None:
        exchange, settled = sent.exchange, sse.settle(sent.exchange, pause)
        answer = "unchecked"
        counts = [1] * len(settled.token_text)
        if LOAD["planted"]:
            counts = [rule.count_tokens(text) for text in settled.token_text]
            if settled.error is None:
                right = rule.continuation(sent.prompt.text, sent.prompt.max_tokens)
                answer = "exact" if "".join(settled.token_text) == right else "wrong"

        def on_row_clock(at: float) -> float:
            return round(at - ZERO, 6)

        token_s = [on_row_clock(at) for at in settled.token_s]
        done_s, lags = on_row_clock(exchange.done_s), exchange.lags
        row = {
            "request": sent.number, "worker": 0, "user": sent.user, "scheduled_s": round(sent.scheduled_s, 6),
            "sent_s": None if exchange.sent_s is None else on_row_clock(exchange.sent_s),
            "first_s": token_s[0] if token_s else None, "last_s": token_s[-1] if token_s else None,
            "done_s": done_s, "http_status": exchange.status, "error": settled.error, "answer": answer,
            "prompt_tokens_asked": sent.prompt.tokens, "prompt_tokens": settled.usage.get("prompt_tokens"),
            "max_tokens": sent.prompt.max_tokens, "tokens": settled.usage.get("completion_tokens"),
            "finish_reason": settled.finish_reason, "token_s": token_s, "token_n": counts, "bytes": len(exchange.body),
            "reads": len(lags), "read_lag_mean_s": round(sum(lags) / len(lags), 7) if lags else None,
            "read_lag_max_s": round(max(lags), 7) if lags else None,
            **{name: settled.timings.get(name) for name in ("queue_ms", "prompt_ms", "predicted_ms")}}
        line = json.dumps(row).encode() + b"\n"
        if self.rows.write(line) != len(line):  # half of it: the disk has become full, and the next line must not follow that half
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.written += 1
        self.tokens += sum(counts)
        self.cut_off += settled.error == CUT_OFF
        failure = settled.error or ("wrong answer" if answer == "wrong" else None)
        self.environment.events.request.fire(
            request_type="POST", name=LOAD["scenario_name"], response_time=1e3 * (done_s - sent.scheduled_s),
            response_length=len(exchange.body), exception=None if failure is None else sse.AnswerError(failure), context={})

    def close(self) -> None:
        gevent.killall(self.greenlets)
        while self.finished:
            self.write(self.finished.popleft())
        self.report("ended")
        self.rows.close()


recorder: Recorder
planned: list[arrivals.Arrival] | None = None  # of an open loop


@events.test_start.add_listener
def on_test_start(environment: Environment, **_: Any) -> None:
    global recorder, planned
    if SCENARIO["arrivals"] != "closed":  # before the clock of the recorder begins
        planned = arrivals.schedule(LOAD["seed"], SCENARIO, LOAD["rate"], SCENARIO["warmup_s"] + LOAD["duration_s"])
    recorder = Recorder(environment)


@events.quitting.add_listener
def on_quitting(environment: Environment, **_: Any) -> None:
    environment.stop_timeout = 0  # normally nobody runs any more; after SIGTERM nobody is waited for


@events.quit.add_listener
def on_quit(**_: Any) -> None:
    recorder.close()


Prepared = tuple[prompts.Prompt, str, bytes]  # with path and body


def prepare(user: int, turn: int, arrival: arrivals.Arrival | None = None) -> Prepared:
    wanted = prompts.prompt(LOAD["seed"], SCENARIO, user, turn, arrival)
    return wanted, *prompts.request_body(SCENARIO, LOAD["model"], wanted)


def ask(connection: sse.Connection, user: int | None, scheduled_s: float, prepared: Prepared) -> sse.Exchange:
    """One request, to the end of its answer. Its row is written also if this greenlet is killed meanwhile."""
    wanted, path, body = prepared
    sent = Sent(user, scheduled_s, wanted, sse.Exchange(), recorder.sent)
    recorder.sent += 1
    try:
        connection.post(path, body, sent.exchange)
    except gevent.GreenletExit:
        sent.exchange.error = CUT_OFF
        raise
    finally:
        recorder.add(sent)
    return sent.exchange


def connect() -> sse.Connection:
    return HubConnection(LOAD["base_url"], SCENARIO["timeout_s"], os.environ.get("SERVEOFF_API_KEY"))


class ClosedLoop(User):
    """Asks, waits for the answer, thinks, asks again: the load falls when the server is slow."""

    wait_time = constant(SCENARIO.get("think_s", 0.0))
    started = 0

    def on_start(self) -> None:
        self.index, ClosedLoop.started = ClosedLoop.started, ClosedLoop.started + 1
        self.turn = 0
        self.prepared = gevent.spawn(prepare, self.index, 0)
        self.connection = connect()
        try:
            self.connection.open()
        except OSError:
            pass  # the first request says so in its row
        self.free_s = now()

    @task
    def ask_on(self) -> None:
        self.ask_once()
        while not SCENARIO.get("think_s") and self.environment.runner.state in ("spawning", "running"):
            self.ask_once()  # Locust's own wait, even of 0 s, lets every other greenlet go first: at 64 users a third of a millisecond

    def ask_once(self) -> None:
        prepared = self.prepared.get()
        self.turn += 1
        self.prepared = gevent.spawn(prepare, self.index, self.turn)  # runs while this one waits for its answer
        exchange = ask(self.connection, self.index, self.free_s, prepared)
        self.free_s = exchange.done_s - ZERO + SCENARIO.get("think_s", 0.0)
        if exchange.error is not None:  # a dead server must not turn the loop into a flood
            gevent.sleep(0.01)
            self.free_s = now()


class OpenLoop(User):
    """One user that sends at the scheduled times, whatever has become of the requests before: the load does not yield."""

    fixed_count = 1

    @task
    def dispatch(self) -> None:
        # Kept alive and used again, the last one first. Not opened in advance: a synchronous worker would accept an idle one and
        # wait for it while others queue. The warm-up opens as many as the load needs.
        idle: list[sse.Connection] = []

        def one(scheduled_s: float, prepared: Prepared) -> None:
            connection = idle.pop() if idle else connect()
            ask(connection, None, scheduled_s, prepared)
            idle.append(connection)

        in_flight: set[gevent.Greenlet] = set()
        alarm = Alarm()
        assert planned is not None
        try:
            for index, arrival in enumerate(planned):
                scheduled_s = recorder.began_s + arrival.at_s
                prepared = prepare(0, index, arrival)
                alarm.sleep_until(ZERO + scheduled_s)
                greenlet = gevent.spawn(one, scheduled_s, prepared)
                in_flight.add(greenlet)
                greenlet.rawlink(in_flight.discard)
            gevent.joinall(list(in_flight))
            raise StopUser
        finally:
            gevent.killall(list(in_flight))
            alarm.close()
