"""What gevent does too coarsely for a measuring instrument: reads without a switch of greenlets, sleep to the microsecond, fair slots.

`HubConnection`: the event loop itself reads, stamps and takes the bytes. A greenlet that waits in `recv` is woken by the loop for
every event of its stream; with many streams that is most of the client's time, and each token waits for the switches before it.
Here the greenlet sleeps until its answer is complete.

`Alarm`: gevent's own timers are rounded up to the millisecond of epoll's time-out; a timerfd is a descriptor like any other.

`Slots`: gevent's Semaphore lets one who has just come overtake those who wait, if a slot becomes free in the same turn of the loop.
"""

import ctypes
import os
import struct
import sys
import time
from collections import deque

import gevent
from gevent import monkey
from gevent.event import Event
from gevent.hub import Waiter

from loadtests.sse import Connection, Reader, stamped_read
from loadtests.websocket import WebSocketConnection

# Gevent replaces socket.socket by one that waits by switching; this is the plain one, on the same descriptor.
PlainSocket = monkey.get_original("socket", "socket")


class HubConnection(Connection):
    def _receive(self, answer: Reader, deadline: float) -> None:
        assert self.socket is not None
        if self.tls is not None:  # TLS buffers, so that "readable" says nothing
            super()._receive(answer, deadline)
            return
        plain = PlainSocket(fileno=self.socket.fileno())
        plain.setblocking(False)
        waiter = Waiter()
        watcher = gevent.get_hub().loop.io(plain.fileno(), 1)  # 1: readable

        feed = answer.feed

        def on_readable() -> None:
            try:
                if feed(*stamped_read(plain)):
                    watcher.stop()
                    waiter.switch(None)
            except BlockingIOError:
                pass
            except Exception as error:
                watcher.stop()
                waiter.throw(error)

        watcher.start(on_readable)
        try:
            with gevent.Timeout(max(0.0, deadline - time.perf_counter()), TimeoutError):
                waiter.get()
        finally:
            watcher.stop()
            watcher.close()
            plain.detach()  # the descriptor is the connection's


class HubWebSocket(HubConnection, WebSocketConnection):
    """The same on a WebSocket."""


class Alarm:
    """For one greenlet. Sleeps by gevent's own timer where there is no timerfd (outside Linux)."""

    def __init__(self) -> None:
        self.descriptor = -1
        if sys.platform == "linux":
            self.libc = ctypes.CDLL(None, use_errno=True)
            self.descriptor = self.libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)

    def sleep_until(self, at_s: float) -> None:
        """Returns at once if that time, of `time.perf_counter()`, has passed; never too early."""
        if at_s <= time.perf_counter():
            return
        if self.descriptor < 0:
            gevent.sleep(at_s - time.perf_counter())
            return
        nanoseconds = int(at_s * 1e9) + 1
        when = struct.pack("@qqqq", 0, 0, nanoseconds // 1_000_000_000, nanoseconds % 1_000_000_000)  # no interval; absolute
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


class Slots:
    """Caps how many may go on at once; who has waited longest is next."""

    def __init__(self, free: int):
        self.free = free
        self.waiting: deque[Event] = deque()

    def take(self) -> None:
        if self.free:  # then nobody waits: a slot is handed over, and not free in between
            self.free -= 1
            return
        turn = Event()
        self.waiting.append(turn)
        turn.wait()

    def give(self) -> None:
        if self.waiting:
            self.waiting.popleft().set()
        else:
            self.free += 1
