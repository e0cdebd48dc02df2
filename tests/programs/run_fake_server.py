"""Runs the fake server that has a tree of processes, as a campaign does, until it is killed.

Arguments: the server's folder, its log. Prints the server's URL.
"""

import sys
import time
from pathlib import Path

from servers.runtime import launch
from tests.helpers.fake_server import MODEL, fake_server


def main(folder: Path, log: Path) -> None:
    server = fake_server(folder, "tree")
    with launch.run_server(server, "simulated", MODEL, launch.CoreShare(), log) as up:
        print(up.base_url, flush=True)
        time.sleep(1000)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
