"""The ground truth server: streams responses at known times. The load generator measures its own
errors against it.

    python -m loadtests.accuracy.ground_truth_server --ttft-ms 50 --itl-ms 10 --log FILE

It is not one of the compared servers: it has no model, only the oracle and a plan of times. The
first token is due `ttft` after the request was read, and each further event one `itl` after the
previous due time, so lateness never adds up. The log has the times at which events were sent; it is
written at the end (SIGTERM or Ctrl-C). All times are `time.perf_counter()`, in seconds. On Linux
that is CLOCK_MONOTONIC, one clock for all processes, so stamps of the client and the server can be
compared.

It has one thread, a heap of due times, and sockets that never block. Give it a core of its own: it
spends the last 2 ms before an event in a busy loop, and another process on its core makes it late,
which the log shows.
"""

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
from dataclasses import asdict, dataclass, field
from pathlib import Path

from loadtests.accuracy.ground_truth_http import (
    BadRequest,
    GroundTruthRequest,
    parse_first_request,
    refusal_response,
    streamed_response,
)
from loadtests.accuracy.ground_truth_plan import ResponsePlan, parse_options

# The loop stops sleeping this long before an event is due: selectors round up to whole
# milliseconds, and the wake-up itself takes time.
BUSY_S = 0.002
WATCH_S = 0.1  # longest sleep, and so the longest delay of a signal
EVENTS_AT_ONCE = 32  # events sent before the sockets are read again
MAX_REQUEST_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class ServedRequest:
    """A line of the log, in the order of arrival: one request, finished or not."""

    id: str | None  # its X-Request-Id
    arrived_s: float  # when the request was completely read
    due_s: float | None  # when its first token was due; None if that was not sent
    stamps_s: list[float]  # when each event was sent


@dataclass(frozen=True)
class LogSummary:
    """The log's first line: the time of the freeze, and the lateness of events."""

    freeze: tuple[float, float] | None  # start_s, end_s
    requests: int
    late_mean_s: float | None
    late_max_s: float | None


def read_log(path: Path) -> tuple[LogSummary, list[ServedRequest]]:
    summary, *served = map(json.loads, path.read_text().splitlines())
    return LogSummary(**summary), [ServedRequest(**line) for line in served]


@dataclass(slots=True, eq=False)
class ClientConnection:
    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    busy: bool = False  # with a response; the next request then waits


@dataclass(slots=True, eq=False)
class ServedStream:
    connection: ClientConnection
    number: int
    id: str | None
    arrived_s: float
    pieces: Iterator[bytes]  # the bytes of each event
    piece: bytes  # the next one, prepared before it is due; empty after the last
    # one entry per event that was sent; lists would take four times the memory
    due_s: "array[float]" = field(default_factory=lambda: array("d"))
    sent_s: "array[float]" = field(default_factory=lambda: array("d"))


class GroundTruthServer:
    def __init__(self, listener: socket.socket, plan: ResponsePlan):
        self.listener, self.plan = listener, plan
        self.selector = selectors.DefaultSelector()  # epoll on Linux
        self.selector.register(listener, selectors.EVENT_READ)
        # the due time of each running stream's next event
        self.heap: list[tuple[float, int, ServedStream]] = []
        self.waiting: deque[ServedStream] = deque()  # for a slot
        self.streams: list[ServedStream] = []  # all since the start
        self.freeze_at_s = math.inf
        self.freeze: tuple[float, float] | None = None
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
                self.freeze_once()

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
            # even if the client's buffer is full: a client that does not read does not make us late
            stream.sent_s.append(now_s)
            stream.piece = next(stream.pieces, b"")
            if stream.piece:
                heapq.heapreplace(heap, (self.due_after(due_s, len(stream.due_s)), number, stream))
            else:
                heapq.heappop(heap)
                self.fill_slots(due_s)
                stream.connection.busy = False
                self.start_next_request(stream.connection)

    def due_after(self, at_s: float, events: int) -> float:
        return self.plan.due_after(at_s, events, at_s - self.streams[0].arrived_s)

    def fill_slots(self, free_s: float) -> None:
        """Starts waiting requests while slots are free. By the plan, a slot became free at
        `free_s`; a request that arrived later starts at its arrival.
        """
        while self.waiting and len(self.heap) < self.plan.slots:
            stream = self.waiting.popleft()
            heapq.heappush(
                self.heap, (self.due_after(max(free_s, stream.arrived_s), 0), stream.number, stream)
            )

    def freeze_once(self) -> None:
        """Freezes the server: it reads and sends nothing, and postpones all due times by as
        much.
        """
        start_s = time.perf_counter()
        time.sleep(self.plan.freeze_s)
        end_s = time.perf_counter()
        self.freeze_at_s, self.freeze = math.inf, (start_s, end_s)
        # the order is unchanged, so the list is still a heap
        self.heap[:] = [
            (due_s + end_s - start_s, number, stream) for due_s, number, stream in self.heap
        ]

    def accept(self) -> None:
        with contextlib.suppress(OSError):  # the client has disconnected
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
            except OSError:  # the client has disconnected: the next read fails and cleans up
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
            self.start_next_request(connection)
        else:
            self.drop(connection)

    def drop(self, connection: ClientConnection) -> None:
        """Drops a client that has disconnected, with its requests."""
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

    def start_next_request(self, connection: ClientConnection) -> None:
        """Starts the next request if it is complete and the previous response has ended."""
        while not connection.busy:
            arrived_s = time.perf_counter()
            try:
                request = parse_first_request(connection.received)
            except BadRequest as error:
                connection.busy = True  # for good: no further request is read
                self.send(connection, refusal_response(error))
                # close() with unread bytes would reset the connection and lose the response
                with contextlib.suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_WR)
                return
            if request is None:
                return
            if isinstance(request, bytes):
                self.send(connection, request)
            else:
                self.enqueue(connection, arrived_s, request)

    def enqueue(
        self, connection: ClientConnection, arrived_s: float, request: GroundTruthRequest
    ) -> None:
        number = len(self.streams)
        pieces = streamed_response(number, request, self.plan.tokens_per_chunk)
        stream = ServedStream(connection, number, request.id, arrived_s, pieces, next(pieces))
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
            summary = LogSummary(
                self.freeze,
                len(self.streams),
                sum(late) / len(late) if late else None,
                max(late, default=None),
            )
            print(json.dumps(asdict(summary)), file=log)
            for stream in self.streams:
                first_due_s = stream.due_s[0] if stream.due_s else None
                served = ServedRequest(
                    stream.id, stream.arrived_s, first_due_s, stream.sent_s.tolist()
                )
                print(json.dumps(asdict(served)), file=log)


def main() -> int:
    plan, log, port, parser = parse_options()
    try:
        log.write_text("")  # fails now, not at the end, if the log cannot be written
        listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    except (OSError, OverflowError) as error:  # OverflowError: no such port
        parser.error(str(error))
    server = GroundTruthServer(listener, plan)

    def end(*_: object) -> None:
        server.ended = True

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, end)
    gc.disable()  # nothing here makes cycles, and a collection can take longer than an ITL
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    server.run()
    server.write_log(log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
