"""The testbed of the experiments: scratch folders, cores, and shared tools."""

import itertools
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadtests.accuracy.calibration import (
    SCENARIO,
    CalibrationRun,
    Placement,
    Results,
    run_calibration_load,
)
from loadtests.client.compiler import compile_once
from loadtests.client.limits import compiler_definitions
from loadtests.generator.locust_process import Workers
from loadtests.telemetry import cores
from loadtests.workload.arrivals import ScenarioTable

TTFT_S, ITL_S = 0.050, 0.010
TIMES = ("--ttft-ms", "50", "--itl-ms", "10")


def make_scenario(arrivals: str, **more: Any) -> ScenarioTable:
    return (
        SCENARIO
        | {"arrivals": arrivals, "warmup_s": 3.0, "warmup_max_s": 3.0, "duration_s": 8.0}
        | more
    )


class Testbed:
    """Gives experiments a scratch folder for each load, and cores divided as in a campaign."""

    def __init__(self, scratch: Path, repeat: int, minutes: float):
        share = cores.share_cores()
        server_cores, load_cores = (
            ((), ())
            if share["shared"]
            else (tuple(share["server_cores"]), tuple(share["load_cores"]))
        )
        self.scratch, self.repeat, self.minutes, self.numbers = (
            scratch,
            repeat,
            minutes,
            itertools.count(),
        )
        self.readers: set[str] = set()  # readers of this experiment's streams: "c", "python"
        self.place = Placement(Workers(1), server_cores[:1], load_cores)

    def next_folder(self) -> Path:
        return self.scratch / str(next(self.numbers))

    def load(
        self, scenario: ScenarioTable, *options: str, workers: int = 1, **users_or_rate: Any
    ) -> CalibrationRun:
        folder = self.next_folder()
        try:
            place = Placement(Workers(workers), self.place.server_cores, self.place.load_cores)
            run = run_calibration_load(folder, place, scenario, *options, **users_or_rate)
            self.note_readers(worker.reader for worker in run.workers)
            return run
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def pinning_command(self) -> list[str]:
        """The start of a command that pins it to the load generator's cores; empty if that is not
        possible.
        """
        cores = ",".join(map(str, self.place.load_cores))
        return ["taskset", "-c", cores] if cores and shutil.which("taskset") else []

    def compile_program(self, program: str) -> list[str] | None:
        """Compiles a C program of this folder. Returns its command on the load generator's cores,
        or None without a C compiler.
        """
        source = Path(__file__).with_name(f"{program}.c")
        path = compile_once(source, options=compiler_definitions())
        return None if path is None else [*self.pinning_command(), str(path)]

    def note_readers(self, readers: Iterable[str | None]) -> None:
        self.readers |= {reader for reader in readers if reader}


def median_results(runs: Sequence[Results]) -> Results:
    """The median of each number; booleans and strings are left out."""
    names = [
        name
        for name, value in runs[0].items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return {
        name: statistics.median(run[name] for run in runs if run[name] is not None)
        for name in names
    }


@contextmanager
def set_environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def pin_to_cores(cores: Sequence[int]) -> Iterator[None]:
    """Pins this process, and those that it starts, to these cores. Does nothing without cores."""
    before = os.sched_getaffinity(0) if cores else None
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if before:
            os.sched_setaffinity(0, before)


@contextmanager
def burn_cores(count: int, cores: Sequence[int]) -> Iterator[None]:
    """Runs processes that keep these cores busy. Each is in a session of its own, because Linux may
    divide a core by session.
    """
    burner = (
        "import os, sys; cores = [int(c) for c in sys.argv[1:]]; cores and os.sched_setaffinity(0,"
        " cores)\nwhile True: pass"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", burner, *map(str, cores)], start_new_session=True)
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
