"""Burns 1 to 9 ms of CPU for each line of its input, in the main thread or in a thread that ends,
and prints its CPU time, s.
"""

import sys
import threading
import time


def burn(cpu_s: float) -> None:
    end_s = time.thread_time() + cpu_s
    while time.thread_time() < end_s:
        pass


def main() -> None:
    for number, line in enumerate(sys.stdin):
        cpu_s = (1 + number % 9) / 1e3
        if line.strip() == "thread":
            thread = threading.Thread(target=burn, args=(cpu_s,))
            thread.start()
            thread.join()
        else:
            burn(cpu_s)
        print(time.process_time(), flush=True)


if __name__ == "__main__":
    main()
