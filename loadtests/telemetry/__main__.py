"""Samples the machine while a case runs: CPU, memory and context switches of the process trees of
the server and of the load generator, the whole system, and the GPUs. Each sample is one JSON line
with the keys of `schema.TELEMETRY_FIELDS`. A thread fetches the server's own metrics
(`loadtests/telemetry/server_metrics.py`), and one for each exporter adds rows with its columns.

    python -m loadtests.telemetry --out telemetry.jsonl --clock-zero 1234.5
        --server-pid 42 --load-pid 43

It is a separate process at the lowest priority, so neither server nor load generator pays for it.
It exits with 0 on SIGTERM or SIGINT, or when the load generator is gone. Its lines are whole even
if it is killed. A value that it cannot read is null, and it reports the reason once on stderr. It
also reports its own cost.
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
from pathlib import Path

import psutil

from loadtests.schema import JsonObject
from loadtests.telemetry.exporter_formats import MACHINE_FIELDS
from loadtests.telemetry.exporters import ExporterReader, read_exporters
from loadtests.telemetry.gpu import Gpus
from loadtests.telemetry.processes import BackgroundTask, ProcessTree, sample_cores, sample_system
from loadtests.telemetry.server_metrics import METRICS_OF, Scraper
from servers.profile.access import read_access

# period of the costly work: proportional set sizes, new processes, slow GPU values
SLOW_S = 1.0


def report(text: str) -> None:
    print(f"telemetry: {text}", file=sys.stderr, flush=True)


def yield_to_load() -> None:
    """Lowers our priority, because the load generator has the same core. Linux may first share a
    core between sessions and apply niceness only within each. So the session yields as well, but
    not fully: on a core that is never free we would not run at all.
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
        help="root processes of the server; without them the server's column is null",
    )
    parser.add_argument(
        "--server-cores",
        type=int,
        nargs="*",
        default=[],
        help="cores of the server; without them their columns are null",
    )
    parser.add_argument(
        "--load-pid", type=int, required=True, help="root process of the load generator"
    )
    parser.add_argument(
        "--metrics-of",
        default=os.environ.get(METRICS_OF),
        help=(
            "comma-separated base URLs whose /metrics go to server_metrics.jsonl beside --out"
            f" (default: {METRICS_OF})"
        ),
    )
    parser.add_argument(
        "--without",
        choices=("gpus", "machine"),
        action="append",
        default=[],
        help="do not sample these of this machine: the server has others; can be repeated",
    )
    parser.add_argument("--interval", type=float, default=0.2, help="time between samples, s")
    options = parser.parse_args()
    # a signal must end the wait below at once; Event.set() in a handler could deadlock
    stopped, on_signal = os.pipe()
    os.set_blocking(on_signal, False)
    signal.set_wakeup_fd(on_signal)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    yield_to_load()  # after the imports, which may compete like any process
    options.out.touch()  # with nothing to measure, leave an empty file
    try:
        server, load = (
            ProcessTree(*options.server_pid) if options.server_pid else None,
            ProcessTree(options.load_pid),
        )
    except psutil.NoSuchProcess as error:
        report(f"nothing to measure: {error}")
        return
    if options.metrics_of:  # as a daemon, a scrape that hangs does not delay the exit
        scraper = Scraper(
            options.metrics_of,
            options.out.with_name("server_metrics.jsonl"),
            options.clock_zero,
            report,
            read_access(),
        )
        threading.Thread(target=scraper.run, daemon=True).start()
    for exporter in read_exporters(os.environ):
        reader = ExporterReader(exporter, options.out, options.clock_zero, report)
        threading.Thread(target=reader.run, daemon=True).start()
    gpus = Gpus(report, is_wanted="gpus" not in options.without)
    gpu_reader, slow_gpu_reader = BackgroundTask(gpus.sample), BackgroundTask(gpus.sample_slow)
    samples_machine = "machine" not in options.without
    samples, tick, slow_at_s, start_s, cpu_start_s = (
        0,
        0,
        0.0,
        time.perf_counter(),
        time.process_time(),
    )
    # unbuffered: each line is one write, so a kill cannot halve it
    with options.out.open("ab", buffering=0) as out:
        while load.alive():
            if slow := time.perf_counter() >= slow_at_s:
                slow_at_s = time.perf_counter() + SLOW_S - options.interval / 2
                for tree in filter(None, (server, load)):
                    tree.find_processes()
            of_server, of_cores = (
                server.sample_with_cores(options.server_cores)
                if server
                else (None, sample_cores(()))
            )
            system = sample_system()
            row: JsonObject = {
                "time_s": round(time.perf_counter() - options.clock_zero, 6),
                "server": of_server,
                "load": load.sample(),
                **(system if samples_machine else dict.fromkeys(MACHINE_FIELDS)),
                **of_cores,
                "client_steal_s": None if samples_machine else system["cpu_steal_s"],
            }
            if slow:
                row["load"]["pss_bytes"] = load.sample_pss()
                if server:
                    row["server"]["pss_bytes"] = server.sample_pss()
            row["gpus"] = (gpu_reader.ask(0.05) or gpus.unknown()) if gpus.count else []
            if (
                slow
                and gpus.count
                and (more := slow_gpu_reader.ask(0.05, frozenset(server.members if server else ())))
            ):
                row["gpus"] = [card | rest for card, rest in zip(row["gpus"], more, strict=True)]
            out.write(json.dumps(row, allow_nan=False, separators=(",", ":")).encode() + b"\n")
            # Ticks are at start_s + n * interval, independent of a sample's cost. Missed ticks are
            # skipped.
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
