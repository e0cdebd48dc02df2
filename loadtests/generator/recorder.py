"""The recorder of one load worker: turns finished exchanges into rows and reports them to the
coordinator five times per second.

A separate greenlet parses and checks each response after its end, never in the timed path.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import gevent
import orjson
from gevent.event import AsyncResult, Event

from loadtests.client import http, response
from loadtests.client.reader import socket_reader
from loadtests.generator import steady_state
from loadtests.generator.gevent_tools import IoYield, abort_process
from loadtests.generator.messages import Latency, WorkerReport
from loadtests.generator.task import LoadTask
from loadtests.schema import JsonObject
from loadtests.workload import prompts
from servers.contract import oracle, token_counts
from servers.profile.access import read_access
from servers.runtime.schedstat import read_thread_times

CUT_OFF = "cut off: incomplete when the drain ended"
REPORT_S = steady_state.SLICE_S


@dataclass(slots=True)
class InFlightRequest:
    """One request. Times are on the rows' clock, in seconds."""

    number: int
    user: int | None
    scheduled_s: float
    prompt: prompts.Prompt
    slot_s: float | None = None  # time at which it got a slot under the cap on concurrency
    exchange: http.Exchange = field(default_factory=http.Exchange)
    response_text: AsyncResult = field(default_factory=AsyncResult)  # None if the request failed
    response_tokens: int = 0  # of that text


def runqueue_wait_s(reader: int | None) -> float | None:
    """Returns the seconds for which this process was ready to run but waited for a core; None where
    the kernel does not count them. `reader` is the native id of the reader's thread, if there is
    one. While that thread runs, the main thread waits without lacking a core, so its running time
    is subtracted.
    """
    main = read_thread_times(os.getpid())
    if main is None:
        return None
    if not reader:
        return main.waited_s
    reading = read_thread_times(reader)
    return None if reading is None else main.waited_s - reading.ran_s


def make_row(
    task: LoadTask,
    worker: int,
    zero_s: float,
    request: InFlightRequest,
    parsed: response.ParsedResponse,
) -> JsonObject:
    """Makes the row, with REQUEST_FIELDS, of a request that has ended; `zero_s` is the
    recorder's.
    """
    exchange, text = request.exchange, "".join(parsed.token_text)
    units = [1] * len(parsed.token_text)
    # several tokens in a chunk, or damaged text
    if task.planted and oracle.count_tokens(text) != len(units):
        units = [oracle.count_tokens(chunk) for chunk in parsed.token_text]
    elif task.dialect.tokens_per_byte and parsed.tokens is None:
        units = token_counts.estimate_tokens(parsed.token_text, task.dialect.tokens_per_byte)
    counts = token_counts.count_tokens(
        parsed.token_text,
        units,
        tokens=parsed.tokens,
        reasoning_tokens=parsed.reasoning_tokens,
        reasoning_chunks=parsed.reasoning_chunks,
        running=parsed.running_tokens,
    )
    verdict = "unchecked"
    if task.planted and parsed.error is None:
        verdict = "exact" if is_exact(task, text, request.prompt, parsed) else "wrong"
    # not rounded: that would cost as much as the rest of the row
    token_s = [at - zero_s for at in parsed.token_s]
    done_s, lags = exchange.done_s - zero_s, exchange.lags
    visible_s = parsed.first_visible_s
    return {
        "request": request.number,
        "worker": worker,
        "user": request.user,
        "scheduled_s": request.scheduled_s,
        "slot_s": request.slot_s,
        "sent_s": None if exchange.sent_s is None else exchange.sent_s - zero_s,
        "first_s": token_s[0] if token_s else None,
        "last_s": token_s[-1] if token_s else None,
        "first_visible_s": None if visible_s is None else visible_s - zero_s,
        "done_s": done_s,
        "http_status": exchange.status,
        "error": parsed.error,
        "error_detail": parsed.error_detail,
        "retry_after_s": http.parse_retry_after(exchange.retry_after),
        "resent": exchange.resent,
        "connect_s": exchange.connect_s,
        "answer": verdict,
        "prompt_tokens_asked": request.prompt.tokens,
        "prompt_tokens": parsed.prompt_tokens,
        "max_tokens": request.prompt.max_tokens,
        "tokens": parsed.tokens,
        "reasoning_tokens": counts.reasoning,
        "tokens_counted": sum(units),
        "token_source": counts.source,
        "finish_reason": parsed.finish_reason,
        "token_s": token_s,
        "token_n": counts.numbers,
        "bytes": len(exchange.body),
        "reads": len(lags),
        "read_lag_mean_s": sum(lags) / len(lags) if lags else None,
        "read_lag_max_s": max(lags) if lags else None,
        **{name: parsed.timings.get(name) for name in ("queue_ms", "prompt_ms", "predicted_ms")},
    }


def is_exact(
    task: LoadTask, text: str, prompt: prompts.Prompt, parsed: response.ParsedResponse
) -> bool:
    """Whether the known-answer model generated this text. It may end early only if the request did
    not set ignore_eos.
    """
    expected = oracle.continuation(prompt.text, prompt.max_tokens)
    ended = parsed.finish_reason == "stop" and "ignore_eos" in task.dialect.omitted
    return text == expected or (ended and expected.startswith(text))


