"""The native socket reader (native.c): a thread that needs no interpreter."""

import ctypes
import math
import os
import socket
import subprocess
from array import array
from collections import deque
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_double, c_int, c_int64, c_void_p
from pathlib import Path

import gevent

from loadtests.client.compiler import compile_once
from loadtests.client.limits import ENDED, compiler_definitions
from loadtests.client.python_reader import READABLE, PythonReader
from loadtests.client.reader_types import (
    Listener,
    ReaderStream,
    Received,
    ScheduledRequest,
    SendOutcome,
)

SOURCE = Path(__file__).with_name("native.c")


# --- the declarations of native.c


class SharedFields(ctypes.Structure):
    """struct shared"""

    _fields_ = (
        ("sent", c_int64),
        ("bytes", c_int64),
        ("until_s", c_double),
        ("thread_id", c_int64),
    )


class ResponseFields(ctypes.Structure):
    """The first fields of struct response"""

    _fields_ = (
        ("connection", c_int64),
        ("reason", c_int64),
        ("bytes", c_int64),
        ("head_bytes", c_int64),
        ("read_count", c_int64),
        ("next_number", c_int64),
        ("next_sent_s", c_double),
        ("next_unsent", c_int64),
        ("data", c_void_p),
        ("reads", c_void_p),
    )


class ScheduledFields(ctypes.Structure):
    """struct scheduled"""

    _fields_ = (
        ("at_s", c_double),
        ("sent_s", c_double),
        ("before", c_void_p),
        ("after", c_void_p),
        ("before_bytes", c_int64),
        ("after_bytes", c_int64),
        ("connection", c_int64),
        ("number", c_int64),
        ("unsent", c_int64),
    )


READ_WORDS = 3  # of struct read: arrival, lag, end; 8 bytes each

AROUND_NUMBER = (c_char_p, c_int64, c_char_p, c_int64)  # before, its length, after, its length
FUNCTIONS = {  # name: types of the result and of the arguments
    "reader_start": (c_int,),
    "reader_shared": (POINTER(SharedFields),),
    "reader_next_number": (c_int64,),
    "reader_watch": (c_void_p, c_int, c_int64),
    "reader_prepare": (None, c_void_p, *AROUND_NUMBER),
    "reader_next_response": (c_void_p,),
    "reader_stop": (c_void_p, c_void_p),
    "reader_free": (None, c_void_p),
    "reader_pop_stall": (c_int, c_void_p, c_void_p),
    "reader_schedule": (c_int, c_double, *AROUND_NUMBER),
    "reader_next_outcome": (c_void_p,),
    "reader_cancel_schedule": (None,),
    "reader_return_idle": (c_void_p, c_int, c_int64),
    "reader_acquire_idle": (c_int64,),
}


def load_library() -> ctypes.CDLL | None:
    """Loads native.c, which is compiled once per version; None if that is impossible here."""
    try:
        options = ["-shared", "-fPIC", "-pthread", *compiler_definitions()]
        path = compile_once(SOURCE, ".so", options)
        library = None if path is None else ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.CalledProcessError):
        return None
    for name, (result, *arguments) in FUNCTIONS.items() if library else ():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


# --- the reader


