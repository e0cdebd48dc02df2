"""Calibration: before a campaign, the load generator measures its own errors against a server whose
times are known (loadtests/accuracy/ground_truth_server.py).

The result is the campaign's noise floor: the errors of this load generator's times on this machine,
at the campaign's own concurrency and rate, and the events per second that it can receive. Each
error is the difference of two stamps of the same clock.
"""

import math
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from loadtests import schema
from loadtests.accuracy import ground_truth_http, ground_truth_server
from loadtests.client.http import request_id
from loadtests.generator import locust_process
from loadtests.generator.locust_process import Workers
from loadtests.generator.messages import Window
from loadtests.generator.status import WorkerStatus
from loadtests.generator.task import LoadTask
from loadtests.workload.arrivals import ScenarioTable
from servers.runtime import launch, ports

Results = dict[str, Any]  # numbers by name, as in calibration.json and results.json
Row = dict[str, Any]  # of requests.jsonl (schema.REQUEST_FIELDS)

TTFT_MS, ITL_MS = 50.0, 10.0
SCENARIO: ScenarioTable = {
    "summary": "calibration",
    "endpoint": "completions",
    "prompt_tokens": [16, 64],
    "output_tokens": [16, 48],
    "warmup_s": 1.5,
    "warmup_max_s": 1.5,
    "duration_s": 4.0,
    "drain_s": 10.0,
    "timeout_s": 30.0,
}
LADDER_USERS = 64
LADDER_EVENTS_PER_S = (2_000, 4_000, 8_000, 16_000, 24_000, 32_000, 48_000, 64_000)
STEP_S = 1.0
# the load generator sustains a step of the ladder if the P99 of gaps and the number of events are
# this accurate
WITHIN = 0.10


@contextmanager
def start_ground_truth(folder: Path, cores: Sequence[int], *options: str) -> Iterator[str]:
    """Runs a ground truth server and yields its base URL. The server writes folder/truth.jsonl."""
    with ports.reserve_ports(1) as [port]:
        command = [
            sys.executable,
            "-m",
            "loadtests.accuracy.ground_truth_server",
            "--port",
            str(port),
            "--log",
            str((folder / "truth.jsonl").resolve()),
            *options,
        ]
        server = launch.start_supervised(command, folder / "reference.log", cores=cores)
        try:
            deadline = time.monotonic() + 30
            while launch.get_status("127.0.0.1", port, "/health") != 200:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise locust_process.LoadFailed(
                        "the ground truth server did not"
                        f" start:\n{launch.log_tail(folder / 'reference.log')}"
                    )
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            launch.stop_supervised(server)


@dataclass(frozen=True)
class Placement:
    """The load workers, and the cores for them and for the server; without cores, all of them."""

    workers: Workers
    server_cores: Sequence[int] = ()
    load_cores: Sequence[int] = ()


class CalibrationRun(NamedTuple):
    """One load, as recorded by the load generator and by the ground truth server."""

    window: Window
    rows: list[Row]
    server: ground_truth_server.LogSummary
    served: list[ground_truth_server.ServedRequest]
    workers: Sequence[WorkerStatus] = ()
    planned: int | None = None  # requests planned in the window of an open loop

    def rows_in_window(self) -> list[Row]:
        """The rows of the requests that were scheduled in the window."""
        start_s, end_s = self.window.start_s, self.window.end_s
        return [row for row in self.rows if start_s <= row["scheduled_s"] < end_s]

    def pairs(self) -> Iterator[tuple[Row, ground_truth_server.ServedRequest | None]]:
        """Each row with the server's record of the same request, or None."""
        known = {each.id: each for each in self.served}
        return ((row, known.get(request_id(row["worker"], row["request"]))) for row in self.rows)


def run_calibration_load(
    folder: Path,
    place: Placement,
    scenario: ScenarioTable,
    *options: str,
    users: int | None = None,
    rate: float | None = None,
    seed: str = "calibration",
) -> CalibrationRun:
    """Sends one load to a new ground truth server. The rows' times are those of
    `time.perf_counter()`. Raises LoadFailed.
    """
    folder.mkdir(parents=True)
    with start_ground_truth(folder, place.server_cores, *options) as url:
        task = describe_load(url, scenario, users=users, rate=rate, seed=seed)
        with locust_process.start_load(folder, task, place.workers, place.load_cores) as load:
            status = locust_process.wait_for_load(
                load, folder, locust_process.longest_load_s(task, place.workers)
            )
    assert status.window is not None, "a load that ended well had a window"
    return CalibrationRun(
        status.window,
        schema.read_lines(folder / "requests.jsonl"),
        *ground_truth_server.read_log(folder / "truth.jsonl"),
        status.workers,
        status.planned,
    )


