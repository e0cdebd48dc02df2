"""Becomes a router in front of replicas, whose base URLs come as one comma-separated argument.

python -m servers.frameworks.router URL,URL PROGRAM ARGUMENT ...
"""

import os
import sys

if __name__ == "__main__":
    upstream, *command = sys.argv[1:]
    os.execvp(command[0], [*command, "--worker-urls", *upstream.split(",")])  # noqa: S606 - no shell
