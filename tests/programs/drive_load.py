"""Drives a closed loop of two users for ten minutes, by a load worker on another machine.

Arguments: the folder for the load, the server's URL, the port that the worker connects to.
"""

import sys
from pathlib import Path

from loadtests.generator.locust_process import Workers
from tests.helpers.recording_server import CLOSED, drive, task_of

if __name__ == "__main__":
    folder, url, port = sys.argv[1:]
    drive(
        Path(folder),
        task_of(url, CLOSED, users=2, duration_s=600),
        Workers(1, ("127.0.0.1", int(port))),
    )
