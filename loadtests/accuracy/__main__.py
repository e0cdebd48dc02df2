"""Measures the load generator's own accuracy, against servers whose times are known.
`nox -s instrument` calls this.

    python -m loadtests.accuracy [--out FOLDER] [--repeat 5] [EXPERIMENT ...]

Each experiment is a function that returns its results; its docstring states its targets. The
command writes FOLDER/results.json after each experiment and keeps the results of the others, so an
experiment can be repeated alone. `python -m analysis instrument FOLDER` makes a page with figures
from them. Run it on a quiet machine: elsewhere its times are noise.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from loadtests import schema
from loadtests.accuracy.calibration import Results
from loadtests.accuracy.closed_loop import (
    measure_accuracy,
    measure_soak,
    measure_stalls,
    measure_start_up,
    measure_workers,
)
from loadtests.accuracy.cpu_cost import measure_cost
from loadtests.accuracy.open_loop import measure_freeze, measure_open_loop, measure_replay
from loadtests.accuracy.starvation import judge_healthy, judge_starved
from loadtests.accuracy.testbed import Testbed
from loadtests.generator import locust_process
from loadtests.telemetry import machine
from servers.runtime import errors

RESULTS = Path("results/instrument")
EXPERIMENTS: dict[str, Callable[[Testbed], Results]] = {
    "start_up": measure_start_up,
    "accuracy": measure_accuracy,
    "cost": measure_cost,
    "stalls": measure_stalls,
    "open_loop": measure_open_loop,
    "replay": measure_replay,
    "freeze": measure_freeze,
    "workers": measure_workers,
    "healthy": judge_healthy,
    "starved": judge_starved,
}
LONG = {"soak": measure_soak}  # runs only if it is named
# experiments whose results are medians of --repeat runs; the others run once
REPEATED = ("start_up", "accuracy", "cost", "open_loop")
EXIT_CODES = """\
exit codes:
  0    every experiment has its results
  1    an experiment failed; the results of those before it are kept
  2    the command line is wrong
  130  Ctrl-C; the results so far are kept"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.accuracy",
        description=__doc__.partition("\n")[0],
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "experiments",
        nargs="*",
        metavar="EXPERIMENT",
        help=f"experiments to run: {', '.join(EXPERIMENTS | LONG)} (default: all except soak)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help="folder of the results (default: %(default)s)",
    )
    parser.add_argument(
        "--repeat",
        type=int,
        default=5,
        metavar="COUNT",
        help=f"runs of {', '.join(REPEATED)}, which report medians (default: %(default)s)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=30.0,
        metavar="MINUTES",
        help="length of the experiment soak, in minutes (default: 30)",
    )
    return parser


def main() -> int:
    parser = make_parser()
    options = parser.parse_args()
    if unknown := set(options.experiments) - (EXPERIMENTS | LONG).keys():
        parser.error(
            f"no experiment is called {', '.join(sorted(unknown))}: choose from"
            f" {', '.join(EXPERIMENTS | LONG)}"
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as cleanly as with Ctrl-C
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "results.json"
    results = schema.read_json(file) if file.exists() else {}
    # Before the first result is written, which git would report as a change.
    manifest = {
        key: value
        for key, value in machine.build_manifest().items()
        if key in ("commit", "dirty", "cpu", "kernel", "python")
    }
    try:
        with tempfile.TemporaryDirectory(prefix="serveoff-instrument-") as scratch:
            bench = Testbed(Path(scratch), options.repeat, options.minutes)
            if bench.place.load_cores:
                os.sched_setaffinity(0, bench.place.load_cores)
            for name in options.experiments or EXPERIMENTS:
                began = time.monotonic()
                print(f"{name} ...", flush=True)
                bench.readers.clear()
                result = (EXPERIMENTS | LONG)[name](bench)
                results[name] = result | {
                    "runs": options.repeat if name in REPEATED else 1,
                    "took_s": round(time.monotonic() - began),
                    "readers": sorted(bench.readers),
                    "manifest": manifest,
                }
                schema.write_json(file, results)
                print(
                    json.dumps(
                        {key: value for key, value in result.items() if key != "verdicts"}, indent=1
                    ),
                    flush=True,
                )
    except KeyboardInterrupt:
        return 130
    except (
        locust_process.LoadFailed,
        errors.LaunchError,
        OSError,
        subprocess.CalledProcessError,
    ) as error:
        print(
            f"error: {error}; the results so far are in {file}: name the other experiments to run"
            " only those",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
