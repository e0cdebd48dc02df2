"""Several load workers send the same requests as one; a lost worker fails the case by name; no
process is left behind.
"""

import json
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtests import schema
from loadtests.client.http import request_id
from loadtests.generator.locust_process import LoadFailed, Workers
from loadtests.generator.status import LoadStatus
from loadtests.generator.task import INPUTS_FILE, read_inputs
from loadtests.workload import arrivals, prompts
from tests.helpers.campaign_process import (
    PATIENCE_S,
    QUICK,
    Bench,
    case_folder,
    rows_when_under_load,
    table,
    wait_for,
)
from tests.helpers.recording_server import CLOSED, SCENARIO, SEED, Driven, Witness, drive, task_of

RATE = 20.0


def assert_complete(driven: Driven, witness: Witness, workers: int) -> None:
    """Every sent request has arrived, has a row and is in Locust's count; each worker numbers its
    own.
    """
    assert (
        {driven.said[name] for name in ("sent", "rows", "locust_requests")}
        == {len(driven.rows)}
        == {len(witness.asked)}
    )
    assert driven.said["cut_off"] == driven.said["locust_failures"] == 0
    assert {row["answer"] for row in driven.rows} == {"exact"}
    names = [request_id(row["worker"], row["request"]) for row in driven.rows]
    assert sorted(names) == sorted(asked.request_id for asked in witness.asked) and len(
        {*names}
    ) == len(names)
    assert [each["worker"] for each in driven.said["workers"]] == list(range(workers))
    for each in driven.said["workers"]:
        numbers = sorted(row["request"] for row in driven.rows if row["worker"] == each["worker"])
        assert numbers == list(range(each["rows"]))


@pytest.mark.parametrize("count", [1, 2])
def test_an_open_loop_is_the_same_with_any_number_of_workers(
    tmp_path: Path, marked: Bench, count: int
) -> None:
    """All workers together send the same requests at the same times, each of them once."""
    with Witness(answer_s=0.02) as witness:
        driven = drive(
            tmp_path / "load",
            task_of(witness.url, SCENARIO, rate=RATE, duration_s=1.5),
            Workers(count),
        )
    assert_complete(driven, witness, count)
    bodies = {asked.request_id: asked.body for asked in witness.asked}
    warm_up = [row for row in driven.rows if row["scheduled_s"] < driven.window[0]]
    for rows, user, begin_s, planned in (
        (
            driven.in_window(),
            0,
            driven.window[0],
            arrivals.window_arrivals(SEED, SCENARIO, RATE, 1.5),
        ),
        (
            sorted(warm_up, key=lambda row: row["scheduled_s"]),
            -1,
            driven.said["began_s"],
            arrivals.warm_up_arrivals(SEED, SCENARIO, RATE),
        ),
    ):
        planned = planned[: len(rows)] if user < 0 else planned  # the plan covers the longest one
        wanted = [
            prompts.make_prompt(SEED, SCENARIO, user, index, arrival)
            for index, arrival in enumerate(planned)
        ]
        assert [row["scheduled_s"] - begin_s for row in rows] == pytest.approx(
            [arrival.at_s for arrival in planned], abs=2e-6
        )
        assert [(row["prompt_tokens_asked"], row["max_tokens"]) for row in rows] == [
            (each.tokens, each.max_tokens) for each in wanted
        ]
        assert [bodies[request_id(row["worker"], row["request"])]["prompt"] for row in rows] == [
            each.text for each in wanted
        ]
        assert [row["worker"] for row in rows] == [index % count for index in range(len(rows))]
    assert driven.said["planned"] == len(driven.in_window()) and len(warm_up) > 3


