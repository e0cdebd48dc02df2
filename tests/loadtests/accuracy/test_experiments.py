"""The arithmetic of the experiments; their published results show that they run."""

import subprocess
import sys
from pathlib import Path

import pytest

from loadtests import schema
from loadtests.accuracy import calibration, cpu_cost, ground_truth_server, testbed
from loadtests.accuracy.open_loop import e2e_with_freeze, send_in_c
from loadtests.client.http import request_id
from tests.helpers.installed import require_installed

FREEZE = (10.0, 12.0)


@pytest.mark.parametrize(
    ("arrival", "e2e"),
    [
        (9.0, 0.2),  # done before the freeze
        (9.8, 0.2),  # done just before the freeze
        (9.9, 2.2),  # frozen in the middle of the response
        (10.0, 2.2),  # read after the freeze
        (11.5, 0.7),
        (12.0, 0.2),
    ],
)
def test_without_a_cap_a_request_waits_only_for_the_freeze(arrival, e2e):
    assert e2e_with_freeze([arrival], 0.2, FREEZE, None) == pytest.approx([e2e])
    assert e2e_with_freeze([1.0, arrival, 13.0], 0.2, FREEZE, None) == pytest.approx(
        [0.2, e2e, 0.2]
    )


def test_under_a_cap_a_request_also_waits_for_earlier_ones():
    assert e2e_with_freeze([0.0, 0.0, 0.1], 1.0, FREEZE, 1) == pytest.approx([1.0, 2.0, 2.9])
    assert e2e_with_freeze([0.0, 0.0, 0.1], 1.0, FREEZE, 2) == pytest.approx([1.0, 1.0, 1.9])
    assert e2e_with_freeze([0.0, 0.0, 0.1], 1.0, FREEZE, 3) == pytest.approx([1.0, 1.0, 1.0])


def test_under_a_cap_the_freeze_delays_later_requests():
    found = e2e_with_freeze([9.5, 9.6, 11.0, 12.5], 1.0, FREEZE, 1)
    assert found == pytest.approx([3.0, 3.9, 3.5, 3.0])  # done at 12.5, 13.5, 14.5, 15.5
    assert e2e_with_freeze([9.5, 20.0], 1.0, FREEZE, 1)[1] == pytest.approx(1.0), (
        "but not all later requests"
    )


def test_a_large_cap_has_no_effect():
    arrivals = [k / 50 for k in range(800)]
    assert e2e_with_freeze(arrivals, 0.2, (8.0, 10.0), 800) == e2e_with_freeze(
        arrivals, 0.2, (8.0, 10.0), None
    )


def test_medians_are_of_numbers_that_were_measured():
    found = testbed.median_results(
        [
            {"a": 1.0, "b": None, "c": True, "d": "x", "e": None},
            {"a": 3.0, "b": 5, "c": True, "d": "x", "e": None},
            {"a": 9.0, "b": 7, "c": True, "d": "x", "e": None},
        ]
    )
    assert found["a"] == 3.0 and found.get("b", 6) == 6 and not {"c", "d", "e"} & found.keys()


def test_cpu_time_per_event_leaves_out_start_and_end():
    # the start costs seconds
    samples = [(k / 10, 1.0 + 0.02 * k + (5.0 if k < 10 else 0.0)) for k in range(100)]
    stamps = [k / 100 for k in range(1000)]
    assert cpu_cost.us_per_event(samples, stamps) == pytest.approx(1e6 * 0.2 / 100)
    assert (
        cpu_cost.us_per_event(samples, stamps[:50]) is None
        and cpu_cost.us_per_event(samples[:1], stamps) is None
    )


def test_the_reader_in_c_reads_while_its_users_start(tmp_path: Path) -> None:
    """Otherwise events would accumulate, and reading them in large pieces would be cheaper than the
    load generator's work. Also checks that its times are true.
    """
    require_installed("cc")
    users, file = 20, tmp_path / "rows.jsonl"
    reader = testbed.Testbed(tmp_path, 1, 1.0).compile_program("floor_reader")
    assert reader
    with calibration.start_ground_truth(tmp_path, (), "--ttft-ms", "5", "--itl-ms", "2") as url:
        command = [*reader, url.rpartition(":")[2], str(users), "8", "1", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, (_, served) = (
        schema.read_lines(file),
        ground_truth_server.read_log(tmp_path / "truth.jsonl"),
    )
    assert rows[0]["request"] > 2 * users, (
        "many users had sent further requests before the last user started"
    )
    assert sum(len(row["token_s"]) for row in rows) <= int(done.stdout.split()[0])
    known = {each.id: each for each in served}
    for row in rows:
        true = known[request_id(0, row["request"])]
        assert (
            row["scheduled_s"] <= row["sent_s"] <= true.arrived_s
            and len(row["token_s"]) == len(true.stamps_s) == 8
        )
        assert all(
            sent <= seen + 1e-4 for sent, seen in zip(true.stamps_s, row["token_s"], strict=True)
        )


def test_the_sender_in_c_sends_at_the_planned_times(tmp_path: Path) -> None:
    require_installed("cc")
    here = testbed.Testbed(tmp_path, 1, 1.0)
    sender = here.compile_program("floor_sender")
    assert sender
    # twice as many requests as connections
    planned = [100.0 + 0.002 * number for number in range(1000)]
    sent = send_in_c(here, sender, planned)
    _, served = ground_truth_server.read_log(tmp_path / "0" / "truth.jsonl")
    assert len(sent) == len(served) == 1000 and sent == sorted(sent)
    assert all(at >= due - planned[0] - 1e-6 for at, due in zip(sent, planned, strict=True))


@pytest.mark.slow
def test_each_result_names_the_readers_of_its_streams(tmp_path: Path) -> None:
    """Only its own readers, not those of earlier experiments."""
    for experiment, more in (("soak", ("--minutes", "0.6")), ("healthy", ())):
        command = [
            sys.executable,
            "-m",
            "loadtests.accuracy",
            "--repeat",
            "1",
            "--out",
            str(tmp_path),
            *more,
            experiment,
        ]
        subprocess.run(command, check=True)
        found = schema.read_json(tmp_path / "results.json")[experiment]
        assert found["readers"] in (["c"], ["python"]), experiment
