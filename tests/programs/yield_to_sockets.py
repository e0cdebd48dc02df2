"""Yields twenty times: what has become readable is read during each pause."""

import os

import gevent

from loadtests.generator.gevent_tools import IoYield

TURNS = 20


def main() -> None:
    readable_end, writable_end = os.pipe()
    io_yield = IoYield()
    seen: list[bytes] = []
    watcher = gevent.get_hub().loop.io(readable_end, 1)
    watcher.start(lambda: seen.append(os.read(readable_end, 1)))

    def work() -> None:
        for number in range(TURNS):
            os.write(writable_end, b"x")
            io_yield.yield_to_io()
            assert len(seen) == number + 1, "what has become readable is read in the pause"

    gevent.spawn(work).get()
    print("fine")


if __name__ == "__main__":
    main()
