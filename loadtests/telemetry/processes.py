"""CPU, memory and context switches of a process tree and of the whole system, now."""

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import psutil


class ProcessSample(TypedDict):
    """A row of schema.PROCESS_FIELDS."""

    processes: int
    threads: int
    cpu_s: float
    pss_bytes: int | None
    context_switches_total: int


class SystemSample(TypedDict):
    """The columns of schema.TELEMETRY_FIELDS that are about the whole system."""

    cpu_busy_s: float
    cpu_steal_s: float | None
    load_average: float
    memory_available_bytes: int
    swap_used_bytes: int


def read_context_switches(process: psutil.Process) -> dict[tuple[int, int], int]:
    """Switches of each living thread so far. On Linux psutil gives those of the main thread alone,
    which mostly sleeps.
    """
    try:
        threads = os.listdir(f"/proc/{process.pid}/task")
    # no /proc, as on macOS, where psutil counts them all; or it has just ended, and psutil says so
    except FileNotFoundError:
        return {(process.pid, 0): sum(process.num_ctx_switches())}
    switches = {}
    for thread in threads:
        # the thread has just ended
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            with open(f"/proc/{process.pid}/task/{thread}/status", "rb", buffering=0) as handle:
                status = handle.read(16384)
            # name, number, name, number, rest
            fields = status[status.rindex(b"\nvoluntary_ctxt_switches") :].split(maxsplit=4)
            switches[process.pid, int(thread)] = int(fields[1]) + int(fields[3])
    return switches


def read_pss(pids: list[int]) -> int | None:
    """Memory of these processes, each shared page divided by its users; null where the system does
    not say.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        return None
    total = 0
    try:
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_bytes()
                total += int(rollup[rollup.index(b"\nPss:") :].split(maxsplit=2)[1]) * 1024
    except PermissionError:  # another user's: a sum without it would be wrong
        return None
    return total


class BackgroundTask:
    """Does slow work in a thread of its own: a driver that hangs, or a server of many GB, must not
    stop the sampling.
    """

    def __init__(self, work: Callable[..., Any]) -> None:
        self.work, self.found = work, None
        self.thread: threading.Thread | None = None

    def run(self, *arguments: Any) -> None:
        self.found = self.work(*arguments)

    def ask(self, patience_s: float, *arguments: Any) -> Any:
        """The result; null if it is not there in time, and then it answers a later question."""
        if self.thread is None:
            self.found = None
            # daemon: hanging, it is left behind
            self.thread = threading.Thread(target=self.run, args=arguments, daemon=True)
            self.thread.start()
        self.thread.join(patience_s)
        if self.thread.is_alive():
            return None
        self.thread = None
        return self.found


class ProcessTree:
    """Some processes with all their descendants, also those whose parent has ended. Its counters
    never fall.
    """

    def __init__(self, *pids: int) -> None:
        self.roots = [psutil.Process(pid) for pid in pids]
        self.members: dict[int, psutil.Process] = {}
        # of each process: its own, and that of its ended children, s
        self.cpu: dict[int, tuple[float, float]] = {}
        self.own_s = self.waited_s = self.ended_s = self.unseen_s = 0.0
        self.switches: dict[tuple[int, int], int] = {}
        self.switches_total = 0
        self.pss = BackgroundTask(read_pss)

    def alive(self) -> bool:
        """Whether the roots still run. A zombie does not: it has ended, only its parent has not
        asked for its status.
        """
        try:
            return all(
                root.is_running() and root.status() != psutil.STATUS_ZOMBIE for root in self.roots
            )
        except psutil.NoSuchProcess:
            return False

    def look(self) -> None:
        """Finds new processes; forgets ended ones, and those whose number now belongs to another
        process.
        """
        found = {process for process in self.members.values() if process.is_running()}
        for root in self.roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.update([root, *root.children(recursive=True)])
        # Parents, which are older, are read before their children: after them, a child that ended
        # in between would count twice.
        self.members = {
            each.pid: each
            for each in sorted(found, key=lambda each: (each.create_time(), each.pid))
        }

    def sample(self, with_pss: bool) -> ProcessSample:
        """A row of PROCESS_FIELDS. Other users' processes cannot be read and do not count."""
        running, threads, cpu, switches = [], 0, {}, {}
        for pid, process in self.members.items():
            with contextlib.suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                cpu[pid] = (times.user + times.system, times.children_user + times.children_system)
                if process.status() != psutil.STATUS_ZOMBIE:
                    threads += process.num_threads()
                    switches.update(read_context_switches(process))
                    running.append(pid)
        for pid, (own_s, waited_s) in cpu.items():
            before = self.cpu.get(pid, (0.0, 0.0))
            self.own_s += max(0.0, own_s - before[0])
            self.waited_s += max(0.0, waited_s - before[1])
        # Parents also learn from the kernel what their ended children used. What exceeds the last
        # sample of those children was never seen here: the end of their lives, and processes too
        # short to be sampled, such as one for each request.
        self.ended_s += sum(sum(self.cpu[pid]) for pid in self.cpu.keys() - cpu.keys())
        self.unseen_s = max(self.unseen_s, self.waited_s - self.ended_s)
        self.switches_total += sum(
            max(0, count - self.switches.get(thread, 0)) for thread, count in switches.items()
        )
        self.cpu, self.switches = cpu, switches
        return {
            "processes": len(running),
            "threads": threads,
            "cpu_s": round(self.own_s + self.unseen_s, 3),
            "pss_bytes": self.pss.ask(0.05, running) if with_pss else None,
            "context_switches_total": self.switches_total,
        }


def sample_system() -> SystemSample:
    times = psutil.cpu_times()  # of all cores together; user contains the time of guests
    return {
        "cpu_busy_s": round(
            sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq")),
            3,
        ),
        "cpu_steal_s": getattr(times, "steal", None),
        "load_average": os.getloadavg()[0],
        "memory_available_bytes": psutil.virtual_memory().available,
        "swap_used_bytes": psutil.swap_memory().used,
    }
