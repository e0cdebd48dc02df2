"""CPU and memory limits, and the division of the cores between server and load generator."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from loadtests.schema import MachineShare


def read_text(path: str | Path) -> str | None:
    """Reads a small system file; None if it does not exist or may not be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def cgroup(controller: str) -> Iterator[Path]:
    """Yields the folders whose limits apply to this process, from its own group up to the root, in
    version 1 or 2.
    """
    for line in (read_text("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            root = Path("/sys/fs/cgroup", controller if controllers else "")
            # the path may be the host's, invisible in a container; then the root has the limit
            folder = root / path.strip("/")
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(root))


def cpu_limit() -> float | None:
    """Returns the limit in cores' worth of CPU time; None without one."""
    limits = []
    for folder in cgroup("cpu"):
        quota = (
            f"{read_text(folder / 'cpu.cfs_quota_us')} {read_text(folder / 'cpu.cfs_period_us')}"
        )
        # "max 100000" and "-1 100000" mean no limit
        if found := re.fullmatch(r"(\d+) (\d+)", read_text(folder / "cpu.max") or quota):
            limits.append(int(found[1]) / int(found[2]))
    return min(limits, default=None)


def memory_limit() -> int | None:
    """Returns the limit in bytes; None without one."""
    texts = [
        read_text(folder / name) or ""
        for folder in cgroup("memory")
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    # in version 1, about 2**63 means no limit
    return min((int(text) for text in texts if text.isdigit() and int(text) < 2**60), default=None)


def usable_cores() -> list[int]:
    """Returns the cores that this process may use: its affinity, reduced to the cgroup's CPU time.
    With more cores, the cgroup would pause the process.
    """
    cores = (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else list(range(os.cpu_count() or 1))
    )
    return cores[: max(1, int(cpu_limit() or len(cores)))]


def contested_cores(server_cores: Sequence[int]) -> list[int]:
    """Returns the cores on which other processes take time from the server: its own. Without any it
    is not pinned, and may run on all cores of this process; they are unknown (empty) if a CPU limit
    allows less, since the limit may then be what pauses it.
    """
    if server_cores or not hasattr(os, "sched_getaffinity"):
        return list(server_cores)
    cores = sorted(os.sched_getaffinity(0))
    return cores if (cpu_limit() or len(cores)) >= len(cores) else []


def share_cores() -> MachineShare:
    """Divides the cores: {server_cores, load_cores, shared, threads}; threads are those of an
    engine over all its workers. Call it before any process is pinned.

    The last core is for the load generator, the telemetry and the driver: a busy server must not
    delay the clock that measures it, and they must not take the server's time. With 8 or more cores
    they get two, because one cannot load a large server: the last core and its SMT sibling, which
    shares its hardware, so the server does not notice them. With one core, or where a process
    cannot be pinned (macOS), `shared` is true: every process uses all cores, and the report notes
    it.
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
