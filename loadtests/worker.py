"""`python -m loadtests.worker`, as users start it on another machine."""

import sys

from loadtests.generator.remote_worker import main

if __name__ == "__main__":
    sys.exit(main())
