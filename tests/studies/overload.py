"""Three times what a server sustains, for five seconds: does it shed load, queue, collapse or die,
and when has it recovered?

    python -m tests.studies.overload [--servers a,b]

This adds to results/faults/overload.jsonl and generates README.md beside it. It fails if a server
with more requests than it may have in flight refused none.

Each server runs two campaigns on the simulated engine. A closed loop finds what it sustains. Then
Poisson arrivals come at a quarter of that, at three times that for five seconds, and again at a
quarter. The server has recovered after the last two seconds in which most requests failed or took
more than twice the P95 before the overload.
"""

import argparse
import json
import math
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from analysis.checks.hidden_pauses import in_flight
from servers.runtime import catalog
from servers.runtime.limits import MAX_IN_FLIGHT
from tests.helpers.campaign_process import Bench, runs, table
from tests.studies.fault_page import RESULTS, page

BEFORE_S, OVERLOAD_S, AFTER_S = 8.0, 5.0, 40.0
QUIET, LOUD = 0.25, 3.0  # times what the server sustains
BIN_S = 2.0
LEVEL = LOUD / QUIET
FROM_S, TO_S = BEFORE_S + 2, BEFORE_S + 2 + OVERLOAD_S
SCENARIOS = f"""
[saturation]
summary = "as many requests as possible"
arrivals = "closed"
users = 64
endpoint = "completions"
prompt_tokens = [4, 16]
output_tokens = [4, 8]
warmup_s = 4.0
warmup_max_s = 4.0
duration_s = 6.0
drain_s = 20.0
timeout_s = 60.0

[overload]
summary = "a quarter of what the server sustains, and three times it for a while"
arrivals = "poisson"
rate = 1.0
profile = [[0, 1], [{FROM_S}, 1], [{FROM_S}, {LEVEL}], [{TO_S}, {LEVEL}], [{TO_S}, 1]]
endpoint = "completions"
prompt_tokens = [4, 16]
output_tokens = [4, 8]
warmup_s = 2.0
duration_s = {BEFORE_S + OVERLOAD_S + AFTER_S}
drain_s = 30.0
timeout_s = 30.0
"""
ENGINE = (
    "--engines",
    "simulated",
    "--simulated",
    "prefill_ms=20,step_ms=5,max_batch=4",
    "--scenarios-file",
    "overload.toml",
    "--report",
    "none",
)


def study(server: str) -> dict[str, Any]:
    """Overload one server: {server, carries: requests/s that it sustains, overload and after:
    requests by outcome, at_once: most requests in flight, shed: whether it refused any (None if it
    need not), longest_s, well_after_s: when it had recovered (None if not in time), status, left:
    processes and files left behind}.
    """
    with tempfile.TemporaryDirectory(prefix="overload-") as place:
        folder = Path(place)
        (folder / "overload.toml").write_text(SCENARIOS)
        bench = Bench(folder)
        bench.run("--servers", server, *ENGINE, "--scenarios", "saturation", "--out", "saturation")
        [(case, run)] = runs(folder / "saturation")
        if run["status"] != "ok":
            return {"server": server, "status": f"at saturation: {run['status'].splitlines()[0]}"}
        window = run["window"]
        done = [
            row
            for row in table(case, "requests")
            if window["start_s"] <= row["done_s"] < window["end_s"] and not row["error"]
        ]
        sustained = len(done) / (window["end_s"] - window["start_s"])
        bench.run(
            "--servers",
            server,
            *ENGINE,
            "--scenarios",
            "overload",
            "--rate",
            f"{QUIET * sustained:.4g}",
            "--out",
            "overload",
        )
        [(case, run)] = runs(folder / "overload")
        found = {
            "server": server,
            "carries": sustained,
            "status": run["status"].splitlines()[0],
            "left": bench.left_over(),
        }
        return found | (
            judge_overload(table(case, "requests"), run["window"]["start_s"])
            if run["window"]
            else {}
        )


def judge_overload(rows: list[dict[str, Any]], start_s: float) -> dict[str, Any]:
    begins, ends = start_s + BEFORE_S, start_s + BEFORE_S + OVERLOAD_S
    before = sorted(took(row) for row in rows if start_s <= row["scheduled_s"] < begins)
    bound = 2 * before[math.ceil(0.95 * len(before)) - 1]
    after = [row for row in rows if row["scheduled_s"] >= ends]
    bins: dict[int, list[bool]] = {}
    for row in after:
        bins.setdefault(int((row["scheduled_s"] - ends) / BIN_S), []).append(took(row) > bound)
    well_after = BIN_S * max(
        (number + 1 for number, late in bins.items() if 2 * sum(late) > len(late)), default=0
    )
    overload = Counter(outcome(row) for row in rows if begins <= row["scheduled_s"] < ends)
    due, done = (np.sort([row[name] for row in rows]) for name in ("scheduled_s", "done_s"))
    at_once = int(in_flight(due, done, due).max())
    return {
        "before_p95_s": bound / 2,
        "overload": dict(overload),
        "after": dict(Counter(map(outcome, after))),
        "at_once": at_once,
        "shed": overload["429"] > 0 or (None if at_once <= MAX_IN_FLIGHT else False),
        "longest_s": max(row["done_s"] - row["scheduled_s"] for row in rows),
        "well_after_s": well_after if well_after < AFTER_S - 2 * BIN_S else None,
    }


def took(row: dict[str, Any]) -> float:
    return math.inf if row["error"] else row["done_s"] - row["scheduled_s"]


def outcome(row: dict[str, Any]) -> str:
    return "answered" if not row["error"] else "429" if row["http_status"] == 429 else row["error"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--servers",
        default="",
        help="comma-separated (default: all that can run the simulated engine)",
    )
    asked = parser.parse_args()
    servers = [name for name in asked.servers.split(",") if name] or [
        server.name
        for server in catalog.list_servers().values()
        if "simulated" in server.engines and not server.missing("simulated", {})
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    for server in servers:
        found = study(server)
        print(json.dumps(found), flush=True)
        with (RESULTS / "overload.jsonl").open("a") as handle:
            handle.write(json.dumps(found) + "\n")
    sys.exit(page())


if __name__ == "__main__":
    main()
