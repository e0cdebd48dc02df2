"""Faults in the middle of a campaign's load: the victim of each, and what happens to it.
fault_campaign.py tries them.
"""

import contextlib
import importlib.util
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.helpers.campaign_process import Bench, ports_of, said_of, wait_for


class CannotHere(Exception):
    """Raised where this machine or this server cannot have the fault; the message is the reason."""


def tree(root: psutil.Process) -> list[psutil.Process]:
    return [root, *root.children(recursive=True)]


@dataclass
class Scene:
    """One campaign, the victims of the fault, and what must be undone after it."""

    folder: Path
    bench: Bench
    campaign: "subprocess.Popen[str]"
    others_memory: set[str]  # shared memory that existed before
    undo: ExitStack = field(default_factory=ExitStack)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def telemetry(self) -> psutil.Process:
        return next(
            each
            for each in self.bench.processes()
            if {"loadtests.telemetry", "servers.runtime.supervise"} & {*said_of(each)}
            == {"loadtests.telemetry"}
        )

    def roots(self) -> list[psutil.Process]:
        """The processes of the server's commands, upstream ones first, as telemetry knows them."""
        words = self.telemetry().cmdline()
        pids = [word for word in words[words.index("--server-pid") + 1 :] if word.isdigit()]
        return [psutil.Process(int(pid)) for pid in pids]

    def server(self) -> list[psutil.Process]:
        """All processes of the server."""
        return [process for root in self.roots() for process in tree(root)]

    def worker(self) -> psutil.Process:
        """The busiest worker process of the server. Raises CannotHere if it has none."""
        children = [
            child
            for root in self.roots()
            for child in root.children(recursive=True)
            if "resource_tracker" not in " ".join(said_of(child))
        ]
        if not children:
            raise CannotHere("it has no worker processes")
        return max(children, key=lambda each: sum(each.cpu_times()[:2]))


@dataclass(frozen=True)
class Fault:
    """A fault that `act` causes in the middle of the first case's load. The status of that case
    must match `status`, which is empty if no case is left; `code` has the allowed exit codes of the
    campaign. `around` and `wrap` are what the campaign runs in.
    """

    what: str
    act: Callable[[Scene], object]
    status: str = ".*"
    code: tuple[int, ...] = (0, 1)
    of_server: bool = True
    options: tuple[str, ...] = ()
    around: Callable[[Path], Any] | None = None
    wrap: tuple[str, ...] = ()


# --- faults of a server


def freeze(frozen: list[psutil.Process], for_s: float) -> None:
    for process in frozen:
        process.suspend()
    time.sleep(for_s)
    for process in frozen:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def freeze_forever(scene: Scene) -> None:
    for process in scene.server():
        process.suspend()


def limit_memory(scene: Scene) -> None:
    for process in scene.server():
        process.rlimit(resource.RLIMIT_AS, (process.memory_info().vms, resource.RLIM_INFINITY))


def limit_files(scene: Scene) -> None:
    """Allow no further file or connection; open ones stay."""
    for process in scene.server():
        process.rlimit(
            resource.RLIMIT_NOFILE, (process.num_fds(), process.rlimit(resource.RLIMIT_NOFILE)[1])
        )


def behind(scene: Scene) -> psutil.Process:
    """The process of the first of several commands. Raises CannotHere."""
    if len(roots := scene.roots()) == 1:
        raise CannotHere("it has no upstream or helper process")
    return roots[0]


def reload_nginx(scene: Scene) -> None:
    """Start new workers; the old ones finish their requests."""
    masters = [
        each
        for each in scene.server()
        if each.name() == "nginx" and (parent := each.parent()) and parent.name() != "nginx"
    ]
    if not masters:
        raise CannotHere("it does not use nginx")
    masters[0].send_signal(signal.SIGHUP)


ENDED = r"failed: (load|verify again): .*"

# --- faults of the harness


def kill_load(scene: Scene) -> None:
    scene.bench.load_workers()[0].kill()


def kill_load_worker(scene: Scene) -> None:
    scene.bench.load_workers()[-1].kill()


