"""`max_in_flight`: the server never has more requests, they start in the order of arrival, and rows
record the wait for a slot.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from loadtests import schema
from loadtests.generator.locust_process import Workers
from loadtests.workload import arrivals
from tests.helpers.campaign_process import QUICK, SCENARIOS, Bench, is_complete, runs, table
from tests.helpers.python_program import output_of
from tests.helpers.recording_server import SCENARIO, SEED, Driven, Witness, drive, task_of

RATE = 100.0  # the server completes 60 requests/s under the cap
CAPPED = SCENARIO | {"max_in_flight": 3}


def most_at_once(rows: list[dict[str, Any]]) -> int:
    """Returns the most requests between sent_s and done_s. At one moment, ends precede starts."""
    steps = [(row["sent_s"], 1) for row in rows] + [(row["done_s"], -1) for row in rows]
    now = most = 0
    for _, step in sorted(steps):
        now += step
        most = max(most, now)
    return most


@pytest.mark.parametrize("count", [1, 2])
def test_the_cap_holds_and_requests_are_served_in_order(
    tmp_path: Path, marked: Bench, count: int
) -> None:
    with Witness(answer_s=0.05) as witness:
        driven = drive(tmp_path / "load", task_of(witness.url, CAPPED, rate=RATE), Workers(count))
    rows = driven.rows
    assert max(asked.unanswered for asked in witness.asked) == most_at_once(rows) == 3
    assert (
        {driven.said[name] for name in ("sent", "rows", "locust_requests")}
        == {len(rows)}
        == {len(witness.asked)}
    )
    assert (
        driven.said["cut_off"] == 0
        and len(driven.in_window()) == len(arrivals.window_arrivals(SEED, CAPPED, RATE, 1.0)) > 80
    )
    for worker in range(count):
        own = sorted(
            (row for row in rows if row["worker"] == worker), key=lambda row: row["request"]
        )
        assert most_at_once(own) == 3 // count + (worker < 3 % count), "the cap is split"
        assert all(row["scheduled_s"] <= row["slot_s"] <= row["sent_s"] for row in own)
        for before, after in pairwise(own):
            assert (
                before["scheduled_s"] <= after["scheduled_s"]
                and before["slot_s"] <= after["slot_s"]
            )
    waited = sorted(row["slot_s"] - row["scheduled_s"] for row in driven.in_window())
    assert waited[-1] > 0.2, "the load exceeds the rate that the cap allows"


@pytest.fixture(scope="module")
def cut_off(bench: Bench) -> Driven:
    """A load whose drain is too short for the requests that wait."""
    with Witness(answer_s=0.05) as witness:
        return drive(
            bench.folder / "short",
            task_of(witness.url, CAPPED | {"drain_s": 0.3}, rate=2 * RATE),
            Workers(),
        )


def test_a_request_that_never_got_a_slot_has_a_row(cut_off: Driven) -> None:
    """The requests that wait longest must not vanish from the latencies."""
    assert len(cut_off.in_window()) == cut_off.said["planned"] > 160
    never = [row for row in cut_off.rows if row["slot_s"] is None]
    assert len(never) > 20 and {row["error"] for row in never} == {
        "cut off: incomplete when the drain ended"
    }
    assert {(row["sent_s"], row["first_s"], row["tokens"]) for row in never} == {(None, None, None)}
    assert all(row["done_s"] >= cut_off.window[1] for row in never)
    unanswered = [row for row in cut_off.rows if row["error"] is not None]
    assert cut_off.said["cut_off"] == len(unanswered) and 0 < len(unanswered) - len(never) <= 3, (
        "others had a slot and were cut off as well"
    )
    assert {cut_off.said[name] for name in ("sent", "rows", "locust_requests")} == {
        len(cut_off.rows)
    }


def test_no_request_overtakes_one_that_waits_for_a_slot() -> None:
    """Not even a request that arrives at the very moment at which a response ends."""
    assert output_of("wait_for_slots") == "fine\n"


def test_more_workers_than_slots_are_refused(bench: Bench) -> None:
    (bench.folder / "mine.toml").write_text(
        SCENARIOS.replace("rate = 25.0", "rate = 25.0\nmax_in_flight = 2")
    )
    bench.refuses(
        "the scenario 'random' has max_in_flight = 2: give --load-workers 2 or fewer",
        *QUICK,
        "--scenarios",
        "random",
        "--load-workers",
        "3",
        "--out",
        "not_to_be",
    )


def test_a_campaign_under_a_cap_with_two_workers(bench: Bench) -> None:
    (bench.folder / "mine.toml").write_text(
        SCENARIOS.replace("rate = 25.0", "rate = 60.0\nmax_in_flight = 2")
    )
    done = bench.run(
        *QUICK,
        "--scenarios",
        "random",
        "--servers",
        "fastapi_threadpool",
        "--load-workers",
        "2",
        "--out",
        "capped",
    )
    assert is_complete(done.returncode, done.stderr), done.stdout + done.stderr
    assert bench.left_over() == []
    [(folder, run)] = runs(bench.folder / "capped")
    rows = table(folder, "requests")
    assert (
        run["status"] == "ok"
        and most_at_once(rows) == 2
        and set(schema.REQUEST_FIELDS) == {*rows[0]}
    )
    assert all(row["scheduled_s"] <= row["slot_s"] <= row["sent_s"] for row in rows)
    assert {run["counts"][name] for name in ("sent", "rows", "locust_requests")} == {len(rows)}
    assert [(each["worker"], each["offset_s"]) for each in run["load_workers"]] == [
        (0, 0.0),
        (1, 0.0),
    ]
    assert {path.name for path in folder.iterdir()} == {
        "run.json",
        "requests.parquet",
        "telemetry.parquet",
        "server_metrics.parquet",
        "server.log",
        "load.log",
    }
    samples = [sample["load"] for sample in table(folder, "telemetry")]
    assert max(sample["processes"] for sample in samples) == 3, (
        "the telemetry sees the coordinator and both workers"
    )
