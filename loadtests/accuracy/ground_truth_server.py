"""A streaming server whose times are known: the ground truth against which the load generator
measures itself.

    python -m loadtests.accuracy.ground_truth_server --ttft-ms 50 --itl-ms 10 --log FILE

Not one of the compared servers: no model, only the planted rule and a plan of times. A request's
first token is due `ttft` after the request was read, each further event one `itl` after the due
time before it, so lateness never adds up. What was really sent when stands in the log, which is
written at the end (SIGTERM or Ctrl-C). All times are `time.perf_counter()`, in seconds; on Linux
that is CLOCK_MONOTONIC, one clock for all processes, so that a client's stamps can be held against
the server's.

One thread, a heap of due times, sockets that never block. Give it a core of its own: it waits out
the last 2 ms in a busy loop, and another process on that core makes it late, which the log shows.
"""

import argparse
import contextlib
import gc
import heapq
import json
import math
import selectors
import signal
import socket
import sys
import time
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtests.accuracy.ground_truth_http import (
    MAX_TOKENS_PER_CHUNK,
    BadRequest,
    GroundTruthRequest,
    refusal_response,
    streamed_response,
    take_request,
)

# So long before something is due we stop sleeping: selectors round up to whole milliseconds, and
# the wake-up itself takes time.
BUSY_S = 0.002
WATCH_S = 0.1  # how soon a signal is noticed
EVENTS_AT_ONCE = 32  # then the sockets have their turn
MAX_REQUEST_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class ServedRequest:
    """A line of the log, in the order of arrival: one request, finished or not."""

    id: str | None  # its X-Request-Id
    arrived_s: float  # completely read
    due_s: float | None  # its first token; null if that was not sent
    stamps_s: list[float]  # just before each event was sent


def read_log(path: Path) -> tuple[dict[str, Any], list[ServedRequest]]:
    """The log's first line is {freeze: [start_s, end_s] or null, requests, late_mean_s,
    late_max_s}: how late events were sent.
    """
    summary, *served = map(json.loads, path.read_text().splitlines())
    return summary, [ServedRequest(**line) for line in served]


@dataclass(slots=True, eq=False)
class ClientConnection:
    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    busy: bool = False  # with an answer: the next request waits


@dataclass(slots=True, eq=False)
class ServedStream:
    connection: ClientConnection
    number: int
    id: str | None
    arrived_s: float
    pieces: Iterator[bytes]  # what is sent, event by event
    piece: bytes  # the next one, made before it is due; empty after the last
    # of each event sent; lists would take four times the memory
    due_s: "array[float]" = field(default_factory=lambda: array("d"))
    sent_s: "array[float]" = field(default_factory=lambda: array("d"))


