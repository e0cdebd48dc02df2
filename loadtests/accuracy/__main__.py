"""How far the load generator can be trusted: experiments against servers whose times are known.
`nox -s instrument` calls this.

    python -m loadtests.accuracy [--out FOLDER] [--repeat 5] [EXPERIMENT ...]

Each experiment is a function that returns its results; its docstring says what it promises. Results
are written into FOLDER/results.json after each experiment. Those of other experiments are kept, so
that one can be repeated alone. `python -m analysis instrument FOLDER` turns them into a page with
figures. Times are noise unless the machine is quiet.
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
LONG = {"soak": measure_soak}  # only if named
# experiments whose results are medians of --repeat runs; the others are one run
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
        help=f"of {', '.join(EXPERIMENTS | LONG)} (default: all but soak)",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    parser.add_argument(
        "--repeat", type=int, default=5, help="runs of which the median is taken (default: 5)"
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak (default: 30)")
    return parser


def main() -> int:
    parser = make_parser()
    options = parser.parse_args()
    if unknown := set(options.experiments) - (EXPERIMENTS | LONG).keys():
        parser.error(
            f"no experiment is called {', '.join(sorted(unknown))}: there are"
            f" {', '.join(EXPERIMENTS | LONG)}"
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as cleanly as Ctrl-C does
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "results.json"
    results = schema.read_json(file) if file.exists() else {}
    # Before the first result is written, which git would call a change.
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
            f"error: {error}; what was measured is in {file}, and naming the others makes them"
            " alone",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
