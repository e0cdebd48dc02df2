"""`python -m loadtests.instrument`: the former name of `python -m loadtests.accuracy`."""

import sys

from loadtests.accuracy.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
