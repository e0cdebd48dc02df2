"""What gevent does too coarsely for a measuring instrument: reads without a switch of greenlets, sleep to the microsecond, pauses in
which sockets come first, fair slots, files that keep nobody waiting, and a look at whether all that was in time.

`HubConnection`: the event loop itself reads, stamps and takes the bytes. A greenlet that waits in `recv` is woken by the loop for
every event of its stream; with many streams that is most of the client's time, and each token waits for the switches before it.
Here the greenlet sleeps until its answer is complete, and what comes next can be sent before it wakes.

`Alarm`: gevent's own timers are rounded up to the millisecond of epoll's time-out; a timerfd is a descriptor like any other. It wakes a
little early, and the rest is spent awake.

`Turn`: gevent.sleep(0) lets other greenlets go first, but asks the kernel for what has become readable only after some fifty of them.

`Slots`: gevent's Semaphore lets one who has just come overtake those who wait, if a slot becomes free in the same turn of the loop.

`Files`: to gevent, a file is never busy. But a file system that commits its journal keeps who writes waiting, now and then for half a
second, and all greenlets with it.

`Stalls`: whatever keeps the loop from reading for long falsifies what it measures, and must be known.
"""

import ctypes
import os
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import gevent
from gevent import monkey
from gevent.event import Event
from gevent.hub import Waiter
from gevent.threadpool import ThreadPool

from loadtests.sse import Connection, Exchange, Reader, stamped_read
from loadtests.websocket import WebSocketConnection

# Gevent replaces socket.socket by one that waits by switching; this is the plain one.
PlainSocket = monkey.get_original("socket", "socket")
READABLE, WRITABLE = 1, 2  # of gevent's watchers
AWAKE_S = 50e-6  # about what waking up takes
TICK_S = 0.005
STALL_S = 0.010  # tokens of one stream that come meanwhile may be merged


class HubConnection(Connection):
    """`then`: called by the loop when an answer has ended on a connection that is kept, before the greenlet that waits for it goes on.
    It must not wait. The next request that it sends, by `send_ahead`, is on its way before any bookkeeping."""

    then: Callable[[], None] | None = None
    unsent: bytes | None = None  # of a request that was sent ahead; null: there is none

    def open(self) -> None:
        if self.socket is None:
            super().open()
            if self.tls is None and self.socket is not None:  # TLS buffers, so that "readable" says nothing
                self.socket = PlainSocket(fileno=self.socket.detach())
                self.socket.setblocking(False)

    def close(self) -> None:
        super().close()
        self.unsent = None

    def encoder(self, path: str, body: bytes, prefix: str) -> Callable[[int], bytes]:
        """A request made in advance but for the number that ends its X-Request-Id, which is known when it is sent."""
        before, _, after = self._request(path, body, prefix + "\0").partition(b"\0")
        return lambda number: b"%b%d%b" % (before, number, after)

    def send_ahead(self, encode: Callable[[int], bytes], number: int, exchange: Exchange) -> None:
        """Sends a request without waiting for anything, if the connection is open: `post` with the same exchange waits for its answer, and
        sends what could not be sent at once."""
        if self.socket is not None and self.tls is None:
            request = encode(number)
            exchange.sent_s = time.perf_counter()
            self.unsent = request[self._send(request) :]

    def _send(self, data: bytes) -> int:
        assert self.socket is not None
        try:
            return self.socket.send(data)
        except OSError:  # there is no room for it; or the connection is broken, which the next read or write says
            return 0

    def _exchange(self, request: bytes, answer: Reader, deadline: float) -> None:
        if self.tls is not None:
            super()._exchange(request, answer, deadline)
            return
        unsent, self.unsent = self.unsent, None
        if unsent is None:
            unsent = request[self._send(request) :]
        with gevent.Timeout(max(0.0, deadline - time.perf_counter()), TimeoutError):
            if unsent:
                self._send_rest(unsent)
            self._receive(answer, deadline)
        if not answer.keep:
            self.close()

    def _send_rest(self, unsent: bytes) -> None:
        assert self.socket is not None
        watcher, rest = gevent.get_hub().loop.io(self.socket.fileno(), WRITABLE), memoryview(unsent)
        try:
            while rest:
                gevent.get_hub().wait(watcher)
                with suppress(BlockingIOError):
                    rest = rest[self.socket.send(rest) :]
        finally:
            watcher.close()

    def _receive(self, answer: Reader, deadline: float) -> None:
        if self.tls is not None:
            super()._receive(answer, deadline)
            return
        assert self.socket is not None
        waiter = Waiter()
        watcher = gevent.get_hub().loop.io(self.socket.fileno(), READABLE)
        plain, feed = self.socket, answer.feed

        def on_readable() -> None:
            try:
                data, at, lag = stamped_read(plain)  # not feed(*...), which is slower, and this is done for each event
                if feed(data, at, lag):
                    if self.then is not None and answer.keep:
                        self.then()
                    watcher.stop()
                    waiter.switch(None)
            except BlockingIOError:
                pass
            except Exception as error:
                watcher.stop()
                waiter.throw(error)

        watcher.start(on_readable)
        try:
            waiter.get()
        finally:
            watcher.stop()
            watcher.close()


