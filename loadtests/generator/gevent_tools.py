"""gevent tools that keep timing precise: yielding to I/O, a fair semaphore, background writes."""

import os
import sys
from collections import deque
from collections.abc import Callable

import gevent
from gevent.event import Event
from gevent.threadpool import ThreadPool

from loadtests.client.reader import socket_reader

EXIT_ABORTED = 4  # exit code


class IoYield:
    """Lets a greenlet with long work yield to everything that has become readable or due."""

    def __init__(self) -> None:
        # the loop serves it after all others
        self.last = gevent.get_hub().loop.timer(0.0, priority=-2)
        self.has_reader_thread = socket_reader().thread_id is not None

    def yield_to_io(self) -> None:
        # a reader thread that shares our core, and has something to read, would have to wait until
        # our time slice is over
        if self.has_reader_thread:
            os.sched_yield()
        gevent.get_hub().wait(self.last)


class FairSemaphore:
    """Caps how many may proceed at once. Those that wait proceed in the order of their arrival."""

    def __init__(self, free: int):
        self.free = free
        self.waiting: deque[Event] = deque()

    def acquire(self) -> None:
        if self.free:  # then nobody waits: `release` hands a slot over without freeing it
            self.free -= 1
            return
        handed_over = Event()
        self.waiting.append(handed_over)
        handed_over.wait()

    def release(self) -> None:
        if self.waiting:
            self.waiting.popleft().set()
        else:
            self.free += 1


class BackgroundWriter:
    """Runs writes that may wait for a disk in one thread, in order. After an error it calls
    `on_error` and runs nothing more.
    """

    def __init__(self, on_error: Callable[[Exception], None]):
        self.on_error = on_error
        self.thread = ThreadPool(1)
        self.waiting: deque[Callable[[], object]] = deque()
        self.idle = Event()
        self.idle.set()

    def submit(self, write: Callable[[], object]) -> None:
        """Returns at once."""
        self.waiting.append(write)
        if self.idle.is_set():
            self.idle.clear()
            gevent.spawn(self._run_waiting)

    def join(self) -> None:
        """Waits until all writes are done."""
        self.idle.wait()

    def _run_waiting(self) -> None:
        while self.waiting:
            if error := self.thread.apply(_run_caught, (self.waiting.popleft(),)):
                self.on_error(error)
                return
        self.idle.set()


def _run_caught(write: Callable[[], object]) -> Exception | None:
    """Returns the error: gevent would log the traceback of one raised in its thread."""
    try:
        write()
        return None
    except Exception as error:
        return error


def abort_process(problem: object) -> None:
    """Ends the process at once. A load generator that cannot record (on a full disk, say) must not
    go on as if it could, and Locust would swallow an exception.
    """
    try:
        print(f"the load generator gave up: {problem}", file=sys.stderr, flush=True)
    finally:  # on a full disk, stderr, which is a log, fails as well
        os._exit(EXIT_ABORTED)
