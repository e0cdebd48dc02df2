"""Starts one server, waits until it serves, and ends its whole process tree: `with running(...) as server`."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servers import catalog, rule

ROOT = Path(__file__).parents[1]


class LaunchError(RuntimeError):
    """Why a server does not run, in one sentence that names the remedy, and the last lines of its log."""


@dataclass(frozen=True)
class Model:
    """`path`: folder or hub name; empty if no engine needs weights. `planted`: its answers follow `servers/rule.py`."""

    name: str
    path: str
    planted: bool


@dataclass(frozen=True)
class Share:
    """What every server alike may use: cores (none: all), engine threads over all its workers, worker processes."""

    cores: tuple[int, ...] = ()
    threads: int = 1
    workers: int = 1


@dataclass
class Running:
    base_url: str
    pid: int  # root of the server's process tree
    command: list[str]
    startup_s: float  # from the process's start to the first 200 of /health
    log: Path
    supervisor: "subprocess.Popen[bytes]" = field(repr=False)

    def ended(self) -> bool:
        return self.supervisor.poll() is not None


def resolve_model(wanted: str, needs_weights: bool) -> Model:
    """A preset's name (generated on first use), a folder, or a hub name. Raises LaunchError."""
    preset = wanted.removeprefix("serveoff-")
    if f"serveoff-{preset}" in rule.PLANTED_MODELS:
        return Model(f"serveoff-{preset}", _generated(preset) if needs_weights else "", True)
    folder = Path(wanted).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise LaunchError(f"{wanted} is not a model folder: it has no config.json")
        return Model(folder.resolve().name, str(folder.resolve()), False)
    if wanted.count("/") != 1 or wanted.startswith((".", "/", "~")):
        presets = ", ".join(name.removeprefix("serveoff-") for name in rule.PLANTED_MODELS)
        raise LaunchError(f"the model {wanted!r} does not exist: give one of {presets}, an existing folder, or a hub name like org/name")
    return Model(wanted, wanted, False)


def _generated(preset: str) -> str:
    done = subprocess.run([sys.executable, "-m", "servers.engines.checkpoint", preset], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise LaunchError(f"the model {preset!r} could not be generated: see above")
    return done.stdout.strip().splitlines()[-1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int, option: str = "--port") -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LaunchError(f"port {port} on {host} cannot be used ({error.strerror}): give another one with {option}") from None


def supervised(command: Sequence[str], log: Path, *, cores: Sequence[int] = (), environment: dict[str, str] | None = None,
               ) -> "subprocess.Popen[bytes]":
    """A command that ends, with all its descendants, when `stop` is called or this process ends, however it ends.

    The first line of its stdout is the command's process id.
    """
    pinned = ["--cores", ",".join(map(str, cores))] if cores else []
    own = [sys.executable, "-m", "servers.supervise", str(log.resolve()), *pinned, "--", *command]
    return subprocess.Popen(own, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True)


def stop(supervisor: "subprocess.Popen[bytes]") -> int:
    """Ends it and waits until its whole tree is gone; its exit code."""
    for pipe in (supervisor.stdin, supervisor.stdout):
        if pipe is not None:
            pipe.close()
    return supervisor.wait()


def environment_of(engine: str, model: Model, threads: int, simulated: dict[str, Any], workers: bool) -> dict[str, str]:
    settings = {"SERVEOFF_ENGINE": engine, "SERVEOFF_MODEL_NAME": model.name, "SERVEOFF_MODEL_PATH": model.path,
                "SERVEOFF_THREADS": str(threads), "SERVEOFF_SIMULATED": json.dumps(simulated), "OMP_NUM_THREADS": str(threads),
                "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", "PATH": catalog.search_path()}
    if Path(model.path).is_dir():
        settings["HF_HUB_OFFLINE"] = "1"  # everything is there: no look-up on the network at start
    if workers:
        settings["PROMETHEUS_MULTIPROC_DIR"] = "set by servers.supervise"
    return {**os.environ, **settings}


@contextmanager
def running(server: catalog.Server, engine: str, model: Model, share: Share, log: Path, *, host: str = "127.0.0.1",
            port: int | None = None, simulated: dict[str, Any] | None = None, ready_timeout_s: float | None = None) -> Iterator[Running]:
    """Raises LaunchError if it cannot start, dies, or is not ready in time. At the end nothing of it is left."""
    if port is not None:
        check_port(host, port)
    port = port or free_port()
    uses_workers = any("{workers}" in part for part in server.command)
    threads = max(1, share.threads // share.workers) if uses_workers else share.threads
    command = [part.format(host=host, port=port, workers=share.workers) for part in server.command]
    began = time.perf_counter()
    supervisor = supervised(command, log, cores=share.cores,
                            environment=environment_of(engine, model, threads, simulated or {}, uses_workers))
    try:
        assert supervisor.stdout is not None
        pid = supervisor.stdout.readline()
        _wait_ready(server, supervisor, host, port, log, ready_timeout_s or server.ready_timeout_s)
        yield Running(f"http://{host}:{port}", int(pid), command, time.perf_counter() - began, log, supervisor)
    finally:
        stop(supervisor)


def _wait_ready(server: catalog.Server, supervisor: "subprocess.Popen[bytes]", host: str, port: int, log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if supervisor.poll() is not None:
            raise LaunchError(f"{server.name} ended at its start with exit code {supervisor.returncode}; its last log lines:\n{tail(log)}")
        if get_status(host, port, "/health") == 200:
            return
        time.sleep(0.1)
    raise LaunchError(f"{server.name} was not ready after {timeout_s:g} s (raise ready_timeout_s in its server.toml if it only needs "
                      f"longer); its last log lines:\n{tail(log)}")


def get_status(host: str, port: int, path: str) -> int | None:
    """Status of a GET; None if there is no answer within 2 s."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def tail(log: Path, lines: int = 15) -> str:
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join("    " + line for line in text.splitlines()[-lines:]) or "    (its log is empty)"
