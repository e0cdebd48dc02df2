"""Switches context in two threads, about a thousand times a second each, while its main thread
sleeps once, until its input ends.
"""

import sys
import threading
import time


def sleep_again_and_again() -> None:
    while True:
        time.sleep(1e-3)


if __name__ == "__main__":
    for _ in range(2):
        threading.Thread(target=sleep_again_and_again, daemon=True).start()
    sys.stdin.read()