class GroundTruthServer:
    def __init__(self, listener: socket.socket, plan: argparse.Namespace):
        self.listener, self.plan = listener, plan
        self.selector = selectors.DefaultSelector()  # epoll on Linux
        self.selector.register(listener, selectors.EVENT_READ)
        # when the next event of each running stream is due
        self.heap: list[tuple[float, int, ServedStream]] = []
        self.waiting: deque[ServedStream] = deque()  # for a slot
        self.streams: list[ServedStream] = []  # all there ever were
        self.freeze_at_s = math.inf
        self.freeze: list[float] | None = None
        self.ended = False

    def run(self) -> None:
        while not self.ended:
            self.send_due()
            next_s = (
                min(self.heap[0][0] if self.heap else math.inf, self.freeze_at_s)
                - time.perf_counter()
            )
            for key, events in self.selector.select(max(0.0, min(next_s - BUSY_S, WATCH_S))):
                if key.data is None:
                    self.accept()
                elif events & selectors.EVENT_WRITE:
                    self.send_rest(key.data)
                else:
                    self.receive(key.data)
            if time.perf_counter() >= self.freeze_at_s:
                self.stand_still()

    def send_due(self) -> None:
        heap = self.heap
        for _ in range(EVENTS_AT_ONCE):
            if not heap:
                return
            due_s, number, stream = heap[0]
            now_s = time.perf_counter()
            if now_s < due_s:
                return
            self.send(stream.connection, stream.piece)
            stream.due_s.append(due_s)
            # also if the client's buffer is full: that it does not read is no lateness of ours
            stream.sent_s.append(now_s)
            stream.piece = next(stream.pieces, b"")
            if stream.piece:
                heapq.heapreplace(heap, (self.due_after(due_s, len(stream.due_s)), number, stream))
            else:
                heapq.heappop(heap)
                self.fill_slots(due_s)
                stream.connection.busy = False
                self.take_request(stream.connection)

    def due_after(self, at_s: float, events: int) -> float:
        """When a stream's next event is due if so many were, the last one at `at_s`; the first
        counts from the stream's start.
        """
        plan, size = self.plan, self.plan.tokens_per_chunk
        if events == 0:
            at_s += plan.ttft_ms / 1e3
        else:
            step = int((at_s - self.streams[0].arrived_s) / plan.step_s)
            at_s += plan.itl_ms[min(step, len(plan.itl_ms) - 1)] / 1e3 * size
        # a pause before each of the event's tokens that is one to pause before
        if plan.stall_every:
            at_s += (
                plan.stall_ms
                / 1e3
                * ((events + 1) * size // plan.stall_every - events * size // plan.stall_every)
            )
        return at_s

    def fill_slots(self, free_s: float) -> None:
        """Begins what may begin. A slot became free, by the plan at `free_s`; who came a little
        later has not waited since then.
        """
        while self.waiting and len(self.heap) < self.plan.slots:
            stream = self.waiting.popleft()
            heapq.heappush(
                self.heap, (self.due_after(max(free_s, stream.arrived_s), 0), stream.number, stream)
            )

    def stand_still(self) -> None:
        """As a real freeze: nothing is read or sent, and whatever was due comes so much later."""
        start_s = time.perf_counter()
        time.sleep(self.plan.freeze_s)
        end_s = time.perf_counter()
        self.freeze_at_s, self.freeze = math.inf, [start_s, end_s]
        # the order stays
        self.heap[:] = [
            (due_s + end_s - start_s, number, stream) for due_s, number, stream in self.heap
        ]

    def accept(self) -> None:
        with contextlib.suppress(OSError):  # the client has gone again
            client, _ = self.listener.accept()
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.selector.register(client, selectors.EVENT_READ, ClientConnection(client))

    def send(self, connection: ClientConnection, data: bytes) -> None:
        if not connection.unsent:
            try:
                data = data[connection.socket.send(data) :]
            except BlockingIOError:
                pass
            except OSError:  # the client has gone: the next read says so, too, and cleans up
                return
            if not data:
                return
            self.selector.modify(
                connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection
            )
        connection.unsent += data

    def send_rest(self, connection: ClientConnection) -> None:
        rest, connection.unsent = bytes(connection.unsent), bytearray()
        self.selector.modify(connection.socket, selectors.EVENT_READ, connection)
        self.send(connection, rest)

    def receive(self, connection: ClientConnection) -> None:
        try:
            data = connection.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        connection.received += data
        if data and len(connection.received) <= MAX_REQUEST_BYTES:
            self.take_request(connection)
        else:
            self.drop(connection)

    def drop(self, connection: ClientConnection) -> None:
        """The client has gone, and nobody waits for its answer."""
        self.selector.unregister(connection.socket)
        connection.socket.close()
        self.waiting = deque(
            stream for stream in self.waiting if stream.connection is not connection
        )
        left = [entry for entry in self.heap if entry[2].connection is not connection]
        if len(left) < len(self.heap):
            self.heap[:] = left
            heapq.heapify(self.heap)
            self.fill_slots(time.perf_counter())

    def take_request(self, connection: ClientConnection) -> None:
        """Begins to answer the next request, if it is complete and the one before has its
        answer.
        """
        while not connection.busy:
            arrived_s = time.perf_counter()
            try:
                asked = take_request(connection.received)
            except BadRequest as error:
                connection.busy = True  # and stays so: no further request is read
                self.send(connection, refusal_response(error))
                # close() with bytes still unread would be a reset, and the answer lost
                with contextlib.suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_WR)
                return
            if asked is None:
                return
            if isinstance(asked, bytes):
                self.send(connection, asked)
            else:
                self.enter(connection, arrived_s, asked)

    def enter(
        self, connection: ClientConnection, arrived_s: float, asked: GroundTruthRequest
    ) -> None:
        number = len(self.streams)
        pieces = streamed_response(number, asked, self.plan.tokens_per_chunk)
        stream = ServedStream(connection, number, asked.id, arrived_s, pieces, next(pieces))
        if not self.streams:
            self.freeze_at_s = arrived_s + self.plan.freeze_at_s
        self.streams.append(stream)
        connection.busy = True
        self.waiting.append(stream)
        self.fill_slots(arrived_s)

    def write_log(self, path: Path) -> None:
        late = [
            sent_s - due_s
            for stream in self.streams
            for sent_s, due_s in zip(stream.sent_s, stream.due_s, strict=True)
        ]
        with path.open("w") as log:
            print(
                json.dumps(
                    {
                        "freeze": self.freeze,
                        "requests": len(self.streams),
                        "late_mean_s": sum(late) / len(late) if late else None,
                        "late_max_s": max(late, default=None),
                    }
                ),
                file=log,
            )
            for stream in self.streams:
                print(
                    json.dumps(
                        {
                            "id": stream.id,
                            "arrived_s": stream.arrived_s,
                            "due_s": stream.due_s[0] if stream.due_s else None,
                            "stamps_s": stream.sent_s.tolist(),
                        }
                    ),
                    file=log,
                )


