"""gevent tools that keep timing precise: yielding to I/O, a fair semaphore, background writes."""

import os
import sys
from collections import deque
from collections.abc import Callable

import gevent
from gevent.event import Event
from gevent.threadpool import ThreadPool

from loadtests.client.reader import socket_reader

FAILED = 4  # exit code


class IoYield:
    """For one greenlet, in long work: lets everything go first that has become readable or due
    meanwhile.
    """

    def __init__(self) -> None:
        # the loop serves it after all others
        self.last = gevent.get_hub().loop.timer(0.0, priority=-2)
        self.shared = socket_reader().thread_id is not None

    def pass_on(self) -> None:
        # a thread that has one core with us, and something to read, would have to wait until our
        # turn is over
        if self.shared:
            os.sched_yield()
        gevent.get_hub().wait(self.last)


class FairSemaphore:
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


class BackgroundWriter:
    """Does in a thread what may have to wait for a disk, one after the other. `failed` is told of
    an error; then nothing more is done.
    """

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


def abort_process(problem: object) -> None:
    """A load generator that cannot record (a full disk, say) must not go on as if it did: Locust
    would swallow the exception.
    """
    try:
        print(f"the load generator gave up: {problem}", file=sys.stderr, flush=True)
    finally:  # on a full disk, stderr, which is a log, fails as well
        os._exit(FAILED)
