"""Sends the requests of an open loop when they are due, whatever has become of those before:
`dispatcher` chooses who.

`ByThread`: the thread in C that also reads (loadtests/client/native.c), which waits neither for the
interpreter nor for its lock. For plain HTTP.

`ByLoop`: gevent's loop, which has much else to do. It wakes a little early, and spends the rest
awake.
"""

import ctypes
import os
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import gevent
from gevent.event import Event

from loadtests.client.gevent_connection import Encoder, GeventConnection
from loadtests.client.http import Exchange
from loadtests.client.limits import WAKE_EARLY_S
from loadtests.client.native import NativeReader
from loadtests.client.reader import socket_reader
from loadtests.client.reader_types import ScheduledRequest, SendOutcome
from loadtests.generator.gevent_tools import abort_process

AHEAD = 16  # requests that are made in advance
MAKING_S = 0.0005  # so long before the next one is due there is still time to make another

# on which connection it was sent, as which number; null: it was not
OnSent = Callable[[GeventConnection | None, int | None], None]


class Pacer(Protocol):
    def send(self, at_s: float, path: str, body: bytes, exchange: Exchange, told: OnSent) -> None:
        """At that time of `time.perf_counter()`, which is not before that of the one given before.
        Returns when it is time to make the next one. `told` is called by the loop, and must not
        wait; what was not sent, since no connection was idle, is for whom it tells.
        """
        ...

    def offer(self, connection: GeventConnection) -> None:
        """It is idle. The one that was used last is used first."""
        ...

    def take(self) -> GeventConnection | None:
        """One that is idle, for a request that was not sent."""
        ...

    def join(self) -> None:
        """Waits until all have been sent."""
        ...

    def close(self) -> None:
        """No more are sent."""
        ...


def make_pacer(like: GeventConnection, prefix: str, ahead: bool = True) -> Pacer:
    """`like`: a connection as those on which requests are sent. `prefix`: of their numbers. Not
    `ahead`: all are for whom `told` tells.
    """
    here = socket_reader()
    if ahead and like.plain and like.tls is None and isinstance(here, NativeReader):
        return NativePacer(here, like, prefix)
    return GeventPacer(like, prefix, ahead)


class NativePacer:
    def __init__(self, here: NativeReader, like: GeventConnection, prefix: str):
        self.here, self.like, self.prefix = here, like, prefix
        self.sent = Event()

    def send(self, at_s: float, path: str, body: bytes, exchange: Exchange, told: OnSent) -> None:
        before, after = self.like.around(path, body, self.prefix)

        def was_due(due: SendOutcome) -> None:
            self.sent.set()
            if due.listener is None:
                told(None, None)
                return
            connection, request = due.listener, b"%b%d%b" % (before, due.number, after)
            assert isinstance(connection, GeventConnection)
            exchange.sent_s, connection.unsent = due.sent_s, request[len(request) - due.unsent :]
            told(connection, due.number)

        while not self.here.schedule(at_s, ScheduledRequest(before, after, was_due)):
            self._wait()

    def _wait(self) -> None:
        self.sent.clear()
        self.sent.wait()

    def offer(self, connection: GeventConnection) -> None:
        if connection.socket is not None:  # else it was closed
            connection.stream = self.here.return_idle(connection.socket, connection)

    def take(self) -> GeventConnection | None:
        connection = self.here.acquire_idle()
        if connection is None:
            return None
        assert isinstance(connection, GeventConnection)
        connection.stream = None
        return connection

    def join(self) -> None:
        while self.here.scheduled:
            self._wait()

    def close(self) -> None:
        self.here.cancel_schedule()


class WaitingRequest(NamedTuple):
    at_s: float
    encode: Encoder
    exchange: Exchange
    told: OnSent


class GeventPacer:
    def __init__(self, like: GeventConnection, prefix: str, ahead: bool):
        self.like, self.prefix, self.ahead = like, prefix, ahead
        # Not opened in advance: a synchronous worker would accept an idle one and wait for it while
        # others queue.
        self.idle: list[GeventConnection] = []
        self.waiting: deque[WaitingRequest] = deque()
        # of which nobody has been told
        self.begun: list[tuple[OnSent, GeventConnection | None, int | None]] = []
        self.came, self.sent = Event(), Event()
        self.alarm = PreciseTimer()
        self.sender = gevent.spawn(self._send_for_ever)
        self.sender.link_exception(lambda failed: abort_process(repr(failed.exception)))

    def send(self, at_s: float, path: str, body: bytes, exchange: Exchange, told: OnSent) -> None:
        self.waiting.append(
            WaitingRequest(at_s, self.like.encoder(path, body, self.prefix), exchange, told)
        )
        self.came.set()
        while len(self.waiting) >= AHEAD or (
            self.waiting and self.waiting[0].at_s - time.perf_counter() < MAKING_S
        ):
            self._wait()

    def _wait(self) -> None:
        self.sent.clear()
        self.sent.wait()

    def _send_for_ever(self) -> None:
        while True:
            while not self.waiting:
                self._tell()
                self.came.clear()
                self.came.wait()
            # Those that come close together do not wait for what is to be done after sending.
            if len(self.begun) == AHEAD or time.perf_counter() < self.waiting[0].at_s:
                self._tell()
            self.alarm.sleep_until(self.waiting[0].at_s)
            _, encode, exchange, told = self.waiting.popleft()
            connection, number = self.idle.pop() if self.idle and self.ahead else None, None
            if connection is not None:
                number = socket_reader().next_request_number()
                connection.send_ahead(encode, number, exchange)
            self.begun.append((told, connection, number))
            self.sent.set()

    def _tell(self) -> None:
        for told, connection, number in self.begun:
            told(connection, number)
        self.begun.clear()

    def offer(self, connection: GeventConnection) -> None:
        self.idle.append(connection)

    def take(self) -> GeventConnection | None:
        return self.idle.pop() if self.idle else None

    def join(self) -> None:
        while self.waiting:
            self._wait()
        self._tell()

    def close(self) -> None:
        self.sender.kill()
        self.alarm.close()


class PreciseTimer:
    """For one greenlet. Gevent's own timers, which it uses where there is no timerfd (outside
    Linux), are rounded up to the millisecond of epoll's time limit; a timerfd is a descriptor like
    any other.
    """

    def __init__(self) -> None:
        self.descriptor = -1
        if sys.platform == "linux":
            self.libc = ctypes.CDLL(None, use_errno=True)
            self.descriptor = self.libc.timerfd_create(
                time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC
            )

    def sleep_until(self, at_s: float) -> None:
        """Returns at once if that time, of `time.perf_counter()`, has passed; never too early."""
        wake_s = at_s - WAKE_EARLY_S
        if wake_s > time.perf_counter():
            self._sleep_until(wake_s)
        while time.perf_counter() < at_s:
            pass

    def _sleep_until(self, at_s: float) -> None:
        if self.descriptor < 0:
            gevent.sleep(at_s - time.perf_counter())
            return
        nanoseconds = int(at_s * 1e9)
        # no interval; absolute
        when = struct.pack("@qqqq", 0, 0, nanoseconds // 1_000_000_000, nanoseconds % 1_000_000_000)
        if self.libc.timerfd_settime(self.descriptor, 1, when, None):  # 1: TFD_TIMER_ABSTIME
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        watcher = gevent.get_hub().loop.io(self.descriptor, 1)
        try:
            gevent.get_hub().wait(watcher)
        finally:
            watcher.close()

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
