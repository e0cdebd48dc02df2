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
    """Lets a greenlet with long work yield to all sockets and timers that are ready."""

    def __init__(self) -> None:
        # the loop serves it after all others
        self.last = gevent.get_hub().loop.timer(0.0, priority=-2)
        self.has_reader_thread = socket_reader().thread_id is not None

    def yield_to_io(self) -> None:
        # a reader thread that shares our core and has data to read would wait for the end of our
        # time slice
        if self.has_reader_thread:
            os.sched_yield()
        gevent.get_hub().wait(self.last)


class FairSemaphore:
    """Caps the number of greenlets that proceed at once. Others wait, first come, first served."""

    def __init__(self, free: int):
        self.free = free
        self.waiting: deque[Event] = deque()

    def acquire(self) -> None:
        if self.free:  # then none waits: `release` hands a slot over without freeing it
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
    """Runs writes, which may wait for a disk, in order in one thread. After an error it calls
    `on_error` and runs no more.
    """

    def __init__(self, on_error: Callable[[Exception], None]):
        self.on_error = on_error
        self.thread = ThreadPool(1)
        self.waiting: deque[Callable[[], object]] = deque()
        self.idle = Event()
        self.idle.set()

    def submit(self, write: Callable[[], object]) -> None:
        """Queues a write and returns at once."""
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
    """Runs a write. Returns an error, because gevent would log the traceback of a raised one."""
    try:
        write()
        return None
    except Exception as error:
        return error


def abort_process(problem: object) -> None:
    """Ends the process at once. A load generator that cannot record (on a full disk, say) must not
    continue as if it could, and Locust would swallow an exception.
    """
    try:
        print(f"the load generator gave up: {problem}", file=sys.stderr, flush=True)
    finally:  # stderr is a log: on a full disk it fails as well
        os._exit(EXIT_ABORTED)
