"""Samples CPU, memory and context switches of a process tree and of the whole system."""

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
    """The columns of schema.TELEMETRY_FIELDS for the whole system."""

    cpu_busy_s: float
    cpu_steal_s: float | None
    load_average: float
    memory_available_bytes: int
    swap_used_bytes: int


def read_context_switches(process: psutil.Process) -> dict[tuple[int, int], int]:
    """Returns the switches of each living thread so far. On Linux, psutil counts only those of the
    main thread, which mostly sleeps.
    """
    try:
        threads = os.listdir(f"/proc/{process.pid}/task")
    # no /proc, as on macOS, where psutil counts all threads; or the process has just ended, and
    # psutil raises
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
    """Returns the memory of these processes in bytes, with each shared page divided by its users;
    None where the system does not count it.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        return None
    total = 0
    try:
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_bytes()
                total += int(rollup[rollup.index(b"\nPss:") :].split(maxsplit=2)[1]) * 1024
    except PermissionError:  # another user's process: a sum without it would be wrong
        return None
    return total


class BackgroundTask:
    """Does slow work in its own thread: a driver that hangs, or a server with many GB of memory,
    must not stop the sampling.
    """

    def __init__(self, work: Callable[..., Any]) -> None:
        self.work, self.found = work, None
        self.thread: threading.Thread | None = None

    def run(self, *arguments: Any) -> None:
        self.found = self.work(*arguments)

    def ask(self, patience_s: float, *arguments: Any) -> Any:
        """Returns the result; None if it takes longer than `patience_s`. A later call then returns
        it.
        """
        if self.thread is None:
            self.found = None
            # as a daemon, a thread that hangs does not delay the exit
            self.thread = threading.Thread(target=self.run, args=arguments, daemon=True)
            self.thread.start()
        self.thread.join(patience_s)
        if self.thread.is_alive():
            return None
        self.thread = None
        return self.found


class ProcessTree:
    """Processes with all their descendants, including those whose parent has ended. The counters
    never fall.
    """

    def __init__(self, *pids: int) -> None:
        self.roots = [psutil.Process(pid) for pid in pids]
        self.members: dict[int, psutil.Process] = {}
        # of each process: its own CPU time and that of its ended children, s
        self.cpu: dict[int, tuple[float, float]] = {}
        self.own_s = self.waited_s = self.ended_s = self.unseen_s = 0.0
        self.switches: dict[tuple[int, int], int] = {}
        self.switches_total = 0
        self.pss = BackgroundTask(read_pss)

    def alive(self) -> bool:
        """Whether the roots still run. A zombie does not: it has ended, and its parent has not yet
        read its status.
        """
        try:
            return all(
                root.is_running() and root.status() != psutil.STATUS_ZOMBIE for root in self.roots
            )
        except psutil.NoSuchProcess:
            return False

    def find_processes(self) -> None:
        """Finds new processes. Forgets ended ones, and those whose process id now belongs to
        another process.
        """
        found = {process for process in self.members.values() if process.is_running()}
        for root in self.roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.update([root, *root.children(recursive=True)])
        # Read parents, which are older, before their children. In the other order, a child that
        # ended in between would count twice.
        self.members = {
            each.pid: each
            for each in sorted(found, key=lambda each: (each.create_time(), each.pid))
        }

    def sample(self, with_pss: bool) -> ProcessSample:
        """Returns a row of PROCESS_FIELDS. It leaves out other users' processes, which cannot be
        read.
        """
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
        # The kernel adds the CPU time of ended children to their parents. The part beyond the
        # children's last samples was never seen here: the end of their lives, and processes too
        # short to be sampled, such as one per request.
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
    times = psutil.cpu_times()  # of all cores together; `user` contains the time of guests
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
