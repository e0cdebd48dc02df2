"""Lets two threads compute on one core: the one must not count as time that the other waited."""

import hashlib
import os
import threading
import time

from loadtests.generator.recorder import runqueue_wait_s


def compute() -> None:
    """Without the interpreter's lock, as the thread that reads."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)


class Reader(threading.Thread):
    """Computes, and then stays until `done` is set, so that its statistics can be read."""

    def __init__(self) -> None:
        super().__init__()
        self.ran_s: float | None = None
        self.done = threading.Event()

    def run(self) -> None:
        compute()
        self.ran_s = time.thread_time()
        self.done.wait()


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    before_s = runqueue_wait_s(None)
    reader = Reader()
    reader.start()
    compute()
    while reader.ran_s is None:
        time.sleep(0.01)
    alone_s = runqueue_wait_s(None) - before_s
    together_s = runqueue_wait_s(reader.native_id) - before_s
    reader.done.set()
    reader.join()
    assert alone_s > 0.05, alone_s
    assert together_s <= alone_s - 0.9 * reader.ran_s, (alone_s, together_s, reader.ran_s)
    print("fine")


if __name__ == "__main__":
    main()
