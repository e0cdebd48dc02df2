"""Starts one server, waits until it serves, and stops its whole process tree: `with
run_server(...) as server`.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from servers.contract import JsonObject, conformance_client
from servers.profile import access
from servers.runtime import build_cache, catalog, cuda_toolkit, engine_specs, limits
from servers.runtime.catalog import ROOT
from servers.runtime.cuda_devices import BY_BUS, on_cpu
from servers.runtime.errors import LaunchError
from servers.runtime.models import Model, convert_model, run_generator
from servers.runtime.ports import check_port, reserve_ports


@dataclass(frozen=True)
class CoreShare:
    """The resources of every server: cores (empty: all), engine threads over all its workers,
    worker processes.
    """

    cores: tuple[int, ...] = ()
    threads: int = 1
    workers: int = 1


@dataclass
class RunningServer:
    server: str
    base_url: str
    pid: int  # of its command
    # roots of all process trees of the architecture: its other processes, and those of the servers
    # behind it
    pids: list[int]
    command: list[str]
    # variables that the launcher sets and this process does not have
    environment: dict[str, str] = field(repr=False)
    startup_s: float  # from the first process's start to the first 200 of its `ready`
    log: Path
    supervisor: "subprocess.Popen[bytes]" = field(repr=False)
    behind: "list[RunningServer]" = field(repr=False, default_factory=list)
    all_started: bool = field(repr=False, default=False)  # the supervisor has listed all pids

    @property
    def engine_urls(self) -> str:
        """Base URLs of the servers with engines, comma-separated: their /metrics count tokens."""
        return ",".join(each.engine_urls for each in self.behind) or self.base_url

    def ended(self) -> bool:
        """Return whether the server has ended, even if its supervisor is still stopping the rest:
        the supervisor closes its output as soon as the server ends.
        """
        if self.supervisor.poll() is not None or any(each.ended() for each in self.behind):
            return True
        pipe = self.supervisor.stdout
        return self.all_started and pipe is not None and bool(select.select([pipe], [], [], 0)[0])

    def first_ended(self) -> "RunningServer":
        """Return the server behind it that has ended, or the server itself."""
        behind = (
            next((each for each in self.behind if each.ended()), self)
            if self.supervisor.poll() is None
            else self
        )
        return behind if behind is self else behind.first_ended()

    def last_words(self) -> str:
        """Return its exit code and the last lines of each of its logs. Waits until all of its
        processes have ended.
        """
        first = self.first_ended()
        return f"(exit code {first.supervisor.wait()}); its last log lines:\n{log_tails(first.log)}"


def check_environment() -> None:
    """Check SERVEOFF_API_KEY, and set it, for this process and its children, from the file named by
    SERVEOFF_API_KEY_FILE. Raises LaunchError, also if there is no home folder.
    """
    try:
        Path.home()
    except RuntimeError:  # a user that the container does not know
        raise LaunchError("this user has no home folder: set HOME to a writable folder") from None
    if name := os.environ.get("SERVEOFF_API_KEY_FILE"):
        try:
            key = Path(name).read_text().strip()
        except (OSError, ValueError) as error:
            raise LaunchError(
                f"SERVEOFF_API_KEY_FILE: {name} cannot be read"
                f" ({getattr(error, 'strerror', None) or 'it is not text'}): name a file that"
                " contains the key"
            ) from None
        if not key or not key.isprintable():
            raise LaunchError(
                f"SERVEOFF_API_KEY_FILE: {name} must contain the key on one line, and nothing else"
            )
        os.environ["SERVEOFF_API_KEY"] = key
    if key := os.environ.get("SERVEOFF_API_KEY", "").strip():
        if not (key.isprintable() and key.isascii()):
            raise LaunchError("SERVEOFF_API_KEY must be printable ASCII text on one line")
        os.environ["SERVEOFF_API_KEY"] = key  # a file's line end would end the header


def start_supervised(
    command: Sequence[str],
    log: Path,
    *,
    cores: Sequence[int] = (),
    environment: dict[str, str] | None = None,
    before: Sequence[JsonObject] = (),
    folder: Path = ROOT,
) -> "subprocess.Popen[bytes]":
    """Start a command in `folder` under a supervisor. It ends with all its descendants when
    `stop_supervised` is called, or when this process ends, even if it is killed.

    The supervisor's stdout has one process id per line: those of the processes `before` the
    command, then the command's (servers/runtime/supervise.py).
    """
    pinned = ["--cores", ",".join(map(str, cores))] if cores else []
    earlier = ["--before", json.dumps(before)] if before else []
    own = [
        sys.executable,
        "-m",
        "servers.runtime.supervise",
        str(log.resolve()),
        "--folder",
        str(folder),
        *pinned,
        *earlier,
        "--",
        *command,
    ]
    return subprocess.Popen(
        own,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


def stop_supervised(supervisor: "subprocess.Popen[bytes]") -> int:
    """Stop it, wait until its whole process tree has ended, and return its exit code."""
    for pipe in (supervisor.stdin, supervisor.stdout):
        if pipe is not None:
            pipe.close()
    return supervisor.wait()


def server_environment(
    engine: str,
    model: Model,
    threads: int,
    simulated: JsonObject,
    workers: bool,
    programs: Path | None = None,
) -> dict[str, str]:
    """Return the environment of a server. `programs` is the bin folder of its own packages."""
    path = os.pathsep.join([*([str(programs)] if programs else []), catalog.search_path()])
    settings = {
        "SERVEOFF_ENGINE": engine,
        "SERVEOFF_MODEL_NAME": model.name,
        "SERVEOFF_MODEL_PATH": model.path,
        "SERVEOFF_ENGINE_THREADS": str(threads),
        "SERVEOFF_SIMULATED": json.dumps(simulated),
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PATH": path,
    }
    if engine == "vllm":
        settings |= cuda_toolkit.vllm_environment(cuda_toolkit.torch_cuda(programs), path)
    if Path(model.path).is_dir():
        settings["HF_HUB_OFFLINE"] = "1"  # all files are local: no network requests at start
    if workers:
        settings["PROMETHEUS_MULTIPROC_DIR"] = "set by servers.runtime.supervise"
    if on_cpu(os.environ):
        settings["CUDA_VISIBLE_DEVICES"] = ""
    # a server needs no access to another
    inherited = {name: text for name, text in os.environ.items() if name != access.ENVIRONMENT}
    return {**BY_BUS, **inherited, **settings}


def prepare_server(
    server: catalog.ServerSpec, engine: str, model: Model, options: Mapping[str, str] | None = None
) -> str:
    """Do what takes long the first time: install the server's own environment, quantise or convert
    weights. Return the converted model's file, if the server needs one. Raises LaunchError.
    """
    programs = server.checkout.programs
    try:
        if server.packages:
            programs = build_cache.package_environment(server.packages) / "bin"
    except (build_cache.CacheError, OSError) as error:
        raise LaunchError(str(error)) from None
    kind = (options or {}).get("quantization", "none")
    if engine == "vllm" and kind in ("gptq", "awq"):
        if not model.planted:
            raise LaunchError(
                f"quantization={kind} works with generated models only: choose one with --model, or"
                " use a model that is already quantised without this option"
            )
        run_generator("servers.engines.quantized", model.path, kind)
    if server.upstream:
        prepare_server(
            catalog.find_server(server.upstream_of(engine, options or {}), server.checkout),
            engine,
            model,
        )
        return ""
    python = str(programs / "python") if programs else sys.executable
    return convert_model(engine, model, server.choose(options or {}), python)


@contextmanager
def run_server(
    server: catalog.ServerSpec,
    engine: str,
    model: Model,
    share: CoreShare,
    log: Path,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    options: Mapping[str, str] | None = None,
    simulated: JsonObject | None = None,
    ready_timeout_s: float | None = None,
) -> Iterator[RunningServer]:
    """Run a server until the context ends; then no process of it is left. Raises LaunchError if it
    cannot start, ends, or is not ready in time.

    Servers behind it start first and stop last. Their logs, and those of its other processes, are
    beside `log`.
    """
    if port is not None:
        check_port(host, port)
    converted = prepare_server(server, engine, model, options)
    chosen = server.choose(options or {})
    replicas = int(chosen.get("replicas", 1))
    workers = int(chosen.pop("workers", share.workers))
    threads = max(1, share.threads // workers) if server.has_workers else share.threads
    own = (
        build_cache.package_environment(server.packages) / "bin"
        if server.packages
        else server.checkout.programs
    )
    environment = server_environment(
        engine, model, threads, simulated or {}, server.has_workers, own
    )
    began = time.perf_counter()
    with ExitStack() as stack:
        behind = []
        for number in range(replicas if server.upstream else 0):
            other = catalog.find_server(server.upstream_of(engine, chosen), server.checkout)
            part = replace(
                share,
                threads=max(1, share.threads // replicas),
                workers=max(1, share.workers // replicas),
            )
            behind.append(
                stack.enter_context(
                    run_server(
                        other,
                        engine,
                        model,
                        part,
                        log.with_name(f"{log.stem}.upstream-{number + 1}.log"),
                        options={
                            name: value
                            for name, value in chosen.items()
                            if name in engine_specs.ENGINES[engine].options
                        },
                        simulated=simulated,
                        ready_timeout_s=ready_timeout_s,
                    )
                )
            )
        upstream = ",".join(each.base_url for each in behind)
        # after the servers behind it have taken their ports
        free, *others = stack.enter_context(reserve_ports(1 + len(server.ports)))
        port = port or free
        ports = {name: str(other) for name, other in zip(server.ports, others, strict=True)}
        values = {
            **chosen,
            **ports,
            "host": host,
            "port": str(port),
            "workers": str(workers),
            "engine_threads": str(threads),
            "model": model.path,
            "converted": converted,
            "model_name": model.name,
            "upstream": upstream,
            "run": "{run}",  # servers.runtime.supervise fills it in
        }
        before = [
            {
                "name": name,
                "command": [part.format_map(values) for part in each.command],
                "ready": each.ready.format_map(values),
                "log": str(log.with_name(f"{log.stem}.{name}.log").resolve()),
            }
            for name, each in server.processes.items()
        ]
        command = [part.format_map(values) for part in server.command]
        environment |= {
            f"SERVEOFF_{name.upper()}": value
            for name, value in {**chosen, "upstream": upstream, "converted": converted}.items()
            if value
        }
        supervisor = start_supervised(
            command,
            log,
            cores=share.cores,
            environment=environment,
            before=before,
            folder=server.checkout.root,
        )
        stack.callback(stop_supervised, supervisor)
        pids = [pid for each in behind for pid in each.pids]
        added = dict(environment.items() - os.environ.items())
        url = f"http://{host}:{port}"
        up = RunningServer(server.name, url, 0, pids, command, added, 0.0, log, supervisor, behind)
        _wait_ready(server, up, host, port, ready_timeout_s or server.ready_timeout_s)
        up.startup_s = time.perf_counter() - began
        yield up


def _wait_ready(
    server: catalog.ServerSpec, up: RunningServer, host: str, port: int, timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    behind = list(up.pids)
    pipe = up.supervisor.stdout
    assert pipe is not None
    pid_lines = b""
    while time.monotonic() < deadline:
        if up.ended():
            raise LaunchError(
                f"{server.name} ended during its start with exit code"
                f" {up.first_ended().supervisor.wait()}; its last log lines:\n{log_tails(up.log)}"
            )
        # each process id as the process starts; the command's is the last
        if pid_lines.count(b"\n") <= len(server.processes):
            if select.select([pipe], [], [], 0.1)[0]:
                more = os.read(pipe.fileno(), 4096)
                pid_lines += more
                started = [int(pid) for pid in pid_lines.splitlines()]
                up.pids, up.pid = [*behind, *started], (started or [0])[-1]
                up.all_started = not more or pid_lines.count(b"\n") > len(server.processes)
        elif get_status(host, port, server.ready) == 200:
            return
        else:
            time.sleep(0.1)
    raise LaunchError(
        f"{server.name} was not ready after {timeout_s:g} s (if it needs more time, raise"
        " --ready-timeout, or ready_timeout_s in its server.toml); its last log"
        f" lines:\n{log_tails(up.log)}"
    )


def get_status(host: str, port: int, path: str) -> int | None:
    """Return the status of a GET; None if there is no response in time."""
    client = conformance_client.ConformanceClient(
        f"http://{host}:{port}", "", False, ends_s=time.monotonic() + limits.HEALTH_S
    )
    try:
        return client.send("GET", path).status
    except conformance_client.CheckFailed:
        return None


def log_tail(log: Path, lines: int = 15) -> str:
    text = log.read_text(errors="replace") if log.exists() else ""
    return (
        "\n".join("    " + line for line in text.splitlines()[-lines:]) or "    (its log is empty)"
    )


def log_tails(log: Path) -> str:
    """Return the last lines of a server's log, and of the logs beside it: those of its other
    processes and of the servers behind it.
    """
    others = sorted(log.parent.glob(f"{log.stem}.*.log"))
    return "\n".join(
        [log_tail(log), *(f"and of {other.name}:\n{log_tail(other)}" for other in others)]
    )
