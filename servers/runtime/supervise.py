"""Runs one command and makes sure that nothing of it outlives us: no process, no temporary file, no
shared memory.

    python -m servers.runtime.supervise LOG [--folder FOLDER] [--cores 0,1] [--before JSON] --
    COMMAND ...

Prints the command's process id and sends its output to LOG. Closes its own output when the command
ends. Exits with the command's exit code when all of its descendants have ended. Stops the command
when its own standard input ends: that happens whenever the process that started it ends, even by
`kill -9`. On Linux it adopts orphaned grandchildren, so it also stops a worker whose master was
killed.

`--before` lists the processes that the command needs (a cache, an application behind a proxy): a
JSON list of {name, command, log, ready}. They start in this order, each when the previous one is
ready, and their process ids are printed before the command's. They stop in reverse order; if one
ends by itself, everything stops. `ready` is where a process listens: HOST:PORT, or the path of a
Unix socket. "{run}" becomes a temporary folder that all processes share.
"""

import argparse
import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from servers.runtime.limits import GRACE_S, HEALTH_S

SHARED_MEMORY = "/dev/shm/"  # noqa: S108 - Linux's folder for it
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


Roots = list[subprocess.Popen[bytes]]


def end_tree(root: subprocess.Popen[bytes], others: Roots) -> None:
    """Send SIGTERM to the command, which should stop its workers itself; after GRACE_S, send
    SIGKILL to all that is left, except the process trees of `others`.
    """
    if root.poll() is None:
        root.terminate()
    deadline = time.monotonic() + GRACE_S
    while (left := _descendants(others)) and time.monotonic() < deadline:
        if root.poll() is not None:  # the command has ended, so its orphans are ours to stop
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
        time.sleep(0.05)
    while left := _descendants(others):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)
    root.wait()


def _descendants(others: Roots) -> list[psutil.Process]:
    # We reap adopted processes; Popen reaps the commands themselves, perhaps between two lines
    # here.
    with contextlib.suppress(ChildProcessError, psutil.NoSuchProcess):
        for child in psutil.Process().children():
            if child.status() == psutil.STATUS_ZOMBIE and child.pid not in _root_pids:
                os.waitpid(child.pid, os.WNOHANG)
    spared = set[int]()
    for other in others:
        with contextlib.suppress(psutil.NoSuchProcess):
            tree = psutil.Process(other.pid)
            spared |= {tree.pid, *(process.pid for process in tree.children(recursive=True))}
    alive = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.pid not in spared and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


_root_pids = set[int]()


def shared_memory() -> set[str]:
    """Return the files of shared memory that our descendants have mapped. A killed process leaves
    them behind, and vLLM with several processes on a CPU always does. Empty except on Linux.
    """
    found = set[str]()
    for process in _descendants([]):
        with contextlib.suppress(OSError), open(f"/proc/{process.pid}/maps") as maps:
            found |= {
                line.split(maxsplit=5)[5].rstrip("\n") for line in maps if SHARED_MEMORY in line
            }
    return found


def hang_up() -> None:
    """Close standard output: the process that started us sees at once that the command has ended,
    before the rest has.
    """
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)


def is_ready(place: str) -> bool:
    """Return whether a process listens at HOST:PORT, or at the path of a Unix socket."""
    try:
        if "/" in place:
            with socket.socket(socket.AF_UNIX) as unix:
                unix.connect(place)
                return True
        host, _, port = place.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=HEALTH_S):
            return True
    except OSError:
        return False


class Ending:
    """Waits for a reason to stop: a signal, the end of our standard input, or the end of a command.
    It uses no threads, because Popen's preexec_fn is unsafe with them.
    """

    def __init__(self) -> None:
        self.asked = False
        self.woken, on_signal = os.pipe()
        os.set_blocking(on_signal, False)
        signal.set_wakeup_fd(on_signal, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self.ask)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # with a handler, it wakes us

    def ask(self, *_: object) -> None:
        self.asked = True

    def wait(self, roots: Roots, within_s: float | None = None) -> bool:
        """Return whether to stop, after waiting for at most `within_s`."""
        deadline = None if within_s is None else time.monotonic() + within_s
        while not (self.asked or any(root.poll() is not None for root in roots)):
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            readable, _, _ = select.select([0, self.woken], [], [], left_s)
            if self.woken in readable:
                os.read(self.woken, 512)
            self.asked |= 0 in readable
        return True


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=Path)
    parser.add_argument("--folder", default=".")
    parser.add_argument("--cores", default="")
    parser.add_argument("--before", type=json.loads, default=[])
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()

    ending = Ending()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    # runs in the child: if we are killed, the kernel sends it SIGTERM
    def end_with_supervisor() -> None:
        if libc:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    if arguments.cores:
        os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})

    roots: Roots = []
    others_memory = {str(file) for file in Path(SHARED_MEMORY).glob("*")}
    temporary = tempfile.mkdtemp(prefix="serveoff-")
    try:
        # for Prometheus' client in servers with several processes
        metrics = Path(temporary, "metrics")
        metrics.mkdir()
        environment = os.environ | {"TMPDIR": temporary}
        if "PROMETHEUS_MULTIPROC_DIR" in environment:
            environment["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
        for process in [
            *arguments.before,
            {"name": "", "command": arguments.command, "log": arguments.log, "ready": None},
        ]:
            command = [part.replace("{run}", temporary) for part in process["command"]]
            with Path(process["log"]).open("ab") as log:
                try:
                    roots.append(
                        subprocess.Popen(
                            command,
                            stdin=subprocess.DEVNULL,
                            stdout=log,
                            stderr=log,
                            env=environment,
                            cwd=arguments.folder,
                            start_new_session=True,
                            preexec_fn=end_with_supervisor,
                        )
                    )
                except OSError as error:
                    log.write(f"cannot start {command[0]}: {error}\n".encode())
                    return 127
            _root_pids.add(roots[-1].pid)
            print(roots[-1].pid, flush=True)
            while process["ready"] and not is_ready(process["ready"].replace("{run}", temporary)):
                if ending.wait(roots, 0.1):
                    break
            if ending.wait(roots, 0):
                break
        ending.wait(roots)
        first = next((root for root in roots if root.poll() is not None), roots[-1])
    finally:
        hang_up()
        memory = shared_memory() - others_memory
        # in reverse: a process still needs the earlier ones while it ends
        for number in reversed(range(len(roots))):
            end_tree(roots[number], roots[:number])
        for file in memory:
            Path(file).unlink(missing_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
    return first.returncode if first.returncode >= 0 else 128 - first.returncode


if __name__ == "__main__":
    sys.exit(main())