def describe_load(
    url: str,
    scenario: ScenarioTable,
    *,
    users: int | None = None,
    rate: float | None = None,
    seed: str,
) -> LoadTask:
    """The task of a load against a ground truth server at this URL."""
    return LoadTask(
        base_url=url,
        model=ground_truth_http.MODEL,
        planted=True,
        scenario=scenario,
        scenario_name=scenario["summary"],
        users=users,
        rate=rate,
        duration_s=scenario["duration_s"],
        clock_zero_s=0.0,
        seed=seed,
    )


def percentile(values: Sequence[float], p: float) -> float | None:
    """Nearest rank; None without values."""
    return sorted(values)[max(0, math.ceil(p / 100 * len(values)) - 1)] if values else None


def measure_errors(run: CalibrationRun) -> Results:
    """Returns measured minus true times, in seconds, for the requests scheduled in the window."""
    start_s, end_s = run.window.start_s, run.window.end_s
    ttft: list[float] = []
    ttft_from_sent: list[float] = []
    stamps: list[float] = []
    true_gaps: list[float] = []
    seen_gaps: list[float] = []
    lags: list[float] = []
    failed = 0
    for row, true in run.pairs():
        if not start_s <= row["scheduled_s"] < end_s:
            continue
        if (
            row["error"]
            or row["answer"] != "exact"
            or true is None
            or len(true.stamps_s) != len(row["token_s"])
        ):
            failed += 1
            continue
        lags.append(row["sent_s"] - (row["slot_s"] or row["scheduled_s"]))
        ttft_from_sent.append(
            (row["first_s"] - row["sent_s"]) - (true.stamps_s[0] - true.arrived_s)
        )
        ttft.append(lags[-1] + ttft_from_sent[-1])
        stamps.append(row["first_s"] - true.stamps_s[0])
        seen, sent = row["token_s"], true.stamps_s
        true_gaps += [sent[i + 1] - sent[i] for i in range(len(sent) - 1)]
        seen_gaps += [seen[i + 1] - seen[i] for i in range(len(seen) - 1)]
    events = sum(start_s <= at < end_s for each in run.served for at in each.stamps_s)
    busy = [worker.cpu_share for worker in run.workers if worker.cpu_share is not None]
    waited = [worker.waited_share for worker in run.workers if worker.waited_share is not None]
    cpu_per_event_s = None
    if busy and len(busy) == len(run.workers) and events:
        cpu_per_event_s = sum(busy) * (end_s - start_s) / events
    return {
        "requests": len(ttft),
        "failed": failed,
        "ttft_error_mean_s": _mean(ttft),
        "ttft_error_p99_s": percentile(ttft, 99),
        "ttft_from_sent_error_mean_s": _mean(ttft_from_sent),
        "ttft_from_sent_error_p99_s": percentile(ttft_from_sent, 99),
        "stamp_error_mean_s": _mean(stamps),
        "stamp_error_p99_s": percentile(stamps, 99),
        "itl_error_p99_s": percentile(
            [abs(seen - true) for seen, true in zip(seen_gaps, true_gaps, strict=True)], 99
        ),
        **{
            f"itl_{what}_p{p}_s": percentile(gaps, p)
            for what, gaps in (("true", true_gaps), ("seen", seen_gaps))
            for p in (50, 99)
        },
        "send_lag_p50_s": percentile(lags, 50),
        "send_lag_p99_s": percentile(lags, 99),
        "events_per_s": events / (end_s - start_s),
        "cpu_per_event_s": cpu_per_event_s,
        "waited_share": max(waited, default=None),
        "server_late_mean_s": run.server.late_mean_s,
    }


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def measure_load_steps(run: CalibrationRun) -> list[Results]:
    """Returns for each step of the ladder: the events/s requested, sent and received, and whether
    the P99 of the gaps between them was measured correctly.
    """
    began_s = min(each.arrived_s for each in run.served)
    steps = []
    for number, asked in enumerate(LADDER_EVENTS_PER_S):
        start_s, end_s = began_s + (number + 0.3) * STEP_S, began_s + (number + 1) * STEP_S
        true, seen, sent_n, seen_n = [], [], 0, 0
        for row, each in run.pairs():
            stamps, token_s = each.stamps_s if each else [], row["token_s"]
            sent_n += sum(start_s <= at < end_s for at in stamps)
            seen_n += sum(start_s <= at < end_s for at in token_s)
            for i in range(1, min(len(stamps), len(token_s))):
                if start_s <= stamps[i] < end_s:
                    true.append(stamps[i] - stamps[i - 1])
                    seen.append(token_s[i] - token_s[i - 1])
        p99, p99_seen = percentile(true, 99), percentile(seen, 99)
        kept_up = bool(p99) and sent_n >= (1 - WITHIN) * asked * (end_s - start_s)
        steps.append(
            {
                "asked_per_s": asked,
                "sent_per_s": sent_n / (end_s - start_s),
                "seen_per_s": seen_n / (end_s - start_s),
                "gap_p99_s": p99,
                "gap_p99_seen_s": p99_seen,
                "server_kept_up": kept_up,
                "sustained": (
                    kept_up
                    and p99_seen is not None
                    and p99 is not None
                    and abs(p99_seen - p99) <= WITHIN * p99
                    and abs(seen_n - sent_n) <= WITHIN * sent_n
                ),
            }
        )
    return steps