def remove_results(scene: Scene) -> None:
    shutil.rmtree(scene.out, ignore_errors=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Run the campaign with out/ on a small file system of its own."""
    (folder / "out").mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder / "out")], capture_output=True
    ).returncode:
        raise CannotHere("this user may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder / "out")], check=True)


def fill_disk(scene: Scene) -> None:
    filler = scene.out / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as handle:
        while True:
            handle.write(bytes(4096))
    scene.undo.callback(filler.unlink, missing_ok=True)


OWN_NETWORK = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


def in_network(scene: Scene, *command: str) -> None:
    subprocess.run(["nsenter", "--net", "--target", str(scene.campaign.pid), *command], check=True)


def cut_network(scene: Scene) -> None:
    in_network(scene, "ip", "link", "set", "lo", "down")
    time.sleep(2)
    in_network(scene, "ip", "link", "set", "lo", "up")


def slow_network(scene: Scene) -> None:
    """Delay packets with netem, or with a narrow link where the kernel has no netem."""
    delays = (
        ("netem", "delay", "50ms"),
        ("tbf", "rate", "256kbit", "burst", "2kb", "latency", "10s"),
    )
    for number, delay in enumerate(delays, 1):
        try:
            in_network(scene, "tc", "qdisc", "add", "dev", "lo", "root", *delay)
            break
        except (OSError, subprocess.CalledProcessError):
            if number == len(delays):
                raise CannotHere(
                    "tc cannot delay loopback (Debian: iproute2, and a kernel with netem or tbf)"
                ) from None
    time.sleep(2)
    in_network(scene, "tc", "qdisc", "del", "dev", "lo", "root")


def steal_port(scene: Scene) -> None:
    """Take the port of the second case after it was found free and before its server listens."""

    def started() -> list[int]:
        commands = [
            command
            for each in scene.bench.processes()
            if "servers.runtime.supervise" in (command := said_of(each))
        ]
        return [port for command in commands for port in ports_of(command)]

    first = started()
    thief = scene.undo.enter_context(socket.socket())
    port = wait_for(
        lambda: [port for port in started() if port not in first], "the second case's server"
    )[0]
    thief.bind(("127.0.0.1", port))
    thief.listen()


def type_ctrl_c(scene: Scene, times: int) -> None:
    for _ in range(times):
        scene.campaign.send_signal(signal.SIGINT)
        time.sleep(0.3)


def step_clock(scene: Scene, seconds: int) -> None:
    (scene.folder / "clock").write_text(f"{seconds:+d}\n")


@contextmanager
def false_clock(folder: Path) -> Iterator[None]:
    """Set the wall clock with libfaketime, from a file; the monotonic clock stays. Debian 12's
    libfaketime is too old: https://github.com/wolfcw/libfaketime/issues/426.
    """
    package = importlib.util.find_spec("libfaketime")
    library = (
        next(Path(package.origin).parent.glob("**/libfaketime.so.1"), None)
        if package and package.origin
        else None
    )
    if not library:
        raise CannotHere(
            "libfaketime is not installed (pip install libfaketime, with a C compiler)"
        )
    (folder / "clock").write_text("+0\n")
    settings = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            del os.environ[name]


FAULTS = {
    "kill-9": Fault(
        "the server is killed",
        lambda scene: scene.roots()[-1].kill(),
        ENDED + "ended by itself",
        (1,),
    ),
    "kill-15": Fault(
        "the server gets SIGTERM",
        lambda scene: scene.roots()[-1].terminate(),
        ENDED + "ended by itself",
        (1,),
    ),
    "worker": Fault("one of its workers is killed", lambda scene: scene.worker().kill()),
    "behind": Fault(
        "its upstream or helper process is killed: engine, Redis, application",
        lambda scene: behind(scene).kill(),
        ENDED + "ended by itself",
        (1,),
    ),
    "behind-away": Fault(
        "its upstream or helper process is frozen for 2 s",
        lambda scene: freeze(tree(behind(scene)), 2.0),
        "ok",
        (0,),
    ),
    "nginx-reloaded": Fault("nginx reloads its configuration", reload_nginx, "ok", (0,)),
    "freeze": Fault("it is frozen for 2 s", lambda scene: freeze(scene.server(), 2.0), "ok", (0,)),
    "freeze-for-ever": Fault("it is frozen and never continues", freeze_forever, ENDED, (1,)),
    "memory": Fault("it can allocate no more memory", limit_memory),
    "files": Fault("it can open no more file descriptors", limit_files),
    "load-generator": Fault(
        "the load generator is killed",
        kill_load,
        "failed: load: the load generator ended",
        (1,),
        False,
    ),
    "load-worker": Fault(
        "one of two load workers is killed",
        kill_load_worker,
        "failed: load: .*load worker",
        (1,),
        False,
        ("--load-workers", "2"),
    ),
    "telemetry": Fault(
        "telemetry is killed", lambda scene: scene.telemetry().kill(), "ok", (0,), False
    ),
    "results-removed": Fault(
        "the folder of the results is removed", remove_results, "", (1, 2), False
    ),
    "disk-full": Fault(
        "the disk of the results is full",
        fill_disk,
        "failed: load: .*(disk|space)",
        (1, 2),
        False,
        around=small_disk,
    ),
    "network": Fault(
        "loopback is down for 2 s",
        cut_network,
        "ok|failed: load: .*",
        (0, 1),
        False,
        wrap=OWN_NETWORK,
    ),
    "network-slow": Fault(
        "loopback is slow for 2 s (50 ms per packet, or 256 kbit/s)",
        slow_network,
        "ok|failed: load: .*",
        (0, 1),
        False,
        wrap=OWN_NETWORK,
    ),
    "port-stolen": Fault(
        "another program takes the port of the next server", steal_port, "ok", (1,), False
    ),
    "ctrl-c": Fault(
        "Ctrl-C",
        lambda scene: type_ctrl_c(scene, 1),
        "failed: load: interrupted by Ctrl-C",
        (130,),
        False,
    ),
    "ctrl-c-twice": Fault(
        "Ctrl-C, and once more while the campaign ends",
        lambda scene: type_ctrl_c(scene, 2),
        "failed: load: interrupted by Ctrl-C|running",
        (130, -2),
        False,
    ),
    "terminal-closed": Fault(
        "the terminal is closed",
        lambda scene: scene.campaign.send_signal(signal.SIGHUP),
        "failed: load: interrupted",
        (130,),
        False,
    ),
    "driver-killed": Fault(
        "the driver is killed", lambda scene: scene.campaign.kill(), "running", (-9,), False
    ),
    "clock-forward": Fault(
        "the wall clock jumps forward by an hour",
        lambda scene: step_clock(scene, 3600),
        "ok",
        (0,),
        False,
        around=false_clock,
    ),
    "clock-back": Fault(
        "the wall clock jumps back by an hour",
        lambda scene: step_clock(scene, -3600),
        "ok",
        (0,),
        False,
        around=false_clock,
    ),
}
