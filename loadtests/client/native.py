"""The socket reader in C (native.c): a thread that needs no interpreter."""

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
from array import array
from collections import deque
from collections.abc import Callable
from pathlib import Path

import gevent

from loadtests.client.reader import (
    ENDED,
    READABLE,
    Listener,
    PythonReader,
    ReaderStream,
    Received,
    ScheduledRequest,
    SendOutcome,
    SocketReader,
)

SOURCE, *INCLUDED = (Path(__file__).with_name(f"{name}.c") for name in ("native", "due"))


READ_WORDS = 3  # arrival, lag, bytes until then


class _Shared(ctypes.Structure):
    _fields_ = (
        ("sent", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("until_s", ctypes.c_double),
        ("thread", ctypes.c_int64),
    )


class _Response(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("stream", "why", "bytes", "head", "reads", "number")),
        ("sent_s", ctypes.c_double),
        ("unsent", ctypes.c_int64),
        ("data", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
    )


class _ScheduledSend(ctypes.Structure):
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


class NativeReader:
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
        self.scheduled: deque[ScheduledRequest] = deque()
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
    def loop(self) -> PythonReader:
        """Reads what is not plain: made when it is needed, since it looks for stalls two hundred
        times a second.
        """
        return PythonReader()

    def number(self) -> int:
        return int(self.library.streams_number())

    def count(self, received: int) -> None:
        self.loop.count(received)

    def take_stalls(self) -> list[tuple[float, float]]:
        found, start_s, end_s = [], ctypes.c_double(), ctypes.c_double()
        while self.library.streams_stall(ctypes.byref(start_s), ctypes.byref(end_s)):
            found.append((start_s.value, end_s.value))
        return sorted(found + (self.loop.take_stalls() if "loop" in self.__dict__ else []))

    def watch(self, connection: socket.socket, listener: Listener, plain: bool) -> ReaderStream:
        if not plain:
            return self.loop.watch(connection, listener, plain)
        return self._stream(self.library.streams_watch, connection, listener)

    def offer(self, connection: socket.socket, listener: Listener) -> ReaderStream:
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
    ) -> ReaderStream:
        self.watched += 1
        if not (address := begin(connection.fileno(), self.watched)):
            raise OSError("the kernel watches no more connections")
        self.listeners[self.watched] = listener
        return NativeStream(self, self.watched, address)

    def schedule(self, at_s: float, request: ScheduledRequest) -> bool:
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
            due = _ScheduledSend.from_address(address)
            found = SendOutcome(self.listeners.get(due.stream), due.number, due.sent_s, due.unsent)
            self.scheduled.popleft().told(found)
        while address := self.library.streams_take():
            stream, came = self.came(address)
            self.listeners[stream].came(came)

    def came(self, address: int) -> tuple[int, Received]:
        answer = _Response.from_address(address)
        stream, data, head, body = answer.stream, answer.data, answer.bytes, 0
        if answer.why == ENDED:
            head, body = answer.head, answer.bytes
        reads = ctypes.string_at(answer.read, 8 * READ_WORDS * answer.reads)
        times = array("d", reads)
        came = Received(
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


class NativeStream:
    def __init__(self, streams: NativeReader, number: int, address: int):
        self.streams, self.number, self.address = streams, number, address

    def prepare(self, before: bytes, after: bytes) -> None:
        self.streams.library.streams_prepare(self.address, before, len(before), after, len(after))

    def leave(self) -> list[Received]:
        del self.streams.listeners[self.number]
        found = []
        while address := self.streams.library.streams_leave(self.address):
            found.append(self.streams.came(address)[1])
        return found


def compile_library() -> ctypes.CDLL | None:
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


@functools.cache
def socket_reader() -> SocketReader:
    """One in a process, which must not fork afterwards."""
    if (
        sys.platform == "linux"
        and os.environ.get("SERVEOFF_STREAMS") != "python"
        and (library := compile_library())
    ):
        return NativeReader(library)
    return PythonReader()
