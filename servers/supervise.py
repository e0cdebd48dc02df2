"""Runs one command and makes sure that nothing of it outlives us: not a process, not a temporary file.

    python -m servers.supervise LOG [--cores 0,1] -- COMMAND ...

Prints the command's process id, sends its output to LOG, and ends with its exit code. It ends the command when its own
standard input ends, which happens whenever the process that started it ends, by `kill -9` too. On Linux it adopts orphaned
grandchildren, so a worker whose master was killed is found and ended as well.
"""

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

GRACE_S = float(os.environ.get("SERVEOFF_GRACE_S", "15"))  # after SIGTERM, before SIGKILL
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def end_tree(root: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the command, which ends its workers itself if it can; after a grace SIGKILL to whatever is left."""
    if root.poll() is None:
        root.terminate()
    deadline = time.monotonic() + GRACE_S
    while _descendants() and time.monotonic() < deadline:
        if root.poll() is not None:  # an orphan has nobody left to end it
            for process in _descendants():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
        time.sleep(0.05)
    while left := _descendants():
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)
    root.wait()


def _descendants() -> list[psutil.Process]:
    # Adopted ones are ours to reap; the command itself is left to Popen, which may do it between two lines here.
    with contextlib.suppress(ChildProcessError, psutil.NoSuchProcess):
        for child in psutil.Process().children():
            if child.status() == psutil.STATUS_ZOMBIE and child.pid != _root_pid:
                os.waitpid(child.pid, os.WNOHANG)
    alive = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


_root_pid = -1


def main() -> int:
    global _root_pid
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=Path)
    parser.add_argument("--cores", default="")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def end_with_supervisor() -> None:  # in the child: should we be killed ourselves, the kernel tells it to end
        if libc:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    if arguments.cores:
        os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})

    temporary = tempfile.mkdtemp(prefix="serveoff-")
    try:
        metrics = Path(temporary, "metrics")  # where Prometheus' client wants it, for servers with several processes
        metrics.mkdir()
        environment = os.environ | {"TMPDIR": temporary}
        if "PROMETHEUS_MULTIPROC_DIR" in environment:
            environment["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
        with arguments.log.open("ab") as log:
            try:
                root = subprocess.Popen(arguments.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                                        start_new_session=True, preexec_fn=end_with_supervisor)  # no thread runs yet
            except OSError as error:
                log.write(f"cannot start {arguments.command[0]}: {error}\n".encode())
                return 127
        _root_pid = root.pid
        print(root.pid, flush=True)

        def until_starter_ends() -> None:
            os.read(0, 1)
            ended.set()

        def until_command_ends() -> None:
            root.wait()
            ended.set()

        for target in (until_starter_ends, until_command_ends):
            threading.Thread(target=target, daemon=True).start()
        ended.wait()
        end_tree(root)
        return root.returncode if root.returncode >= 0 else 128 - root.returncode
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the thread that reads standard input cannot be joined