def calibrate(folder: Path, users: int | None, rate: float | None, place: Placement) -> Results:
    """Measures the content of calibration.json (schema.CalibrationFile) with this many users and
    at this rate. Raises LoadFailed.
    """
    scratch = folder / "calibration.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    plan = ("--ttft-ms", str(TTFT_MS), "--itl-ms", str(ITL_MS))
    try:
        closed = opened = None
        if users:
            closed = measure_errors(
                run_calibration_load(
                    scratch / "closed", place, SCENARIO | {"arrivals": "closed"}, *plan, users=users
                )
            )
        if rate:
            opened = measure_errors(
                run_calibration_load(
                    scratch / "open", place, SCENARIO | {"arrivals": "poisson"}, *plan, rate=rate
                )
            )
        itls = ",".join(f"{1e3 * LADDER_USERS / events:g}" for events in LADDER_EVENTS_PER_S)
        length = STEP_S * len(LADDER_EVENTS_PER_S)
        climb = SCENARIO | {
            "arrivals": "closed",
            "output_tokens": [100, 300],
            "warmup_s": 0.2,
            "warmup_max_s": 0.2,
            "duration_s": length,
        }
        climbed = run_calibration_load(
            scratch / "ladder",
            place,
            climb,
            "--ttft-ms",
            "5",
            "--itl-steps-ms",
            itls,
            "--step-s",
            str(STEP_S),
            users=LADDER_USERS,
        )
        steps = measure_load_steps(climbed)
        sustained = 0
        for step in steps:
            if not step["sustained"]:
                break
            sustained = step["asked_per_s"]
        return {
            "schema": schema.SCHEMA,
            "users": users,
            "rate": rate,
            "closed": closed,
            "open": opened,
            "ladder": steps,
            "sustained_events_per_s": sustained,
        }
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def describe_errors(results: Results) -> str:
    """Describes the result of a calibration, and what it means for the cases to come, in two
    sentences.
    """
    added = [
        (1e3 * errors["ttft_error_p99_s"], where)
        for errors, where in (
            (results["closed"], f"with {results['users']} users"),
            (results["open"], f"at {results['rate']:g} requests/s" if results["rate"] else ""),
        )
        if errors and errors["ttft_error_p99_s"] is not None
    ]
    found = " and ".join(f"{ms:.1f} ms {where}" for ms, where in added)
    ttft = f"adds {found} to the P99 of TTFT, and " if found else ""
    chunks = f"{results['sustained_events_per_s']:,} chunks/s"
    most_ms = max((ms for ms, _ in added), default=0.0)
    bound = schema.CLIENT_ERROR_BOUND
    example = (
        f" ({most_ms:.1f} ms is {bound:.0%} of {most_ms / bound:.3g} ms)" if most_ms > 0 else ""
    )
    # if the ladder ended because its server could not send more, no higher rate is known to fail
    limited = any(step["server_kept_up"] and not step["sustained"] for step in results["ladder"])
    more = ", or if more chunks/s arrive" if limited else ""
    return (
        f"calibrated: the load generator {ttft}measures up to {chunks} correctly. A case is invalid"
        f" if the load generator may have changed its TTFT, E2E or ITL by more than {bound:.0%}"
        f"{example}, or sent over {1e3 * schema.SEND_LAG_BOUND_S:g} ms late (P99; over"
        f" {schema.SEND_LAG_BOUND_SHARE:.0%} of the median E2E if that is more){more}."
    )
