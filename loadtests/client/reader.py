"""Who reads the streams: a thread in C (loadtests/client/native.c), on Linux if there is a C
compiler; else gevent's loop, in Python.

Both do the same: they stamp each read, tell of it, and count. But the thread waits neither for the
interpreter nor for its lock, and tells of a plain answer only when it is complete, after it has
sent the next request: so an event costs less, and nothing that Python does meanwhile keeps a stream
waiting. `SERVEOFF_STREAMS=python` chooses the loop; run.json says who it was, as `reader`.
"""

import ctypes
import functools
import hashlib
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from array import array
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import gevent

from loadtests.client.http import stamped_read

SOURCE, *INCLUDED = (Path(__file__).with_name(f"{name}.c") for name in ("native", "due"))
ENDED, MORE, CLOSED = 0, 1, 2  # or minus errno: why one is told; MORE: it was not plain
READABLE = 1
TICK_S = 0.005
STALL_S = 0.010  # tokens of one stream that come meanwhile may be merged
READ_WORDS = 3  # arrival, lag, bytes until then


class Came(NamedTuple):
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


class Due(NamedTuple):
    """What became of a request that was due: it was sent on the connection of `listener`, as
    `number`, at `sent_s`, but for `unsent` bytes; null: no connection was idle, and it was not
    sent.
    """

    listener: "Listener | None"
    number: int
    sent_s: float
    unsent: int


class Scheduled(NamedTuple):
    """A request, around its number, and who is told what became of it."""

    before: bytes
    after: bytes
    told: Callable[[Due], None]


class Listener(Protocol):
    """Is told by gevent's loop, so it must not wait."""

    def came(self, came: Came) -> None: ...

    def read(self, data: bytes, at: float, lag: float) -> None:
        """The same as MORE with one read."""
        ...


class Stream(Protocol):
    """A connection that is read."""

    def prepare(self, before: bytes, after: bytes) -> None:
        """A request, around its number, that may be sent when the answer ends."""
        ...

    def leave(self) -> list[Came]:
        """It is no longer read. What came and was not told, the last one perhaps not whole. Nobody
        else is told of anything: whoever leaves may be told himself just now, or may be no loop.
        """
        ...


class Streams(Protocol):
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

    def watch(self, connection: socket.socket, listener: Listener, plain: bool) -> Stream:
        """`connection` does not block. `plain`: an answer over HTTP/1 begins, which may be told as
        a whole; else each read is told.
        """
        ...

    def close(self) -> None:
        """No stall is noted any more."""
        ...


@functools.cache
def streams() -> Streams:
    """One in a process, which must not fork afterwards."""
    if (
        sys.platform == "linux"
        and os.environ.get("SERVEOFF_STREAMS") != "python"
        and (library := compiled())
    ):
        return InC(library)
    return InLoop()


class Stalls:
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


class InLoop:
    reader = "python"
    thread: int | None = None
    waiting = 0

    def __init__(self) -> None:
        self.sent, self.bytes, self.until_s = 0, 0, math.inf
        self.stalls = Stalls()

    def number(self) -> int:
        self.sent += 1
        return self.sent - 1

    def count(self, received: int) -> None:
        self.bytes += received

    def take_stalls(self) -> list[tuple[float, float]]:
        return self.stalls.take()

    def watch(self, connection: socket.socket, listener: Listener, plain: bool) -> Stream:  # noqa: ARG002 - it is all the same to it
        return StreamInLoop(self, connection, listener)

    def close(self) -> None:
        self.stalls.close()


class StreamInLoop:
    def __init__(self, streams: InLoop, connection: socket.socket, listener: Listener):
        self.watcher = watcher = gevent.get_hub().loop.io(connection.fileno(), READABLE)
        read = listener.read

        def on_readable() -> None:
            try:
                data, at, lag = stamped_read(connection)
            except BlockingIOError:
                return
            except OSError as error:
                watcher.stop()
                listener.came(Came(-(error.errno or 1), b"", [], [], []))
                return
            if not data:
                watcher.stop()
                listener.came(Came(CLOSED, b"", [], [], []))
                return
            # not count(), which is slower, and this is done for each event
            streams.bytes += len(data)
            read(data, at, lag)

        watcher.start(on_readable)

    def prepare(self, before: bytes, after: bytes) -> None:
        """Who is told of each read, sends himself."""

    def leave(self) -> list[Came]:
        self.watcher.stop()
        self.watcher.close()
        return []


