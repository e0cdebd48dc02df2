"""CPU and memory limits, and which cores the server and the load generator get."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from loadtests.schema import MachineShare


def read_text(path: str | Path) -> str | None:
    """The text of a small system file; None if there is none, or we may not read it."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def cgroup(controller: str) -> Iterator[Path]:
    """The folders whose limits hold for this process, from its own group up to the root, in version
    1 or 2.
    """
    for line in (read_text("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            root = Path("/sys/fs/cgroup", controller if controllers else "")
            # may be the host's, which a container cannot see; then the root has the limit
            folder = root / path.strip("/")
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(root))


def cpu_limit() -> float | None:  # cores' worth of CPU time; null without a limit
    limits = []
    for folder in cgroup("cpu"):
        quota = (
            f"{read_text(folder / 'cpu.cfs_quota_us')} {read_text(folder / 'cpu.cfs_period_us')}"
        )
        # "max 100000", "-1 100000": no limit
        if found := re.fullmatch(r"(\d+) (\d+)", read_text(folder / "cpu.max") or quota):
            limits.append(int(found[1]) / int(found[2]))
    return min(limits, default=None)


def memory_limit() -> int | None:  # bytes; null without a limit
    texts = [
        read_text(folder / name) or ""
        for folder in cgroup("memory")
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    # version 1: 2**63 is none
    return min((int(text) for text in texts if text.isdigit() and int(text) < 2**60), default=None)


def usable_cores() -> list[int]:
    """Cores that this process may use: its affinity, cut to the cgroup's CPU time, which would else
    stop it in the middle.
    """
    cores = (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else list(range(os.cpu_count() or 1))
    )
    return cores[: max(1, int(cpu_limit() or len(cores)))]


def share_cores() -> MachineShare:
    """{server_cores, load_cores, shared, threads}: core numbers; threads of each engine over all
    workers. Ask before pinning.

    The last core is for the load generator, the telemetry and the driver: a busy server must not
    delay the clock it is measured by, nor they take its time. From 8 cores on they get two, since
    one cannot load a large server: the last and its SMT sibling, which shares its hardware, so that
    the server does not feel them. With one core, or where a process cannot be bound to some
    (macOS), shared is true: all use all, and the report says so.
    """
    cores = usable_cores()
    if len(cores) < 2 or not hasattr(os, "sched_setaffinity"):
        return {"server_cores": cores, "load_cores": cores, "shared": True, "threads": len(cores)}
    load = cores[-1:]
    if len(cores) >= 8:
        # "7,15" or "14-15"
        siblings = (
            read_text(f"/sys/devices/system/cpu/cpu{cores[-1]}/topology/thread_siblings_list") or ""
        )
        beside = [core for core in map(int, re.findall(r"\d+", siblings)) if core in cores[:-1]]
        load = [*(beside or cores[-2:-1])[-1:], *load]
    server = [core for core in cores if core not in load]
    return {"server_cores": server, "load_cores": load, "shared": False, "threads": len(server)}
