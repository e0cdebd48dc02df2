"""Who reads the streams: a thread in C (loadtests/client/native.c), on Linux if there is a C
compiler; else gevent's loop, in Python.

Both do the same: they stamp each read, tell of it, and count. But the thread waits neither for the
interpreter nor for its lock, and tells of a plain answer only when it is complete, after it has
sent the next request: so an event costs less, and nothing that Python does meanwhile keeps a stream
waiting. `SERVEOFF_STREAMS=python` chooses the loop; run.json says who it was, as `reader`.
"""

import math
import socket
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import gevent

from loadtests.client.http import read_stamped

ENDED, MORE, CLOSED = 0, 1, 2  # or minus errno: why one is told; MORE: it was not plain
READABLE = 1
TICK_S = 0.005
STALL_S = 0.010  # tokens of one stream that come meanwhile may be merged


class Received(NamedTuple):
    """What came of an answer: if it has ENDED, its head in `data`, and its body, chunks removed;
    else all bytes as they came in `data`. Of each read: when it arrived, s, its lag, s, and the
    bytes until then: of the body, if it has ENDED, whose reads alone are here then, else of `data`.
    `number`: of the request that was sent when it had ended, at `sent_s`, but for `unsent` bytes;
    -1: none was.
    """

    why: int
    data: bytes
    arrived: list[float]
    lags: list[float]
    lengths: list[int]
    body: bytes = b""
    number: int = -1
    sent_s: float = 0.0
    unsent: int = 0


class SendOutcome(NamedTuple):
    """What became of a request that was due: it was sent on the connection of `listener`, as
    `number`, at `sent_s`, but for `unsent` bytes; null: no connection was idle, and it was not
    sent.
    """

    listener: "Listener | None"
    number: int
    sent_s: float
    unsent: int


class ScheduledRequest(NamedTuple):
    """A request, around its number, and who is told what became of it."""

    before: bytes
    after: bytes
    told: Callable[[SendOutcome], None]


class Listener(Protocol):
    """Is told by gevent's loop, so it must not wait."""

    def came(self, came: Received) -> None: ...

    def read(self, data: bytes, at: float, lag: float) -> None:
        """The same as MORE with one read."""
        ...


class ReaderStream(Protocol):
    """A connection that is read."""

    def prepare(self, before: bytes, after: bytes) -> None:
        """A request, around its number, that may be sent when the answer ends."""
        ...

    def leave(self) -> list[Received]:
        """It is no longer read. What came and was not told, the last one perhaps not whole. Nobody
        else is told of anything: whoever leaves may be told himself just now, or may be no loop.
        """
        ...


class SocketReader(Protocol):
    """`reader`: c or python; `thread`: its own, null if it has none; `sent`: requests so far;
    `bytes`: received so far; after `until_s`, of `time.perf_counter()`, no request shall be sent,
    but for those that are scheduled; `waiting`: of these, how many are to be sent, or were sent and
    nobody has been told.
    """

    reader: str
    thread: int | None
    sent: int
    bytes: int
    until_s: float

    @property
    def waiting(self) -> int: ...

    def number(self) -> int:
        """Of a request that is to be sent now."""
        ...

    def count(self, received: int) -> None:
        """Bytes that somebody else has read."""
        ...

    def take_stalls(self) -> list[tuple[float, float]]:
        """(start, end) of each since the last time, on `time.perf_counter()`: for STALL_S or longer
        nothing was read.
        """
        ...

    def watch(self, connection: socket.socket, listener: Listener, plain: bool) -> ReaderStream:
        """`connection` does not block. `plain`: an answer over HTTP/1 begins, which may be told as
        a whole; else each read is told.
        """
        ...

    def close(self) -> None:
        """No stall is noted any more."""
        ...


class StallWatch:
    """Notes when the loop stood still, for whatever reason: its own work, the disk, no core. What
    was to be read meanwhile has merged, or wrong times; that must be known.
    """

    def __init__(self) -> None:
        self.found: list[tuple[float, float]] = []
        self.last_s = time.perf_counter()
        self.timer = gevent.get_hub().loop.timer(TICK_S, repeat=TICK_S)
        self.timer.start(self._tick)

    def _tick(self) -> None:
        now_s = time.perf_counter()
        if now_s - self.last_s > TICK_S + STALL_S:
            self.found.append((self.last_s, now_s))
        self.last_s = now_s

    def take(self) -> list[tuple[float, float]]:
        """(start, end) of each since the last time, on `time.perf_counter()`: in between it stood
        still for STALL_S or longer.
        """
        found, self.found = self.found, []
        return found

    def close(self) -> None:
        self.timer.stop()
        self.timer.close()


class PythonReader:
    reader = "python"
    thread: int | None = None
    waiting = 0

    def __init__(self) -> None:
        self.sent, self.bytes, self.until_s = 0, 0, math.inf
        self.stalls = StallWatch()

    def number(self) -> int:
        self.sent += 1
        return self.sent - 1

    def count(self, received: int) -> None:
        self.bytes += received

    def take_stalls(self) -> list[tuple[float, float]]:
        return self.stalls.take()

    def watch(self, connection: socket.socket, listener: Listener, plain: bool) -> ReaderStream:  # noqa: ARG002 - it is all the same to it
        return PythonStream(self, connection, listener)

    def close(self) -> None:
        self.stalls.close()


class PythonStream:
    def __init__(self, streams: PythonReader, connection: socket.socket, listener: Listener):
        self.watcher = watcher = gevent.get_hub().loop.io(connection.fileno(), READABLE)
        read = listener.read

        def on_readable() -> None:
            try:
                data, at, lag = read_stamped(connection)
            except BlockingIOError:
                return
            except OSError as error:
                watcher.stop()
                listener.came(Received(-(error.errno or 1), b"", [], [], []))
                return
            if not data:
                watcher.stop()
                listener.came(Received(CLOSED, b"", [], [], []))
                return
            # not count(), which is slower, and this is done for each event
            streams.bytes += len(data)
            read(data, at, lag)

        watcher.start(on_readable)

    def prepare(self, before: bytes, after: bytes) -> None:
        """Who is told of each read, sends himself."""

    def leave(self) -> list[Received]:
        self.watcher.stop()
        self.watcher.close()
        return []