def test_load_workers_need_no_trace(
    tmp_path: Path, marked: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver has read it, and the coordinator passes the arrivals on, more of them than an
    environment variable can hold. Nor do load workers need the packages that read traces.
    """
    for package in ("pyarrow", "numpy"):
        (tmp_path / f"{package}.py").write_text(f"raise ImportError('no {package} here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        "".join(
            f'{{"chat_id": {n}, "parent_chat_id": -1, "timestamp": {n / 20}, "input_length": 3000,'
            f' "output_length": 2, "hash_ids": {[2**62 + n // 2 + k for k in range(188)]}}}\n'
            for n in range(40)
        )
    )
    scenario = SCENARIO | {"arrivals": "trace", "trace": str(trace), "context": 4096}
    task = task_of("", scenario, duration_s=1.0)
    planned = read_inputs(task)
    assert len(json.dumps(planned.to_json())) > 131_072
    trace.unlink()
    with Witness(answer_s=0.02) as witness:
        driven = drive(tmp_path / "load", replace(task, base_url=witness.url), Workers(2))
    assert_complete(driven, witness, 2)
    bodies = {asked.request_id: asked.body for asked in witness.asked}
    in_window = task.window_arrivals(planned)
    assert len(in_window) == len(driven.in_window()) == driven.said["planned"] == 20
    for number, (arrival, row) in enumerate(zip(in_window, driven.in_window(), strict=True)):
        assert row["scheduled_s"] - driven.window[0] == pytest.approx(arrival.at_s, abs=2e-6)
        wanted = prompts.make_prompt(SEED, scenario, 0, number, arrival)
        assert bodies[request_id(row["worker"], row["request"])]["prompt"] == wanted.text
    assert not (tmp_path / "load" / INPUTS_FILE).exists()


def test_a_window_does_not_wait_for_the_warm_up_s_next_arrival(
    tmp_path: Path, marked: Bench
) -> None:
    """At this rate the warm-up's first request would be sent 1.1 s after the load's start, long
    after the window has opened.
    """
    scenario = SCENARIO | {"arrivals": "constant"}
    with Witness() as witness:
        driven = drive(
            tmp_path / "load", task_of(witness.url, scenario, rate=0.9, duration_s=1.4), Workers()
        )
    assert [row["scheduled_s"] - driven.window[0] for row in driven.rows] == pytest.approx(
        [1 / 0.9], abs=2e-6
    )
    assert driven.said["planned"] == len(witness.asked) == 1


@pytest.mark.parametrize(("users", "count"), [(3, 2), (1, 2)])
def test_each_user_of_a_closed_loop_belongs_to_one_worker(
    tmp_path: Path, marked: Bench, users: int, count: int
) -> None:
    with Witness(answer_s=0.02) as witness:
        driven = drive(tmp_path / "load", task_of(witness.url, CLOSED, users=users), Workers(count))
    assert_complete(driven, witness, count)
    assert {(row["user"], row["worker"]) for row in driven.rows} == {
        (user, user % count) for user in range(users)
    }
    bodies = {asked.request_id: asked.body for asked in witness.asked}
    for user in range(users):
        rows = sorted(
            (row for row in driven.rows if row["user"] == user), key=lambda row: row["request"]
        )
        assert rows[-1]["done_s"] >= driven.window[1], "to the end"
        asked = [bodies[request_id(row["worker"], row["request"])]["messages"] for row in rows]
        assert asked == [
            [{"role": "user", "content": prompts.make_prompt(SEED, CLOSED, user, turn).text}]
            for turn in range(len(rows))
        ]


def test_repeats_are_the_same_with_any_number_of_workers(tmp_path: Path, marked: Bench) -> None:
    scenario = SCENARIO | {"distinct_prompts": 8, "zipf": 1.1}
    asked = {}
    for count in (1, 3):
        with Witness() as witness:
            driven = drive(
                tmp_path / f"load-{count}",
                task_of(witness.url, scenario, rate=40.0),
                Workers(count),
            )
        assert_complete(driven, witness, count)
        bodies = {asked.request_id: asked.body for asked in witness.asked}
        asked[count] = [
            bodies[request_id(row["worker"], row["request"])] for row in driven.in_window()
        ]
    assert asked[1] == asked[3] and len({body["prompt"] for body in asked[1]}) <= 8 < len(asked[1])


# --- lost load workers


class Assassin:
    """Sends a signal to one of the forked load workers once the load has `seen` rows, at least
    20.
    """

    def __init__(self, bench: Bench, number: int):
        self.bench, self.number, self.seen = bench, number, 0

    def __call__(self, status: LoadStatus | None) -> None:
        if not self.seen and status and status.state == "running" and status.rows >= 20:
            self.seen = status.rows
            [_coordinator, victim, _other] = self.bench.load_workers()
            victim.send_signal(self.number)


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (signal.SIGKILL, "load worker [01] ended by itself"),
        (signal.SIGSTOP, "load worker [01] has not reported for 4 s"),
    ],
    ids=["killed", "stopped"],
)
def test_a_lost_worker_fails_the_case_and_its_rows_are_kept(
    tmp_path: Path, marked: Bench, monkeypatch: pytest.MonkeyPatch, number: int, sentence: str
) -> None:
    monkeypatch.setenv("SERVEOFF_LOST_AFTER_S", "4")
    # a stopped process cannot end on SIGTERM
    monkeypatch.setenv("SERVEOFF_GRACE_S", "1")
    assassin = Assassin(marked, number)
    with Witness(answer_s=0.02) as witness, pytest.raises(LoadFailed) as failed:
        drive(
            tmp_path / "load",
            task_of(witness.url, CLOSED, users=4, duration_s=600),
            Workers(2),
            assassin,
        )
    assert re.match(
        rf"the load generator ended with exit code 4 \({sentence}\); its last log lines:\n",
        str(failed.value),
    ), failed.value
    rows = schema.read_lines(tmp_path / "load" / "requests.jsonl")
    assert len(rows) >= assassin.seen >= 20 and {row["worker"] for row in rows} == {0, 1}


@pytest.mark.parametrize(
    ("scenario", "load", "count"),
    [(CLOSED, {"users": 2}, 1), (SCENARIO, {"rate": 20.0}, 2)],
    ids=["closed", "open"],
)
def test_an_error_of_our_own_ends_the_load(
    tmp_path: Path, marked: Bench, scenario: dict[str, Any], load: dict[str, Any], count: int
) -> None:
    broken = {key: value for key, value in scenario.items() if key != "prompt_tokens"}
    with pytest.raises(
        LoadFailed, match=r"exit code 4 \((starting|running|load worker [01] ended by itself)\)"
    ) as failed:
        drive(tmp_path / "load", task_of("http://127.0.0.1:1", broken, **load), Workers(count))
    assert "the load generator gave up: KeyError('prompt_tokens')" in str(failed.value)


# --- a campaign: killed, interrupted


def test_nothing_is_left_of_a_campaign_with_several_workers(bench: Bench) -> None:
    campaign = bench.folder / "several"
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        driver = bench.start(
            *QUICK,
            "--servers",
            "fastapi_threadpool",
            "--load-workers",
            "2",
            "--duration",
            "600",
            "--out",
            "several",
        )
        seen = rows_when_under_load(campaign, 1)
        assert len(bench.load_workers()) == 3, "a coordinator and two load workers"
        driver.send_signal(number)
        driver.communicate(timeout=PATIENCE_S)
        assert driver.returncode == code
        if number == signal.SIGINT:
            assert bench.left_over() == [], "Ctrl-C waits until every process is gone"
            run, rows = (
                schema.read_json(case_folder(campaign, 1) / "run.json"),
                table(case_folder(campaign, 1), "requests"),
            )
            assert run["status"] == "failed: load: interrupted by Ctrl-C"
            assert run["counts"]["rows"] == run["counts"]["sent"] == len(rows) >= seen, (
                "every request has a row, even without a response"
            )
            assert {row["worker"] for row in rows} == {0, 1}
        wait_for(lambda: not bench.left_over(), "nothing left of the campaign")
