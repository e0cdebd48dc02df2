"""A server on HTTP with one of the behaviours below. It imports the standard library only.

    python fake_server.py BEHAVIOUR FOLDER PORT [MORE...]

What it notes for the test it writes into FOLDER; files named pid-* there have process ids.
"""

import http.server
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Never

BEHAVIOUR, FOLDER, PORT, *MORE = sys.argv[1:]


def serve(status: int = 200) -> Never:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

    print("serving", flush=True)
    http.server.ThreadingHTTPServer(("127.0.0.1", int(PORT)), Handler).serve_forever()
    raise AssertionError("it serves forever")


def note(name: str, text: str) -> None:
    Path(FOLDER, name).write_text(text)


def append(name: str, text: str) -> None:
    with Path(FOLDER, name).open("a") as file:
        file.write(text)


def note_pid(name: str) -> None:
    note(f"pid-{name}", str(os.getpid()))


def start_again(behaviour: str, *more: str, own_session: bool = False) -> None:
    command = [sys.executable, __file__, behaviour, FOLDER, PORT, *more]
    subprocess.Popen(command, start_new_session=own_session)


def note_what_it_is_given() -> None:
    given = {
        "arguments": sys.argv,
        "environment": dict(os.environ),
        "cores": sorted(os.sched_getaffinity(0)),
    }
    note("given", json.dumps(given))
    serve()


def serve_with_tree() -> None:
    """A master, a worker in a session of its own, and the worker's child, which ignores SIGTERM.
    Each has a file in the temporary folder.
    """
    [role] = MORE or ["master"]
    if role == "master":
        start_again("tree", "worker", own_session=True)
    elif role == "worker":
        start_again("tree", "stubborn", own_session=True)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(tempfile.mkstemp()[1]).write_text("temporary")
    note_pid(role)
    if role != "master":
        time.sleep(1000)
    while len(list(Path(FOLDER).glob("pid-*"))) < 3:
        time.sleep(0.01)
    serve()


def note_begin_and_end() -> None:
    """One of several processes of a server. MORE: its name, its temporary folder."""
    name, run = MORE

    def note_end(*_: object) -> None:
        append("ends", f"{name} ")
        os._exit(0)

    signal.signal(signal.SIGTERM, note_end)
    if not Path(run).is_dir() or os.environ["TMPDIR"] != run:
        sys.exit(5)
    append("begins", f"{name} ")
    note_pid(name)
    serve()


def fail_as_app() -> None:
    """The process whose name, the first of MORE, is "app" does not start."""
    print("no memory for", MORE[0])
    if MORE[0] == "app":
        sys.exit(3)
    serve()


def leave_stubborn_child() -> None:
    """The child, which does not mind SIGTERM, outlives its parent."""
    command = [sys.executable, __file__, "ignore SIGTERM", FOLDER, PORT]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    child.stdout.readline()
    serve()


def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(flush=True)
    time.sleep(600)


def note_threads() -> None:
    note(f"behind-{PORT}", os.environ["SERVEOFF_ENGINE_THREADS"])
    serve()


def note_upstream() -> None:
    note("front", os.environ["SERVEOFF_UPSTREAM"])
    serve()


def fail_to_load() -> None:
    print("loading")
    print("no weights in /models", file=sys.stderr)
    sys.exit(3)


def be_unavailable() -> None:
    note_pid("unavailable")
    serve(503)


def be_silent() -> None:
    note_pid("silent")
    print("serving", flush=True)
    time.sleep(1000)


def map_shared_memory() -> None:
    """A master and a worker with the files of MORE mapped."""
    mapped = []
    for path in MORE:
        with Path(path).open("a+b") as file:
            file.truncate(4096)
            mapped.append(mmap.mmap(file.fileno(), 4096))
    if os.fork():
        note_pid("master")
        serve()
    time.sleep(1000)


def end_slowly() -> None:
    def end(*_: object) -> None:
        time.sleep(0.5)
        Path(FOLDER, "graceful").touch()
        sys.exit(7)

    signal.signal(signal.SIGTERM, end)
    serve()


BEHAVIOURS = {
    "serve": serve,
    "note what it is given": note_what_it_is_given,
    "tree": serve_with_tree,
    "note begin and end": note_begin_and_end,
    "fail as app": fail_as_app,
    "leave a stubborn child": leave_stubborn_child,
    "ignore SIGTERM": ignore_sigterm,
    "note threads": note_threads,
    "note upstream": note_upstream,
    "fail to load": fail_to_load,
    "503": be_unavailable,
    "silent": be_silent,
    "map shared memory": map_shared_memory,
    "end slowly": end_slowly,
}

if __name__ == "__main__":
    BEHAVIOURS[BEHAVIOUR]()
