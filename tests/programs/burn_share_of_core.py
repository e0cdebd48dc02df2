"""Burns a share of a core's time: each second the one that the next line of its input has (0 to 1),
in slices of 20 ms.
"""

import sys
import time

SLICES_PER_S = 50


def main() -> None:
    while True:
        share = float(sys.stdin.readline() or 0)
        end_s = time.monotonic() + 1
        while time.monotonic() < end_s:
            busy_until_s = time.monotonic() + share / SLICES_PER_S
            while time.monotonic() < busy_until_s:
                pass
            time.sleep((1 - share) / SLICES_PER_S)


if __name__ == "__main__":
    main()
