"""What the machine did while a case ran: CPU, memory and context switches of the server's and of
the load generator's process tree, of the whole system, and the GPUs. One JSON line a sample, with
exactly the keys of `records.TELEMETRY_FIELDS`. Beside it, in a thread, what the server says of
itself (`loadtests/telemetry/server_metrics.py`).

    python -m loadtests.telemetry --out telemetry.jsonl --clock-zero 1234.5 --server-pid 42
    --load-pid 43

A process of its own, so that neither server nor load generator pays for it, and at the lowest
priority. It ends with status 0 on SIGTERM or SIGINT, or when the load generator is gone; however it
ends, the lines are whole. What it could not see is null, and is said once on stderr; so is its own
cost.
"""

import argparse
import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from loadtests.telemetry.gpu import Gpus
from loadtests.telemetry.server_metrics import Scraper

# how often the costly things are done: proportional set size, and looking for new processes
SLOW_S = 1.0


def report(text: str) -> None:
    print(f"telemetry: {text}", file=sys.stderr, flush=True)


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

    def sample(self, with_pss: bool) -> dict[str, Any]:
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


def sample_system() -> dict[str, Any]:
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


def yield_to_load() -> None:
    """The load generator has the same core. Linux may share a core out by sessions first, and only
    within one by niceness: so of ours, too, but not quite as far, for on a core that is never free
    we would not be heard of again.
    """
    os.nice(19)
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text("10")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.telemetry")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended")
    parser.add_argument(
        "--clock-zero",
        type=float,
        required=True,
        help="time.perf_counter() that is zero in the rows, s",
    )
    parser.add_argument(
        "--server-pid",
        type=int,
        nargs="+",
        help="roots of the server's processes; without them its column is null",
    )
    parser.add_argument(
        "--load-pid", type=int, required=True, help="root of the load generator's processes"
    )
    parser.add_argument(
        "--metrics-of",
        help="base URLs, comma-separated; their /metrics go into server_metrics.jsonl beside --out",
    )
    parser.add_argument("--interval", type=float, default=0.2, help="s")
    options = parser.parse_args()
    # a signal ends the wait below at once; Event.set() in a handler could deadlock
    stopped, on_signal = os.pipe()
    os.set_blocking(on_signal, False)
    signal.set_wakeup_fd(on_signal)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    yield_to_load()  # not before: its imports may take their time as others do
    options.out.touch()  # also when there is nothing to measure: no rows, rather than no file
    try:
        server, load = (
            ProcessTree(*options.server_pid) if options.server_pid else None,
            ProcessTree(options.load_pid),
        )
    except psutil.NoSuchProcess as error:
        report(f"nothing to measure: {error}")
        return
    if options.metrics_of:  # daemon: a scrape that hangs is left behind
        scraper = Scraper(
            options.metrics_of,
            options.out.with_name("server_metrics.jsonl"),
            options.clock_zero,
            report,
        )
        threading.Thread(target=scraper.run, daemon=True).start()
    gpus = Gpus(report)
    gpu_reader, slow_gpu_reader = BackgroundTask(gpus.sample), BackgroundTask(gpus.slowly)
    samples, tick, slow_at_s, start_s, cpu_start_s = (
        0,
        0,
        0.0,
        time.perf_counter(),
        time.process_time(),
    )
    # unbuffered: each line is one write, so that a kill cannot halve it
    with options.out.open("ab", buffering=0) as out:
        while load.alive():
            if slow := time.perf_counter() >= slow_at_s:
                slow_at_s = time.perf_counter() + SLOW_S - options.interval / 2
                for tree in filter(None, (server, load)):
                    tree.look()
            row: dict[str, Any] = {"time_s": round(time.perf_counter() - options.clock_zero, 6)}
            row |= {
                "server": server and server.sample(slow),
                "load": load.sample(slow),
            } | sample_system()
            row["gpus"] = (gpu_reader.ask(0.05) or gpus.unknown()) if gpus.count else []
            if (
                slow
                and gpus.count
                and (more := slow_gpu_reader.ask(0.05, frozenset(server.members if server else ())))
            ):
                row["gpus"] = [
                    card | slowly for card, slowly in zip(row["gpus"], more, strict=True)
                ]
            out.write(json.dumps(row, allow_nan=False, separators=(",", ":")).encode() + b"\n")
            # The ticks are start_s + n * interval, whatever a sample costs; those that were missed
            # are left out, not made up for.
            now_s = time.perf_counter()
            samples, tick = samples + 1, int((now_s - start_s) / options.interval) + 1
            if select.select(
                [stopped], [], [], max(0.0, start_s + tick * options.interval - now_s)
            )[0]:
                break
    cpu_ms = 1000 * (time.process_time() - cpu_start_s)
    report(
        f"{samples} samples, {tick - samples} ticks missed, {cpu_ms / max(1, samples):.1f} ms of"
        " CPU each"
    )


if __name__ == "__main__":
    main()
