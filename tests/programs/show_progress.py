"""Shows the progress of a campaign of 60 cases as a campaign shows it: some end in every way that a
case can, then one goes through its stages. `python -m tests.programs.show_progress LOG`: a server's
log.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

from loadtests.generator.messages import Window
from loadtests.progress.rows import CaseRow
from loadtests.progress.watch import ProgressWatch
from loadtests.schema import Case
from tests.helpers.load_status import running_status

METRICS = (
    "output_tokens_per_s",
    "error_share",
    *(f"{latency}_p{p}_s" for latency in ("ttft", "e2e") for p in (50, 95, 99)),
)
ROW = CaseRow(True, "", dict.fromkeys(METRICS, "123,456") | {"ttft_p99_s": "n=120"})
CASES = [
    Case(
        index,
        f"a_server_with_a_long_name_{index % 3}",
        "simulated",
        "a-scenario-with-a-long-name",
        1 + index // 30,
        None,
        2.5,
        10.0,
        {"loop": "asyncio"},
    )
    for index in range(1, 61)
]
WINDOW = Window(2.5, 9)
ENDS = (
    ("ok", ROW),
    ("ok", CaseRow(False, "send lag: P99 12.0 ms, bound 5.0 ms; " * 3, {})),
    ("ok", None),
    ("skipped: vllm is not installed", None),
    ("failed: launch: it has [brackets]; its last log lines:\n    first\n    second", None),
)


def main() -> None:
    log = Path(sys.argv[1])
    prefix = "(MainProcess pid=29057) WARNING 11-30 13:43:58 [vllm.py:725] "
    lines = ("first\n", "\x1b[32mloading weights 40%\x1b[0m\r", "loading weights 50% " * 20)
    log.write_text(f"{lines[0]}{lines[1]}{prefix}{lines[2]}\n")
    with ProgressWatch({CASES[0].scenario: {"arrivals": "closed", "warmup_s": 2.0}}) as watch:
        watch.plan(CASES, done=0)
        with watch.waiting("calibrating the load generator", 30):
            time.sleep(0.6)
        for case in CASES[:30]:
            watch.start(case)
            watch.stage("prepare")
            watch.end(*ENDS[case.index % len(ENDS)])
        watch.start(CASES[30])
        watch.stage("launch", log)
        time.sleep(0.6)
        watch.stage("load")
        waiting = running_status(3, 7, 10, 1.234, WINDOW)
        for status in (
            replace(waiting, now_s=2.0, window=None),
            replace(waiting, window=None, unsteady="TTFT would change by +12% over the window"),
            running_status(4, 77, 1244, 1.234, WINDOW),
            replace(running_status(9.5, 80, 2478, 1.234, WINDOW), sent=82, locust_failures=3),
        ):
            watch.load(status)
            time.sleep(0.6)
        watch.stage("verify again")
        watch.end("ok", ROW)


if __name__ == "__main__":
    main()
