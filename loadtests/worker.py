"""`python -m loadtests.worker`: the command that users start on another machine."""

import sys

from loadtests.generator.remote_worker import main

if __name__ == "__main__":
    sys.exit(main())
