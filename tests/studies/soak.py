"""Does anything leak? Half an hour of load, and the memory of every process involved.

    python -m tests.studies.soak [--minutes 30] [--servers a,b]

This adds to results/faults/soak.jsonl and generates README.md beside it. Each server runs one case
on the simulated engine. Memory is the unique set size (USS) of all processes of a role, every 5 s.
A role leaks if the median of the last quarter of the window exceeds that of the second quarter by
more than FLAT; during the first quarter pools fill and heaps find their size.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil

from tests.helpers.campaign_process import Bench, runs, said_of
from tests.studies.fault_campaign import HARNESS_SERVER
from tests.studies.fault_page import RESULTS, page

FLAT = 0.05
PERIOD_S = 5.0
SCENARIO = """
[soak]
summary = "as many requests as possible"
arrivals = "closed"
users = 8
endpoint = "chat"
prompt_tokens = [4, 16]
output_tokens = [4, 8]
warmup_s = 2.0
warmup_max_s = 2.0
duration_s = 1800.0
drain_s = 10.0
timeout_s = 30.0
"""
OPTIONS = (
    "--engines",
    "simulated",
    "--simulated",
    "prefill_ms=20,step_ms=2",
    "--scenarios-file",
    "soak.toml",
    "--scenarios",
    "soak",
    "--report",
    "none",
    "--out",
    "out",
)


def role(process: psutil.Process, driver: int) -> str:
    words = said_of(process)
    if process.pid == driver:
        return "driver"
    for word, name in (
        ("servers.runtime.supervise", "supervisors"),
        ("loadtests.telemetry", "telemetry"),
        ("locust", "load generator"),
    ):
        if word in words:
            return name
    return "server"


def memory(bench: Bench, driver: int) -> dict[str, int]:
    """Unique memory in bytes, by role."""
    found: dict[str, int] = {}
    for process in bench.processes():
        try:
            name = role(process, driver)
            found[name] = found.get(name, 0) + process.memory_full_info().uss
        except psutil.Error:
            continue
    return found


def soak(server: str, minutes: float) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        folder = Path(place)
        (folder / "soak.toml").write_text(SCENARIO)
        bench = Bench(folder)
        command = bench.command("--servers", server, "--duration", f"{60 * minutes:g}", *OPTIONS)
        samples = []
        with subprocess.Popen(
            command,
            cwd=folder,
            env=bench.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        ) as driver:
            while driver.poll() is None:
                samples.append((time.perf_counter(), memory(bench, driver.pid)))
                time.sleep(PERIOD_S)
        [(_, run)] = runs(folder / "out")
        assert run["status"] == "ok", run["status"]
        begin, end = (run["clock_zero_s"] + run["window"][edge] for edge in ("start_s", "end_s"))
        within = [
            (4 * (at - begin) / (end - begin), found) for at, found in samples if begin <= at <= end
        ]
        roles = {}
        for name in within[-1][1]:
            quarters = [
                [
                    found[name]
                    for quarter, found in within
                    if first <= quarter < first + 1 and name in found
                ]
                for first in (1, 3)
            ]
            early, late = map(median, quarters)
            roles[name] = {"early_bytes": early, "late_bytes": late, "growth": late / early - 1}
        return {
            "server": server,
            "minutes": minutes,
            "requests": run["counts"]["rows"],
            "roles": roles,
            "left": bench.left_over(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--servers", default=HARNESS_SERVER)
    asked = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    grown = []
    for server in asked.servers.split(","):
        found = soak(server, asked.minutes)
        print(json.dumps(found), flush=True)
        with (RESULTS / "soak.jsonl").open("a") as handle:
            handle.write(json.dumps(found) + "\n")
        grown += [name for name, each in found["roles"].items() if each["growth"] > FLAT]  # type: ignore[attr-defined]
    page()
    sys.exit(1 if grown else 0)


if __name__ == "__main__":
    main()
