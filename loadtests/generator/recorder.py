"""The recorder of one load worker: settles finished exchanges into rows, and tells the conductor
about them five times a second.

What an answer says is read and checked here, by a greenlet of its own, after the answer has ended
and never in the timed path.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import orjson
from gevent.event import AsyncResult, Event

from loadtests.client import http, response
from loadtests.client.reader import socket_reader
from loadtests.generator import steady_state
from loadtests.generator.gevent_tools import IoYield, abort_process
from loadtests.workload import prompts
from servers.contract import oracle

CUT_OFF = "cut off: unanswered when the drain ended"
REPORT_S = steady_state.SLICE_S


@dataclass(slots=True)
class InFlightRequest:
    """One request. Times are on the rows' clock, in seconds. `said` becomes the whole answer's
    text, null if it failed.
    """

    number: int
    user: int | None
    scheduled_s: float
    prompt: prompts.Prompt
    slot_s: float | None = None  # when the cap on concurrency let it go
    exchange: http.Exchange = field(default_factory=http.Exchange)
    said: AsyncResult = field(default_factory=AsyncResult)


def runqueue_wait_s(reader: int | None) -> float | None:
    """How long this process, ready to run, has waited for a core so far, s; null where the kernel
    does not say. `reader`: the thread that reads streams, if there is one. While it runs, that the
    main thread waits is no lack of a core, so as much is taken off.
    """
    try:
        ran_s, waited_s = (
            (_ran_and_waited_s(reader) if reader else (0.0, 0.0))[0],
            _ran_and_waited_s(os.getpid())[1],
        )
    except (OSError, ValueError):
        return None
    return waited_s - ran_s


def _ran_and_waited_s(thread: int) -> tuple[float, float]:
    # run time, run delay, slices
    run, delay, _ = Path(f"/proc/self/task/{thread}/schedstat").read_text().split()
    return int(run) * 1e-9, int(delay) * 1e-9


class Recorder:
    """`zero_s` is zero of the rows' clock on this machine's `time.perf_counter()`. `report` gets a
    dict with this worker's totals and the lines that are new, ready for requests.jsonl; `fire` is
    Locust's request event.
    """

    def __init__(
        self,
        load: dict[str, Any],
        worker: int,
        zero_s: float,
        report: Callable[[dict[str, Any]], None],
        fire: Callable[..., None],
    ):
        self.load, self.worker, self.zero_s, self.send_report, self.fire = (
            load,
            worker,
            zero_s,
            report,
            fire,
        )
        self.streams = socket_reader()
        self.in_flight: dict[int, InFlightRequest] = {}
        self.finished: deque[InFlightRequest] = deque()
        self.lines: list[bytes] = []
        # (done_s, ttft_s, tpot_s) of answers since the last report
        self.latencies: list[tuple[float, float, float | None]] = []
        self.written = self.tokens = self.cut_off = 0
        self.ended = False
        self.wake = Event()
        self.greenlets = [
            gevent.spawn(work) for work in (self.settle_for_ever, self.report_for_ever)
        ]
        for greenlet in self.greenlets:
            greenlet.link_exception(lambda failed: abort_process(failed.exception))

    def now(self) -> float:
        return time.perf_counter() - self.zero_s

    def end_at(self, until_s: float) -> None:
        """When the last request may be sent; known once the conductor has decided on the window."""
        self.streams.until_s = until_s + self.zero_s

    def over(self) -> bool:
        """Whether no further request shall be sent."""
        return time.perf_counter() > self.streams.until_s

    def begin(
        self,
        user: int | None,
        scheduled_s: float,
        prompt: prompts.Prompt,
        exchange: http.Exchange | None = None,
        number: int | None = None,
    ) -> InFlightRequest:
        """`exchange`: of a request that has been sent already, as `number`."""
        sent = InFlightRequest(
            self.streams.next_request_number() if number is None else number,
            user,
            scheduled_s,
            prompt,
            None,
            exchange or http.Exchange(),
        )
        self.in_flight[sent.number] = sent
        return sent

    def end(self, sent: InFlightRequest) -> None:
        """Its exchange has ended. The row follows as soon as nothing more urgent is to be done."""
        del self.in_flight[sent.number]
        self.finished.append(sent)
        self.wake.set()

    def settle_for_ever(self) -> None:
        turn = IoYield()
        while True:
            self.wake.wait()
            self.wake.clear()
            while self.finished:
                turn.pass_on()
                self.write(self.finished[0], turn.pass_on)
                # not before: if this greenlet is ended in a pause, close() still finds it
                self.finished.popleft()

    def report_for_ever(self) -> None:
        while True:
            gevent.sleep(REPORT_S)
            self.report()

    def report(self) -> None:
        lines, self.lines, latencies, self.latencies = self.lines, [], self.latencies, []
        self.send_report(
            {
                "worker": self.worker,
                "at_s": self.now(),
                "sent": self.streams.sent,
                "rows": self.written,
                "tokens": self.tokens,
                "cut_off": self.cut_off,
                "in_flight": len(self.in_flight) + len(self.finished) + self.streams.unreported,
                "bytes": self.streams.bytes,
                "reader": self.streams.kind,
                "cpu_s": time.process_time(),
                "waited_s": runqueue_wait_s(self.streams.thread_id),
                "ended": self.ended,
                "latencies": latencies,
                "lines": b"".join(lines),
                "stalls": [
                    (start_s - self.zero_s, end_s - self.zero_s)
                    for start_s, end_s in self.streams.pop_stalls()
                ],
            }
        )

    def write(self, sent: InFlightRequest, pause: Callable[[], None] = lambda: None) -> None:
        exchange, settled = sent.exchange, response.parse_response(sent.exchange, pause)
        answer = "unchecked"
        counts = [1] * len(settled.token_text)
        said = "".join(settled.token_text)
        if self.load["planted"]:
            if oracle.count_tokens(said) != len(
                counts
            ):  # several tokens in a chunk, or spoiled text
                counts = [oracle.count_tokens(text) for text in settled.token_text]
            if settled.error is None:
                answer = (
                    "exact"
                    if said == oracle.continuation(sent.prompt.text, sent.prompt.max_tokens)
                    else "wrong"
                )
        zero_s = self.zero_s
        # not rounded: that would cost as much as all the rest, and tables.py does
        token_s = [at - zero_s for at in settled.token_s]
        done_s, lags = exchange.done_s - zero_s, exchange.lags
        row = {
            "request": sent.number,
            "worker": self.worker,
            "user": sent.user,
            "scheduled_s": sent.scheduled_s,
            "slot_s": sent.slot_s,
            "sent_s": None if exchange.sent_s is None else exchange.sent_s - zero_s,
            "first_s": token_s[0] if token_s else None,
            "last_s": token_s[-1] if token_s else None,
            "done_s": done_s,
            "http_status": exchange.status,
            "error": settled.error,
            "answer": answer,
            "prompt_tokens_asked": sent.prompt.tokens,
            "prompt_tokens": settled.usage.get("prompt_tokens"),
            "max_tokens": sent.prompt.max_tokens,
            "tokens": settled.usage.get("completion_tokens"),
            "finish_reason": settled.finish_reason,
            "token_s": token_s,
            "token_n": counts,
            "bytes": len(exchange.body),
            "reads": len(lags),
            "read_lag_mean_s": sum(lags) / len(lags) if lags else None,
            "read_lag_max_s": max(lags) if lags else None,
            **{
                name: settled.timings.get(name)
                for name in ("queue_ms", "prompt_ms", "predicted_ms")
            },
        }
        self.lines.append(orjson.dumps(row) + b"\n")
        self.written += 1
        self.tokens += sum(counts)
        self.cut_off += settled.error == CUT_OFF
        if token_s and settled.error is None:
            later = sum(counts[1:])
            self.latencies.append(
                (
                    done_s,
                    token_s[0] - sent.scheduled_s,
                    (token_s[-1] - token_s[0]) / later if later else None,
                )
            )
        sent.said.set(said if settled.error is None else None)
        failure = settled.error or ("wrong answer" if answer == "wrong" else None)
        self.fire(
            request_type="POST",
            name=self.load["scenario_name"],
            response_time=1e3 * (done_s - sent.scheduled_s),
            response_length=len(exchange.body),
            exception=None if failure is None else http.ResponseError(failure),
            context={},
        )

    def close(self) -> None:
        """Writes what is left. Users must have ended. Calling it again does nothing."""
        if self.ended:
            return
        self.ended = True
        self.end_at(-math.inf)
        gevent.killall(self.greenlets)
        while self.finished:
            self.write(self.finished.popleft())
        self.report()
        self.streams.close()
