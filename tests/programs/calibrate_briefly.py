"""A campaign (`python -m loadtests`) whose calibration takes seconds.

The first argument is "whole", "no-cases" (cases are not run) or "no-server" (the ground-truth
server does not start); the others are the campaign's.
"""

import sys
from typing import Any

from loadtests import __main__
from loadtests.accuracy import calibration
from loadtests.campaign import runner

SHORT = {"warmup_s": 0.3, "warmup_max_s": 0.3, "duration_s": 1.0, "drain_s": 5.0}
LADDER_EVENTS_PER_S = (4_000, 8_000)
STEP_S = 0.5


def run_no_case(*arguments: Any) -> str:
    return "ok"


def main() -> int:
    what = sys.argv.pop(1)
    calibration.SCENARIO = calibration.SCENARIO | SHORT
    calibration.LADDER_EVENTS_PER_S = LADDER_EVENTS_PER_S
    calibration.STEP_S = STEP_S
    if what == "no-cases":
        runner.run_case = run_no_case
    elif what == "no-server":
        calibration.TTFT_MS = "never"
    return __main__.main()


if __name__ == "__main__":
    sys.exit(main())
