"""Servers that are programs of a few lines, and checks of what they leave behind."""

import sys
from pathlib import Path

import psutil

from servers.runtime import ports
from servers.runtime.catalog import ServerSpec
from servers.runtime.errors import LaunchError
from servers.runtime.models import Model
from tests.helpers.python_program import PROGRAMS

MODEL = Model("serveoff-tiny", "", True)


def fake_server(folder: Path, behaviour: str = "serve", *more: str) -> ServerSpec:
    """A server with a behaviour of tests/programs/fake_server.py, which leaves its notes in the
    folder.
    """
    program = str(PROGRAMS / "fake_server.py")
    command = (sys.executable, program, behaviour, str(folder), "{port}", *more)
    return ServerSpec("fake", "a server", command, ("simulated",))


def noted_pids(folder: Path) -> list[int]:
    return [int(file.read_text()) for file in folder.glob("pid-*")]


def pid_is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def port_is_free(port: int) -> bool:
    try:
        ports.check_port("127.0.0.1", port)
    except LaunchError:
        return False
    return True
