"""Blocks gevent's loop, and checks when it is noted that the loop stood still."""

import time
from itertools import pairwise

import gevent

from loadtests.client.python_reader import StallWatch


def main() -> None:
    stalls = StallWatch()
    gevent.sleep(0.05)
    stalls.pop_stalls()
    began_s = time.perf_counter()
    time.sleep(0.05)  # nothing is patched here: the loop stands still
    ended_s = time.perf_counter()
    assert not stalls.pop_stalls(), "it cannot be known yet"
    gevent.sleep(0.05)
    found = stalls.pop_stalls()
    assert any(start_s <= began_s and ended_s <= end_s for start_s, end_s in found), (
        began_s,
        ended_s,
        found,
    )
    assert all(end_s - start_s >= 0.015 for start_s, end_s in found), found
    assert all(before[1] <= after[0] for before, after in pairwise(found)), found

    stalls.close()
    gevent.sleep(0.01)
    time.sleep(0.05)
    gevent.sleep(0.01)
    assert not stalls.pop_stalls()
    print("fine")


if __name__ == "__main__":
    main()