class NativeReader:
    """Implements SocketReader. It also sends scheduled requests without waiting for Python."""

    kind = "c"

    def __init__(self, library: ctypes.CDLL):
        self.library = library
        if (descriptor := library.reader_start()) < 0:
            raise OSError(-descriptor, os.strerror(-descriptor))
        self.shared: SharedFields = library.reader_shared().contents
        self.shared.until_s = math.inf
        self.listeners: dict[int, Listener] = {}  # by the id of their connection in C
        self.last_id = 0
        self.scheduled: deque[ScheduledRequest] = deque()  # C uses their bytes until the outcome
        self.watcher = gevent.get_hub().loop.io(descriptor, READABLE, ref=False)
        self.watcher.start(self.drain_notifications)
        self._python_reader: PythonReader | None = None

    @property
    def thread_id(self) -> int | None:
        return int(self.shared.thread_id)

    @property
    def unreported(self) -> int:
        return len(self.scheduled)

    @property
    def sent(self) -> int:
        return int(self.shared.sent)

    @sent.setter
    def sent(self, sent: int) -> None:
        self.shared.sent = sent

    @property
    def bytes(self) -> int:
        by_python = self._python_reader.bytes if self._python_reader else 0
        return int(self.shared.bytes) + by_python

    @property
    def until_s(self) -> float:
        return float(self.shared.until_s)

    @until_s.setter
    def until_s(self, until_s: float) -> None:
        self.shared.until_s = until_s

    @property
    def python_reader(self) -> PythonReader:
        """Reads responses that are not plain. Created on first use, because it checks for stalls
        200 times per second.
        """
        if self._python_reader is None:
            self._python_reader = PythonReader()
        return self._python_reader

    def next_request_number(self) -> int:
        return int(self.library.reader_next_number())

    def count_bytes(self, received: int) -> None:
        self.python_reader.count_bytes(received)

    def pop_stalls(self) -> list[tuple[float, float]]:
        stalls, start_s, end_s = [], c_double(), c_double()
        while self.library.reader_pop_stall(ctypes.byref(start_s), ctypes.byref(end_s)):
            stalls.append((start_s.value, end_s.value))
        return sorted(stalls + (self._python_reader.pop_stalls() if self._python_reader else []))

    def watch(
        self, connection: socket.socket, listener: Listener, whole_responses: bool
    ) -> ReaderStream:
        if not whole_responses:
            return self.python_reader.watch(connection, listener, whole_responses)
        return self._new_stream(self.library.reader_watch, connection, listener)

    def return_idle(self, connection: socket.socket, listener: Listener) -> ReaderStream:
        """Lends an idle HTTP/1 connection. The reader may send a scheduled request on it, and then
        reads the response as after `watch`.
        """
        return self._new_stream(self.library.reader_return_idle, connection, listener)

    def acquire_idle(self) -> Listener | None:
        """Takes back the most recently used idle connection, which no longer has a stream; None if
        there is none.
        """
        connection_id = self.library.reader_acquire_idle()
        return self.listeners.pop(connection_id) if connection_id else None

    def _new_stream(
        self,
        create: Callable[[int, int], int | None],
        connection: socket.socket,
        listener: Listener,
    ) -> ReaderStream:
        self.last_id += 1
        if not (address := create(connection.fileno(), self.last_id)):
            raise OSError("the kernel cannot watch another connection")
        self.listeners[self.last_id] = listener
        return NativeStream(self, self.last_id, address)

    def schedule(self, at_s: float, request: ScheduledRequest) -> bool:
        """Schedules a request for `at_s` (of `time.perf_counter()`; must not decrease). Reports its
        outcome at most a few milliseconds later. Returns False if too many requests are waiting.
        """
        before, after, _ = request
        if not self.library.reader_schedule(at_s, before, len(before), after, len(after)):
            return False
        self.scheduled.append(request)
        return True

    def cancel_schedule(self) -> None:
        """Drops all scheduled requests that are not sent yet, and all unreported outcomes."""
        self.library.reader_cancel_schedule()
        self.scheduled.clear()

    def close(self) -> None:
        if self._python_reader:
            self._python_reader.close()

    def drain_notifications(self) -> None:
        while address := self.library.reader_next_outcome():
            fields = ScheduledFields.from_address(address)
            listener = self.listeners.get(fields.connection)
            outcome = SendOutcome(listener, fields.number, fields.sent_s, fields.unsent)
            self.scheduled.popleft().on_outcome(outcome)
        while address := self.library.reader_next_response():
            connection_id, received = self.read_response(address)
            self.listeners[connection_id].on_response(received)

    def read_response(self, address: int) -> tuple[int, Received]:
        """Copies a struct response and frees it. Returns (id of its connection, copy)."""
        fields = ResponseFields.from_address(address)
        connection_id, data, head, body = fields.connection, fields.data, fields.bytes, 0
        if fields.reason == ENDED:
            head, body = fields.head_bytes, fields.bytes
        reads = ctypes.string_at(fields.reads, 8 * READ_WORDS * fields.read_count)
        times = array("d", reads)
        received = Received(
            fields.reason,
            ctypes.string_at(data, head),
            times[::READ_WORDS].tolist(),
            times[1::READ_WORDS].tolist(),
            array("q", reads)[2::READ_WORDS].tolist(),
            ctypes.string_at(data + head, body),
            fields.next_number,
            fields.next_sent_s,
            fields.next_unsent,
        )
        self.library.reader_free(address)
        return connection_id, received


class NativeStream:
    def __init__(self, reader: NativeReader, connection_id: int, address: int):
        self.reader, self.connection_id, self.address = reader, connection_id, address

    def prepare(self, before: bytes, after: bytes) -> None:
        self.reader.library.reader_prepare(self.address, before, len(before), after, len(after))

    def stop_reading(self) -> list[Received]:
        del self.reader.listeners[self.connection_id]
        undelivered = []
        while address := self.reader.library.reader_stop(self.address):
            undelivered.append(self.reader.read_response(address)[1])
        return undelivered