class Recorder:
    """Records the requests of one worker. `zero_s` is zero of the rows' clock on this machine's
    `time.perf_counter()`. `send_report` sends the worker's counters and new rows; `fire` is
    Locust's request event.
    """

    def __init__(
        self,
        task: LoadTask,
        worker: int,
        zero_s: float,
        send_report: Callable[[WorkerReport], None],
        fire: Callable[..., None],
    ):
        self.task, self.worker, self.zero_s = task, worker, zero_s
        self.send_report, self.fire = send_report, fire
        self.access = read_access(task.target)
        self.streams = socket_reader()
        self.in_flight: dict[int, InFlightRequest] = {}
        self.finished: deque[InFlightRequest] = deque()
        self.lines: list[bytes] = []
        self.latencies: list[Latency] = []  # of responses since the last report
        self.written = self.tokens = self.cut_off = self.failed = 0
        self.failure: str | None = None
        self.ended = False
        self.wake = Event()
        self.greenlets = [
            gevent.spawn(work) for work in (self.write_finished_forever, self.report_forever)
        ]
        for greenlet in self.greenlets:
            greenlet.link_exception(lambda failed: abort_process(failed.exception))

    def now(self) -> float:
        return time.perf_counter() - self.zero_s

    def send_until(self, until_s: float) -> None:
        """Sets the time after which no request may be sent, once the window is announced."""
        self.streams.until_s = until_s + self.zero_s

    def is_over(self) -> bool:
        """Whether no more requests may be sent."""
        return time.perf_counter() > self.streams.until_s

    def seconds_left(self) -> float:
        """Returns the seconds in which requests may still be sent."""
        return self.streams.until_s - time.perf_counter()

    def begin(
        self,
        user: int | None,
        scheduled_s: float,
        prompt: prompts.Prompt,
        exchange: http.Exchange | None = None,
        number: int | None = None,
    ) -> InFlightRequest:
        """Opens a row. `exchange` and `number` belong to a request that was already sent."""
        request = InFlightRequest(
            self.streams.next_request_number() if number is None else number,
            user,
            scheduled_s,
            prompt,
            None,
            exchange or http.Exchange(),
        )
        self.in_flight[request.number] = request
        return request

    def end(self, request: InFlightRequest) -> None:
        """Takes a request whose exchange has ended. Its row is written when no I/O is waiting."""
        del self.in_flight[request.number]
        self.finished.append(request)
        self.wake.set()

    def write_finished_forever(self) -> None:
        io_yield = IoYield()
        while True:
            self.wake.wait()
            self.wake.clear()
            while self.finished:
                io_yield.yield_to_io()
                self.write(self.finished[0], io_yield.yield_to_io)
                # removed only now: if this greenlet is killed in a pause, close() still finds it
                self.finished.popleft()

    def report_forever(self) -> None:
        while True:
            gevent.sleep(REPORT_S)
            self.report()

    def report(self) -> None:
        lines, self.lines, latencies, self.latencies = self.lines, [], self.latencies, []
        self.send_report(
            WorkerReport(
                worker=self.worker,
                at_s=self.now(),
                sent=self.streams.sent,
                rows=self.written,
                failed=self.failed,
                failure=self.failure,
                tokens=self.tokens,
                cut_off=self.cut_off,
                in_flight=len(self.in_flight) + len(self.finished) + self.streams.unreported,
                received_bytes=self.streams.bytes,
                reader=self.streams.kind,
                cpu_s=time.process_time(),
                waited_s=runqueue_wait_s(self.streams.thread_id),
                ended=self.ended,
                latencies=latencies,
                lines=b"".join(lines),
                stalls=[
                    (start_s - self.zero_s, end_s - self.zero_s)
                    for start_s, end_s in self.streams.pop_stalls()
                ],
            )
        )

    def write(self, request: InFlightRequest, pause: Callable[[], None] = lambda: None) -> None:
        """Parses and checks the response, and writes the row. Calls `pause` every few events."""
        parsed = response.parse_response(request.exchange, pause)
        if parsed.error is not None:  # a server may repeat the key that it refuses
            parsed.error = self.access.hide_secrets(parsed.error)
            parsed.error_detail = self.access.hide_secrets(parsed.error_detail or "") or None
        row = make_row(self.task, self.worker, self.zero_s, request, parsed)
        token_s, token_n, done_s = row["token_s"], row["token_n"], row["done_s"]
        self.lines.append(orjson.dumps(row) + b"\n")
        self.written += 1
        self.tokens += sum(token_n)
        self.cut_off += parsed.error == CUT_OFF
        if parsed.error is not None:
            self.failed += 1
            words = f": {parsed.error_detail}" if parsed.error_detail else ""
            self.failure = f"{parsed.error}{words}"
        if token_s and parsed.error is None:
            later = sum(token_n[1:])
            self.latencies.append(
                (
                    done_s,
                    token_s[0] - request.scheduled_s,
                    (token_s[-1] - token_s[0]) / later if later else None,
                )
            )
        text = "".join(parsed.token_text)
        hidden = 0 if parsed.reasoning_chunks else row["reasoning_tokens"] or 0
        request.response_tokens = max(0, sum(token_n) - hidden)
        request.response_text.set(text if parsed.error is None else None)
        failure = parsed.error or ("wrong response" if row["answer"] == "wrong" else None)
        self.fire(
            request_type="POST",
            name=self.task.scenario_name,
            response_time=1e3 * (done_s - request.scheduled_s),
            response_length=row["bytes"],
            exception=None if failure is None else http.ResponseError(failure),
            context={},
        )

    def close(self) -> None:
        """Writes and reports the last rows. Users must have stopped. A second call does nothing."""
        if self.ended:
            return
        self.ended = True
        self.send_until(-math.inf)
        gevent.killall(self.greenlets)
        while self.finished:
            self.write(self.finished.popleft())
        self.report()
        self.streams.close()
