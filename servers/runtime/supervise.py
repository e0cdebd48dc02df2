"""Runs one command and makes sure that nothing of it outlives us: not a process, not a temporary
file, not shared memory.

    python -m servers.runtime.supervise LOG [--folder FOLDER] [--cores 0,1] [--before JSON] --
    COMMAND ...

Prints the command's process id, sends its output to LOG, closes its own output when the command has
ended, and ends with the command's exit code when all that it left has ended, too. It ends the
command when its own standard input ends, which happens whenever the process that started it ends,
by `kill -9` too. On Linux it adopts orphaned grandchildren, so a worker whose master was killed is
found and ended as well.

`--before` has the processes without which the command would not work (a cache, an application
behind a proxy): a JSON list of {name, command, log, ready}. They are started in this order, each
when the one before is ready, and their process ids are printed before the command's; they are ended
in reverse order, and if one ends by itself, so does everything. `ready` is where it listens:
HOST:PORT, or the path of a Unix socket. In all of that "{run}" becomes a temporary folder that they
share.
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

SHARED_MEMORY = "/dev/shm/"  # noqa: S108 - where Linux has it
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


Roots = list[subprocess.Popen[bytes]]


def end_tree(root: subprocess.Popen[bytes], others: Roots) -> None:
    """SIGTERM to the command, which ends its workers itself if it can; after a grace SIGKILL to
    whatever is left, but for the trees of `others`.
    """
    if root.poll() is None:
        root.terminate()
    deadline = time.monotonic() + GRACE_S
    while (left := _descendants(others)) and time.monotonic() < deadline:
        if root.poll() is not None:  # an orphan has nobody left to end it
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
    # Adopted ones are ours to reap; the commands themselves are left to Popen, which may do it
    # between two lines here.
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
    """Files of shared memory that our descendants have mapped. Whoever is killed leaves its own
    there, and vLLM with several processes on a CPU always does. Empty elsewhere than on Linux.
    """
    found = set[str]()
    for process in _descendants([]):
        with contextlib.suppress(OSError), open(f"/proc/{process.pid}/maps") as maps:
            found |= {
                line.split(maxsplit=5)[5].rstrip("\n") for line in maps if SHARED_MEMORY in line
            }
    return found


def hang_up() -> None:
    """Closes standard output: who started us sees at once that it is over, and not only when all
    that is left has ended.
    """
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)


def is_ready(place: str) -> bool:
    """Whether something listens at HOST:PORT, or at the path of a Unix socket."""
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
    """Whether it is time to end: a signal, the end of our standard input, or of a command. No
    threads: Popen's preexec_fn and they do not go together.
    """

    def __init__(self) -> None:
        self.asked = False
        self.woken, on_signal = os.pipe()
        os.set_blocking(on_signal, False)
        signal.set_wakeup_fd(on_signal, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self.ask)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # so that it wakes us

    def ask(self, *_: object) -> None:
        self.asked = True

    def wait(self, roots: Roots, within_s: float | None = None) -> bool:
        """Waits for it, at most so long."""
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

    # in the child: should we be killed ourselves, the kernel tells it to end
    def end_with_supervisor() -> None:
        if libc:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    if arguments.cores:
        os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})

    roots: Roots = []
    others_memory = {str(file) for file in Path(SHARED_MEMORY).glob("*")}
    temporary = tempfile.mkdtemp(prefix="serveoff-")
    try:
        # where Prometheus' client wants it, for servers with several processes
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
        # what stands in front of another still needs it while it ends
        for number in reversed(range(len(roots))):
            end_tree(roots[number], roots[:number])
        for file in memory:
            Path(file).unlink(missing_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
    return first.returncode if first.returncode >= 0 else 128 - first.returncode


if __name__ == "__main__":
    sys.exit(main())
