"""Sends the requests of an open loop at their scheduled times, whether or not earlier ones have
ended.

`make_pacer` chooses one of two pacers. For plain HTTP, `NativePacer` sends through the native
reader, which waits neither for the interpreter nor for its lock. `GeventPacer` sends from gevent's
loop, which has much other work; it wakes a little early and spins until the request is due.
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

from loadtests.client.connection import Connection
from loadtests.client.http import Exchange, RequestTemplate
from loadtests.client.limits import WAKE_EARLY_S
from loadtests.client.native import NativeReader
from loadtests.client.reader import socket_reader
from loadtests.client.reader_types import ScheduledRequest, SendOutcome
from loadtests.generator.gevent_tools import abort_process

AHEAD = 16  # requests that are encoded in advance
ENCODE_S = 0.0005  # time before the next send in which another request can still be encoded

# Receives the connection on which a request was sent, and its number; None and None if it was not.
OnSent = Callable[[Connection | None, int | None], None]


class Pacer(Protocol):
    def send(
        self, at_s: float, path: str, body: bytes, exchange: Exchange, on_sent: OnSent
    ) -> None:
        """Sends at `at_s` (of `time.perf_counter()`; must not decrease). Returns when it is time to
        prepare the next request. The loop calls `on_sent`, which must not wait. If no connection
        was idle, `on_sent` receives None, and the caller sends the request.
        """
        ...

    def return_idle(self, connection: Connection) -> None:
        """Returns a connection to the pacer. The most recently used one is used next."""
        ...

    def acquire_idle(self) -> Connection | None:
        """Takes an idle connection for a request that the pacer has not sent."""
        ...

    def join(self) -> None:
        """Waits until all requests have been sent."""
        ...

    def close(self) -> None:
        """Drops the requests that are not sent yet."""
        ...


def make_pacer(like: Connection, prefix: str, ahead: bool = True) -> Pacer:
    """Returns the pacer for connections like `like`; `prefix` starts each X-Request-Id. Without
    `ahead` the pacer only keeps time: `on_sent` always receives None.
    """
    reader = socket_reader()
    native = like.protocol.whole_responses and like.reader.sends_ahead
    if ahead and native and isinstance(reader, NativeReader):
        return NativePacer(reader, like, prefix)
    return GeventPacer(like, prefix, ahead)


class NativePacer:
    def __init__(self, reader: NativeReader, like: Connection, prefix: str):
        self.reader, self.like, self.prefix = reader, like, prefix
        self.sent = Event()

    def send(
        self, at_s: float, path: str, body: bytes, exchange: Exchange, on_sent: OnSent
    ) -> None:
        template = self.like.protocol.make_template(path, body, self.prefix)

        def on_outcome(outcome: SendOutcome) -> None:
            self.sent.set()
            connection = outcome.listener
            if connection is None:
                on_sent(None, None)
                return
            assert isinstance(connection, Connection)
            request = self.like.protocol.fill_template(template, outcome.number)
            connection.record_sent(exchange, request, outcome.sent_s, outcome.unsent)
            on_sent(connection, outcome.number)

        request = ScheduledRequest(template.before, template.after, on_outcome)
        while not self.reader.schedule(at_s, request):
            self._wait()

    def _wait(self) -> None:
        self.sent.clear()
        self.sent.wait()

    def return_idle(self, connection: Connection) -> None:
        if connection.socket is not None:  # else it was closed
            connection.stream = self.reader.return_idle(connection.socket, connection)

    def acquire_idle(self) -> Connection | None:
        connection = self.reader.acquire_idle()
        if connection is None:
            return None
        assert isinstance(connection, Connection)
        connection.stream = None
        return connection

    def join(self) -> None:
        while self.reader.unreported:
            self._wait()

    def close(self) -> None:
        self.reader.cancel_schedule()


class WaitingRequest(NamedTuple):
    at_s: float
    template: RequestTemplate
    exchange: Exchange
    on_sent: OnSent


class GeventPacer:
    def __init__(self, like: Connection, prefix: str, ahead: bool):
        self.like, self.prefix, self.ahead = like, prefix, ahead
        # Connections are not opened in advance: a synchronous worker would accept an idle one and
        # wait for it while others queue.
        self.idle: list[Connection] = []
        self.waiting: deque[WaitingRequest] = deque()
        self.unreported: list[tuple[OnSent, Connection | None, int | None]] = []
        self.added, self.sent = Event(), Event()
        self.timer = PreciseTimer()
        self.sender = gevent.spawn(self._send_forever)
        self.sender.link_exception(lambda failed: abort_process(repr(failed.exception)))

    def send(
        self, at_s: float, path: str, body: bytes, exchange: Exchange, on_sent: OnSent
    ) -> None:
        template = self.like.protocol.make_template(path, body, self.prefix)
        self.waiting.append(WaitingRequest(at_s, template, exchange, on_sent))
        self.added.set()
        while len(self.waiting) >= AHEAD or (
            self.waiting and self.waiting[0].at_s - time.perf_counter() < ENCODE_S
        ):
            self._wait()

    def _wait(self) -> None:
        self.sent.clear()
        self.sent.wait()

    def _send_forever(self) -> None:
        while True:
            while not self.waiting:
                self._report_sent()
                self.added.clear()
                self.added.wait()
            # Requests that are due together must not wait for the work after each send.
            if len(self.unreported) == AHEAD or time.perf_counter() < self.waiting[0].at_s:
                self._report_sent()
            self.timer.sleep_until(self.waiting[0].at_s)
            _, template, exchange, on_sent = self.waiting.popleft()
            connection, number = self.idle.pop() if self.idle and self.ahead else None, None
            if connection is not None:
                number = socket_reader().next_request_number()
                connection.close_if_stale()
                connection.send_ahead(template, number, exchange)
            self.unreported.append((on_sent, connection, number))
            self.sent.set()

    def _report_sent(self) -> None:
        for on_sent, connection, number in self.unreported:
            on_sent(connection, number)
        self.unreported.clear()

    def return_idle(self, connection: Connection) -> None:
        self.idle.append(connection)

    def acquire_idle(self) -> Connection | None:
        return self.idle.pop() if self.idle else None

    def join(self) -> None:
        while self.waiting:
            self._wait()
        self._report_sent()

    def close(self) -> None:
        self.sender.kill()
        self.timer.close()


class PreciseTimer:
    """Wakes one greenlet at an exact time, by a timerfd. Outside Linux it falls back to gevent's
    timers, which are rounded up to whole milliseconds.
    """

    def __init__(self) -> None:
        self.descriptor = -1
        if sys.platform == "linux":
            self.libc = ctypes.CDLL(None, use_errno=True)
            self.descriptor = self.libc.timerfd_create(
                time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC
            )

    def sleep_until(self, at_s: float) -> None:
        """Sleeps until `at_s` (of `time.perf_counter()`), never shorter."""
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