class _Shared(ctypes.Structure):
    _fields_ = (
        ("sent", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("until_s", ctypes.c_double),
        ("thread", ctypes.c_int64),
    )


class _Answer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("stream", "why", "bytes", "head", "reads", "number")),
        ("sent_s", ctypes.c_double),
        ("unsent", ctypes.c_int64),
        ("data", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
    )


class _Due(ctypes.Structure):
    _fields_ = (
        ("at_s", ctypes.c_double),
        ("sent_s", ctypes.c_double),
        ("before", ctypes.c_void_p),
        ("after", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in ("before_bytes", "after_bytes", "stream", "number", "unsent")
        ),
    )


class InC:
    """Also sends requests when they are due (`schedule`), without waiting for the interpreter."""

    reader = "c"

    def __init__(self, library: ctypes.CDLL):
        self.library = library
        for name, result, *arguments in (
            ("begin", ctypes.c_int),
            ("shared", ctypes.POINTER(_Shared)),
            ("number", ctypes.c_int64),
            ("take", ctypes.c_void_p),
            ("watch", ctypes.c_void_p, ctypes.c_int, ctypes.c_int64),
            ("free", None, ctypes.c_void_p),
            (
                "prepare",
                None,
                ctypes.c_void_p,
                ctypes.c_char_p,
                ctypes.c_int64,
                ctypes.c_char_p,
                ctypes.c_int64,
            ),
            ("leave", ctypes.c_void_p, ctypes.c_void_p),
            ("stall", ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
            ("offer", ctypes.c_void_p, ctypes.c_int, ctypes.c_int64),
            ("sent", ctypes.c_void_p),
            ("cancel", None),
            ("take_idle", ctypes.c_int64),
            (
                "schedule",
                ctypes.c_int,
                ctypes.c_double,
                ctypes.c_char_p,
                ctypes.c_int64,
                ctypes.c_char_p,
                ctypes.c_int64,
            ),
        ):
            function = getattr(library, f"streams_{name}")
            function.restype, function.argtypes = result, arguments
        if (descriptor := library.streams_begin()) < 0:
            raise OSError(-descriptor, os.strerror(-descriptor))
        self.shared: _Shared = library.streams_shared().contents
        self.shared.until_s = math.inf
        self.listeners: dict[int, Listener] = {}
        self.watched = 0
        # whose texts are read in C, until it is told of them
        self.scheduled: deque[Scheduled] = deque()
        self.watcher = gevent.get_hub().loop.io(descriptor, READABLE, ref=False)
        self.watcher.start(self.tell)

    thread = property(lambda self: self.shared.thread)
    waiting = property(lambda self: len(self.scheduled))
    sent = property(
        lambda self: self.shared.sent, lambda self, sent: setattr(self.shared, "sent", sent)
    )
    bytes = property(lambda self: self.shared.bytes + ("loop" in self.__dict__ and self.loop.bytes))
    until_s = property(
        lambda self: self.shared.until_s,
        lambda self, until_s: setattr(self.shared, "until_s", until_s),
    )

    @functools.cached_property
    def loop(self) -> InLoop:
        """Reads what is not plain: made when it is needed, since it looks for stalls two hundred
        times a second.
        """
        return InLoop()

    def number(self) -> int:
        return int(self.library.streams_number())

    def count(self, received: int) -> None:
        self.loop.count(received)

    def take_stalls(self) -> list[tuple[float, float]]:
        found, start_s, end_s = [], ctypes.c_double(), ctypes.c_double()
        while self.library.streams_stall(ctypes.byref(start_s), ctypes.byref(end_s)):
            found.append((start_s.value, end_s.value))
        return sorted(found + (self.loop.take_stalls() if "loop" in self.__dict__ else []))

    def watch(self, connection: socket.socket, listener: Listener, plain: bool) -> Stream:
        if not plain:
            return self.loop.watch(connection, listener, plain)
        return self._stream(self.library.streams_watch, connection, listener)

    def offer(self, connection: socket.socket, listener: Listener) -> Stream:
        """A request that is due may be sent on this connection, over HTTP/1; then its answer is
        read as that of one that is watched.
        """
        return self._stream(self.library.streams_offer, connection, listener)

    def take_idle(self) -> Listener | None:
        """Of the connection that was offered last, which is no longer; null if none is idle. Its
        stream is gone.
        """
        number = self.library.streams_take_idle()
        return self.listeners.pop(number) if number else None

    def _stream(
        self, begin: Callable[[int, int], int | None], connection: socket.socket, listener: Listener
    ) -> Stream:
        self.watched += 1
        if not (address := begin(connection.fileno(), self.watched)):
            raise OSError("the kernel watches no more connections")
        self.listeners[self.watched] = listener
        return StreamInC(self, self.watched, address)

    def schedule(self, at_s: float, request: Scheduled) -> bool:
        """To be sent at that time of `time.perf_counter()`, which is not before that of one that
        was given earlier. The loop tells what became of it, some milliseconds later at most. False:
        so many wait that there is no room for it.
        """
        before, after, _ = request
        if not self.library.streams_schedule(at_s, before, len(before), after, len(after)):
            return False
        self.scheduled.append(request)
        return True

    def cancel(self) -> None:
        """What is not yet due is not sent, and nobody is told of what was."""
        self.library.streams_cancel()
        self.scheduled.clear()

    def close(self) -> None:
        if "loop" in self.__dict__:
            self.loop.close()

    def tell(self) -> None:
        while address := self.library.streams_sent():
            due = _Due.from_address(address)
            found = Due(self.listeners.get(due.stream), due.number, due.sent_s, due.unsent)
            self.scheduled.popleft().told(found)
        while address := self.library.streams_take():
            stream, came = self.came(address)
            self.listeners[stream].came(came)

    def came(self, address: int) -> tuple[int, Came]:
        answer = _Answer.from_address(address)
        stream, data, head, body = answer.stream, answer.data, answer.bytes, 0
        if answer.why == ENDED:
            head, body = answer.head, answer.bytes
        reads = ctypes.string_at(answer.read, 8 * READ_WORDS * answer.reads)
        times = array("d", reads)
        came = Came(
            answer.why,
            ctypes.string_at(data, head),
            times[::READ_WORDS].tolist(),
            times[1::READ_WORDS].tolist(),
            array("q", reads)[2::READ_WORDS].tolist(),
            ctypes.string_at(data + head, body),
            answer.number,
            answer.sent_s,
            answer.unsent,
        )
        self.library.streams_free(address)
        return stream, came


class StreamInC:
    def __init__(self, streams: InC, number: int, address: int):
        self.streams, self.number, self.address = streams, number, address

    def prepare(self, before: bytes, after: bytes) -> None:
        self.streams.library.streams_prepare(self.address, before, len(before), after, len(after))

    def leave(self) -> list[Came]:
        del self.streams.listeners[self.number]
        found = []
        while address := self.streams.library.streams_leave(self.address):
            found.append(self.streams.came(address)[1])
        return found


def compiled() -> ctypes.CDLL | None:
    """Once for each version of the source, also if two processes come together; null if that is not
    possible here.
    """
    try:
        folder = Path(
            os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "serveoff", "streams"
        )
        folder.mkdir(parents=True, exist_ok=True)
        text = b"".join(file.read_bytes() for file in (SOURCE, *INCLUDED))
        library = folder / f"{hashlib.sha256(text).hexdigest()[:16]}.so"
        if not library.exists():
            compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
            if compiler is None:
                return None
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = Path(scratch, library.name)
                subprocess.run(
                    [compiler, "-O2", "-shared", "-fPIC", "-pthread", "-o", made, SOURCE],
                    check=True,
                    capture_output=True,
                )
                made.rename(library)
        return ctypes.CDLL(str(library))
    # the second: a user without a home
    except (OSError, RuntimeError, subprocess.CalledProcessError):
        return None