def parse_number(text: str) -> float:
    if not 0 <= float(text) < math.inf:
        raise ValueError
    return float(text)


def parse_numbers(text: str) -> list[float]:
    return [parse_number(part) for part in text.split(",")]


def parse_whole_number(text: str) -> int:
    if int(text) < 0:
        raise ValueError
    return int(text)


def main() -> int:
    # without the usage, an error is one sentence
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.accuracy.ground_truth_server",
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--log",
        type=Path,
        required=True,
        help="what was sent when, as JSON lines; written at the end",
    )
    add(
        "--port",
        type=parse_whole_number,
        default=0,
        help="of 127.0.0.1; it is printed (default: a free one)",
    )
    add(
        "--ttft-ms",
        type=parse_number,
        default=50.0,
        help="from a request to its first token (default: 50)",
    )
    add(
        "--itl-ms",
        "--itl-steps-ms",
        type=parse_numbers,
        default=[10.0],
        help=(
            "between tokens (default: 10); several, such as 10,5,2.5, come one after the other, and"
            " the last holds on"
        ),
    )
    add(
        "--step-s",
        type=parse_number,
        default=math.inf,
        help="how long each of several holds, from the first request on",
    )
    add(
        "--tokens-per-chunk",
        type=parse_whole_number,
        default=1,
        help="tokens in an event, which is due every so many itl (default: 1)",
    )
    add(
        "--stall-every",
        type=parse_whole_number,
        default=0,
        help="each stream pauses before every so many-th token (default: never)",
    )
    add("--stall-ms", type=parse_number, default=0.0, help="for so long")
    add(
        "--freeze-at-s",
        type=parse_number,
        default=math.inf,
        help="after the first request everything stands still, once (default: never)",
    )
    add("--freeze-s", type=parse_number, default=0.0, help="for so long")
    add(
        "--slots",
        type=parse_whole_number,
        default=0,
        help="requests served at once, others wait in order (default: 0, no limit)",
    )
    plan = parser.parse_args()
    if len(plan.itl_ms) > 1 and not 0 < plan.step_s < math.inf:
        parser.error("several --itl-steps-ms need --step-s")
    if not 1 <= plan.tokens_per_chunk <= MAX_TOKENS_PER_CHUNK:
        parser.error(f"--tokens-per-chunk must be 1 to {MAX_TOKENS_PER_CHUNK}")
    plan.slots = plan.slots or math.inf
    try:
        plan.log.write_text("")  # now: that there is no place for it should not turn out at the end
        listener = socket.create_server(("127.0.0.1", plan.port), backlog=4096)
    except (OSError, OverflowError) as error:  # the latter: no such port
        parser.error(str(error))
    server = GroundTruthServer(listener, plan)

    def end(*_: object) -> None:
        server.ended = True

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, end)
    gc.disable()  # nothing here makes cycles, and a collection takes longer than many a token
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    server.run()
    server.write_log(plan.log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
