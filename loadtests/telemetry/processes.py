"""Samples CPU, memory and context switches of a process tree and of the whole system."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import psutil

from servers.runtime.schedstat import ThreadTimes, read_thread_times

INTERRUPTED_S = 0.01


class ProcessSample(TypedDict):
    """A row of schema.PROCESS_FIELDS."""

    processes: int
    threads: int
    cpu_s: float
    pss_bytes: int | None
    context_switches_total: int
    waited_s: float | None


class SystemSample(TypedDict):
    """The columns of schema.TELEMETRY_FIELDS for the whole system."""

    cpu_busy_s: float
    cpu_steal_s: float | None
    load_average: float
    memory_available_bytes: int
    swap_used_bytes: int


class CoreSample(TypedDict):
    """The columns of schema.TELEMETRY_FIELDS for the server's cores."""

    server_cores_busy_s: float | None
    server_cores_steal_s: float | None


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


def read_times(threads: Iterable[tuple[int, int]]) -> dict[tuple[int, int], ThreadTimes]:
    """Returns the times of these threads, (process, thread), without those that have ended. Empty
    where the system does not count them.
    """
    times = {(pid, thread): read_thread_times(thread, pid) for pid, thread in threads}
    return {thread: found for thread, found in times.items() if found}


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


def sum_rises(
    before: Mapping[tuple[int, int], float], now: Mapping[tuple[int, int], float]
) -> float:
    return sum(max(0, value - before.get(thread, 0)) for thread, value in now.items())


class ProcessTree:
    """Processes with all their descendants, including those whose parent has ended. The counters
    never fall.
    """

    def __init__(self, *pids: int) -> None:
        self.roots = [psutil.Process(pid) for pid in pids]
        self.members: dict[int, psutil.Process] = {}
        # of each process: its own CPU time and that of its ended children, s
        self.cpu: dict[int, tuple[float, float]] = {}
        self.own_s = self.reaped_s = self.ended_s = self.unseen_s = 0.0
        self.switches: dict[tuple[int, int], int] = {}
        self.switches_total = 0
        self.thread_times: dict[tuple[int, int], ThreadTimes] = {}
        # of each process: CPU time of its threads, also of those that have ended, s
        self.ran_s: dict[int, float] = {}
        self.core_waits_s = 0.0
        self.running: list[int] = []
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

    def sample(self) -> ProcessSample:
        """Returns a row of PROCESS_FIELDS, without PSS. It leaves out other users' processes, which
        cannot be read.
        """
        running, threads, ticks, switches = [], 0, {}, {}
        for pid, process in self.members.items():
            with contextlib.suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                ticks[pid] = times.user + times.system, times.children_user + times.children_system
                if process.status() != psutil.STATUS_ZOMBIE:
                    threads += process.num_threads()
                    switches.update(read_context_switches(process))
                    running.append(pid)
        found = read_times(switches)
        cpu = self._refine_cpu_times(ticks, found)
        for pid, (own_s, reaped_s) in cpu.items():
            before = self.cpu.get(pid, (0.0, 0.0))
            self.own_s += max(0.0, own_s - before[0])
            self.reaped_s += max(0.0, reaped_s - before[1])
        # The kernel adds the CPU time of ended children to their parents. The part beyond the
        # children's last samples was never seen here: the end of their lives, and processes too
        # short to be sampled, such as one per request.
        self.ended_s += sum(sum(self.cpu[pid]) for pid in self.cpu.keys() - cpu.keys())
        self.unseen_s = max(self.unseen_s, self.reaped_s - self.ended_s)
        self.switches_total += int(sum_rises(self.switches, switches))
        self.core_waits_s += sum_rises(
            {thread: times.waited_s for thread, times in self.thread_times.items()},
            {thread: times.waited_s for thread, times in found.items()},
        )
        self.cpu, self.switches, self.thread_times, self.running = cpu, switches, found, running
        return {
            "processes": len(running),
            "threads": threads,
            "cpu_s": round(self.own_s + self.unseen_s, 6),
            "pss_bytes": None,
            "context_switches_total": self.switches_total,
            "waited_s": round(self.core_waits_s, 6) if found else None,
        }

    def _refine_cpu_times(
        self, ticks: Mapping[int, tuple[float, float]], found: Mapping[tuple[int, int], ThreadTimes]
    ) -> dict[int, tuple[float, float]]:
        """Returns each process's own CPU time by its threads, which count nanoseconds, and that of
        its ended children. Its own ticks of 10 ms are rounded down, but have what threads did
        between their last sample and their end: so the larger of the two is nearer to the truth.
        """
        ran_s: dict[int, float] = {}
        for (pid, thread), times in found.items():
            before = self.thread_times.get((pid, thread))
            risen_s = times.ran_s - before.ran_s if before else times.ran_s
            ran_s[pid] = ran_s.get(pid, self.ran_s.get(pid, 0.0)) + max(0.0, risen_s)
        self.ran_s = ran_s
        return {
            pid: (max(own_s, ran_s.get(pid, 0.0)), reaped_s)
            for pid, (own_s, reaped_s) in ticks.items()
        }

    def sample_pss(self) -> int | None:
        """Returns the PSS of the processes of the last sample; None if it takes too long."""
        pss: int | None = self.pss.ask(0.05, self.running)
        return pss

    def sample_with_cores(self, cores: Collection[int]) -> tuple[ProcessSample, CoreSample]:
        """Like `sample`, with the times of these cores at the same moment. If we lacked a core
        ourselves in between, it tries again; after three times they are None.
        """
        for _ in range(3):
            began_s = time.perf_counter() - time.thread_time()
            times, found = sample_cores(cores), self.sample()
            if time.perf_counter() - time.thread_time() - began_s < INTERRUPTED_S:
                return found, times
        return found, sample_cores(())


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


def sample_cores(cores: Collection[int]) -> CoreSample:
    """Returns the times of these cores together; None for no cores, without /proc, and if one of
    them is not listed, as in a container that numbers its cores itself.

    Time in interrupts is in no process's CPU time on some kernels, so it is left out.
    """
    unknown: CoreSample = {"server_cores_busy_s": None, "server_cores_steal_s": None}
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return unknown
    of_core = {f"cpu{core}" for core in cores}
    # user, nice, system, idle, iowait, irq, softirq, steal: in clock ticks
    found = [list(map(int, line.split()[1:9])) for line in lines if line.split(" ")[0] in of_core]
    if not cores or len(found) < len(of_core):
        return unknown
    ticks = os.sysconf("SC_CLK_TCK")
    return {
        "server_cores_busy_s": sum(sum(times[:3]) for times in found) / ticks,
        "server_cores_steal_s": sum(times[7] for times in found) / ticks,
    }