class HubWebSocket(HubConnection, WebSocketConnection):
    """The same on a WebSocket, which must be open when a request is made."""

    def encoder(self, path: str, body: bytes, prefix: str) -> Callable[[int], bytes]:
        return lambda number: self._request(path, body, f"{prefix}{number}")


class Alarm:
    """For one greenlet. Sleeps by gevent's own timer where there is no timerfd (outside Linux)."""

    def __init__(self) -> None:
        self.descriptor = -1
        if sys.platform == "linux":
            self.libc = ctypes.CDLL(None, use_errno=True)
            self.descriptor = self.libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)

    def sleep_until(self, at_s: float) -> None:
        """Returns at once if that time, of `time.perf_counter()`, has passed; never too early."""
        wake_s = at_s - AWAKE_S
        if wake_s > time.perf_counter():
            self._sleep_until(wake_s)
        while time.perf_counter() < at_s:
            pass

    def _sleep_until(self, at_s: float) -> None:
        if self.descriptor < 0:
            gevent.sleep(at_s - time.perf_counter())
            return
        nanoseconds = int(at_s * 1e9)
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


class Turn:
    """For one greenlet, in long work: lets everything go first that has become readable or due meanwhile."""

    def __init__(self) -> None:
        self.last = gevent.get_hub().loop.timer(0.0, priority=-2)  # the loop serves it after all others

    def pass_on(self) -> None:
        gevent.get_hub().wait(self.last)


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


class Stalls:
    """Notes when the loop stood still, for whatever reason: its own work, the disk, no core."""

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
        """(start, end) of each since the last time, on `time.perf_counter()`: in between it stood still for STALL_S or longer."""
        found, self.found = self.found, []
        return found

    def close(self) -> None:
        self.timer.stop()
        self.timer.close()


class Files:
    """Does in a thread what may have to wait for a disk, one after the other. `failed` is told of an error; then nothing more is done."""

    def __init__(self, failed: Callable[[Exception], None]):
        self.failed = failed
        self.thread = ThreadPool(1)
        self.waiting: deque[Callable[[], object]] = deque()
        self.idle = Event()
        self.idle.set()

    def do(self, work: Callable[[], object]) -> None:
        """Returns at once."""
        self.waiting.append(work)
        if self.idle.is_set():
            self.idle.clear()
            gevent.spawn(self._work)

    def join(self) -> None:
        """Waits until all has been done."""
        self.idle.wait()

    def _work(self) -> None:
        while self.waiting:
            if error := self.thread.apply(_error_of, (self.waiting.popleft(),)):
                self.failed(error)
                return
        self.idle.set()


def _error_of(work: Callable[[], object]) -> Exception | None:
    """Not raised: gevent would write the traceback of an exception in its thread into the log."""
    try:
        work()
        return None
    except Exception as error:
        return error
