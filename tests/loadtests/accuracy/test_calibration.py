"""Calibration: the arithmetic on rows made by hand, then real processes, none of which may be left
running.
"""

import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from loadtests import schema
from loadtests.accuracy import calibration
from loadtests.accuracy.calibration import CalibrationRun, Placement
from loadtests.accuracy.ground_truth_server import LogSummary, ServedRequest
from loadtests.client.http import request_id
from loadtests.generator import locust_process
from loadtests.generator.locust_process import Workers
from loadtests.generator.messages import Window
from loadtests.generator.status import WorkerStatus
from tests.helpers.campaign_process import ESCAPES, MARK, PATIENCE_S, QUICK, Bench, wait_for
from tests.helpers.pty_command import Terminal
from tests.helpers.python_program import command_of
from tests.programs import calibrate_briefly

# --- by hand


def row(number: int, scheduled_s: float, token_s: list[float], **more: Any) -> dict[str, Any]:
    return {
        "worker": 0,
        "request": number,
        "scheduled_s": scheduled_s,
        "slot_s": None,
        "sent_s": scheduled_s + 0.001,
        "token_s": token_s,
        "first_s": token_s[0] if token_s else None,
        "error": None,
        "answer": "exact",
    } | more


def served(number: int, arrived_s: float, stamps_s: list[float]) -> ServedRequest:
    return ServedRequest(
        request_id(0, number), arrived_s, stamps_s[0] if stamps_s else None, stamps_s
    )


def run(
    rows: list[dict[str, Any]],
    sent: list[ServedRequest],
    workers: Any = ((0.1, 0.02),),
    window: tuple[float, float] = (10.0, 20.0),
) -> CalibrationRun:
    summary = LogSummary(None, len(sent), 3e-6, 3e-6)
    statuses = [
        WorkerStatus(number, 0.0, 0.0, 0.0, 0, "c", busy, waited, [])
        for number, (busy, waited) in enumerate(workers)
    ]
    return CalibrationRun(Window(*window), rows, summary, sent, statuses)


def two() -> tuple[list[dict[str, Any]], list[ServedRequest]]:
    """Two requests, sent 1 ms late and read by the server after 2 ms; their tokens are stamped 4
    and 6 µs late.
    """
    rows, sent = [], []
    for number, at in enumerate((11.0, 12.0)):
        stamps = [at + 0.05, at + 0.06]
        sent.append(served(number, at + 0.002, stamps))
        rows.append(row(number, at, [stamps[0] + 4e-6, stamps[1] + 6e-6]))
    return rows, sent


def test_errors_are_measured_minus_true_times() -> None:
    found = calibration.measure_errors(run(*two(), workers=((0.1, 0.02), (0.3, None))))
    assert found == pytest.approx(
        {
            "requests": 2,
            "failed": 0,
            "ttft_error_mean_s": 0.002 + 4e-6,
            "ttft_error_p99_s": 0.002 + 4e-6,
            "ttft_from_sent_error_mean_s": 0.001 + 4e-6,
            "ttft_from_sent_error_p99_s": 0.001 + 4e-6,
            "stamp_error_mean_s": 4e-6,
            "stamp_error_p99_s": 4e-6,
            "itl_error_p99_s": 2e-6,
            "itl_true_p50_s": 0.01,
            "itl_true_p99_s": 0.01,
            "itl_seen_p50_s": 0.010002,
            "itl_seen_p99_s": 0.010002,
            "send_lag_p50_s": 0.001,
            "send_lag_p99_s": 0.001,
            "events_per_s": 0.4,
            "cpu_per_event_s": 0.4 * 10 / 4,
            "waited_share": 0.02,
            "server_late_mean_s": 3e-6,
        },
        rel=1e-6,
    )


def test_the_line_of_a_calibration_states_what_makes_a_case_invalid() -> None:
    steps = [{"server_kept_up": True, "sustained": sustained} for sustained in (True, False)]
    found = {
        "users": 8,
        "rate": 2.5,
        "closed": {"ttft_error_p99_s": 0.0042},
        "open": {"ttft_error_p99_s": 0.0003},
        "ladder": steps,
        "sustained_events_per_s": 2000,
    }
    assert calibration.describe_errors(found) == (
        "calibrated: the load generator adds 4.2 ms with 8 users and 0.3 ms at 2.5 requests/s to"
        " the P99 of TTFT, and measures up to 2,000 chunks/s correctly. A case is invalid if the"
        " load generator may have changed its TTFT, E2E or ITL by more than 5% (4.2 ms is 5% of 84"
        " ms), or sent over 5 ms late (P99; over 1% of the median E2E if that is more), or if more"
        " chunks/s arrive."
    )
    unknown = found | {"closed": None, "open": None, "ladder": steps[:1]}
    assert calibration.describe_errors(unknown) == (
        "calibrated: the load generator measures up to 2,000 chunks/s correctly. A case is invalid"
        " if the load generator may have changed its TTFT, E2E or ITL by more than 5%, or sent over"
        " 5 ms late (P99; over 1% of the median E2E if that is more)."
    )


def test_requests_scheduled_outside_the_window_do_not_count() -> None:
    rows, sent = two()
    found = calibration.measure_errors(run(rows, sent, window=(11.5, 20.0)))
    assert (found["requests"], found["failed"], found["events_per_s"]) == (
        1,
        0,
        pytest.approx(2 / 8.5),
    )


def test_under_a_cap_lateness_counts_from_the_slot() -> None:
    rows, sent = two()
    slotted = [each | {"slot_s": each["scheduled_s"] + 0.0008} for each in rows]
    assert calibration.measure_errors(run(slotted, sent))["send_lag_p99_s"] == pytest.approx(0.0002)


@pytest.mark.parametrize(
    "spoil",
    [
        {"error": "timeout"},
        {"answer": "wrong"},
        {"token_s": [11.05]},
        {"request": 7},  # unknown to the server
    ],
)
def test_a_request_that_failed_is_counted_but_not_compared(spoil: dict[str, Any]) -> None:
    rows, sent = two()
    found = calibration.measure_errors(run([rows[0] | spoil, rows[1]], sent))
    assert (found["requests"], found["failed"]) == (1, 1)
    found = calibration.measure_errors(run([each | {"error": "timeout"} for each in rows], sent))
    assert (
        found["requests"],
        found["failed"],
        found["ttft_error_mean_s"],
        found["itl_seen_p99_s"],
    ) == (0, 2, None, None)


def test_numbers_that_a_worker_lacks_are_none() -> None:
    found = calibration.measure_errors(run(*two(), workers=((None, None),)))
    assert found["cpu_per_event_s"] is None and found["waited_share"] is None
    assert calibration.measure_errors(run([], []))["cpu_per_event_s"] is None


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Two steps of one second: 100 events/s, then 200."""
    monkeypatch.setattr(calibration, "LADDER_EVENTS_PER_S", (100, 200))
    monkeypatch.setattr(calibration, "STEP_S", 1.0)
    return [5.0 + k / 100 for k in range(100)] + [6.0 + k / 200 for k in range(200)]


def ladder(sent: list[float], seen: list[float]) -> list[tuple[bool, bool]]:
    """(the server kept up, sustained) of each step."""
    found = calibration.measure_load_steps(
        run([row(0, 4.9, seen), row(1, 4.9, [], error="timeout")], [served(0, 5.0, sent)])
    )
    assert [step["asked_per_s"] for step in found] == [100, 200]
    return [(step["server_kept_up"], step["sustained"]) for step in found]


def test_a_step_is_sustained_if_events_and_gaps_are_correct(steps: list[float]) -> None:
    assert ladder(steps, [at + 0.003 for at in steps]) == [(True, True), (True, True)]
    # every 20th event: gaps of 12 and 8 ms, then of 7 and 3 ms
    late = [at + (0.003 if number % 20 else 0.005) for number, at in enumerate(steps)]
    assert ladder(steps, late) == [(True, False), (True, False)]
    # 0.8 ms is 8% of a gap, then 16%
    second = [at + (0.0008 if number % 20 else 0.0) for number, at in enumerate(steps)]
    assert ladder(steps, second) == [(True, True), (True, False)]


def test_a_step_with_lost_events_is_not_sustained(steps: list[float]) -> None:
    assert ladder(steps, [at for at in steps if at < 6.95]) == [(True, True), (True, True)]
    assert ladder(steps, [at for at in steps if at < 6.9]) == [(True, True), (True, False)], (
        "although every gap is correct"
    )


def test_a_slow_server_is_distinguished_from_a_slow_client(steps: list[float]) -> None:
    slow = [at for at in steps if at < 6.0] + [6.0 + k / 150 for k in range(150)]
    assert ladder(slow, slow) == [(True, True), (False, False)]
    assert ladder([at for at in steps if at < 6.0], [at for at in steps if at < 6.0])[1] == (
        False,
        False,
    ), "even if it sends nothing at all"


@pytest.mark.parametrize(
    ("sustained", "events_per_s"),
    [((True, True, True), 3), ((True, False, True), 1), ((False, True, True), 0)],
)
def test_the_sustained_rate_ends_at_the_first_step_that_is_not_sustained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sustained: Any, events_per_s: int
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        calibration,
        "run_calibration_load",
        lambda folder, place, scenario, *plan, **load: asked.append(load) or run(*two()),
    )
    monkeypatch.setattr(
        calibration,
        "measure_load_steps",
        lambda _: [{"asked_per_s": n, "sustained": ok} for n, ok in enumerate(sustained, 1)],
    )
    found = calibration.calibrate(tmp_path, None, 5.0, Placement(Workers(1)))
    assert found.keys() == schema.CALIBRATION_KEYS.keys()
    assert (found["sustained_events_per_s"], found["closed"], found["open"]["requests"]) == (
        events_per_s,
        None,
        2,
    )
    assert asked == [{"rate": 5.0}, {"users": calibration.LADDER_USERS}], (
        "only the kinds of load in the campaign"
    )


# --- with real processes


def command(out: str, what: str) -> list[str]:
    return command_of(
        "calibrate_briefly",
        what,
        "--scenarios-file",
        "mine.toml",
        *QUICK,
        "--servers",
        "fastapi_threadpool",
        "--out",
        out,
    )


def campaign(bench: Bench, out: str, what: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(out, what),
        cwd=bench.folder,
        env=bench.environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE_S,
    )


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    """Marks this process's children as the bench's, and shortens the calibration."""
    monkeypatch.setenv(MARK, bench.mark)
    monkeypatch.setattr(calibration, "SCENARIO", calibration.SCENARIO | calibrate_briefly.SHORT)
    monkeypatch.setattr(calibration, "LADDER_EVENTS_PER_S", calibrate_briefly.LADDER_EVENTS_PER_S)
    monkeypatch.setattr(calibration, "STEP_S", calibrate_briefly.STEP_S)


def test_a_calibration_leaves_nothing(bench: Bench, short: None, tmp_path: Path) -> None:
    (tmp_path / "calibration.partial").mkdir()
    (tmp_path / "calibration.partial" / "left by one that was killed").touch()
    found = calibration.calibrate(tmp_path, 4, 20.0, Placement(Workers(1)))
    assert found.keys() == schema.CALIBRATION_KEYS.keys()
    assert (found["schema"], found["users"], found["rate"]) == (schema.SCHEMA, 4, 20.0)
    for load in (found["closed"], found["open"]):
        assert (
            load["requests"] > 0
            and load["failed"] == 0
            and None not in [load[key] for key in load if key not in ("waited_share",)]
        )
        assert load["ttft_error_mean_s"] > 0, "a token cannot arrive before it was sent"
        assert (
            abs(load["itl_true_p50_s"] - calibration.ITL_MS / 1e3) < 0.005
            and load["server_late_mean_s"] >= 0
        )
    assert [step["asked_per_s"] for step in found["ladder"]] == list(
        calibrate_briefly.LADDER_EVENTS_PER_S
    )
    assert all(step["sent_per_s"] > 0 and step["seen_per_s"] > 0 for step in found["ladder"])
    assert found["sustained_events_per_s"] in (0, *calibrate_briefly.LADDER_EVENTS_PER_S)
    assert list(tmp_path.iterdir()) == [] and bench.left_over() == []
    schema.write_json(tmp_path / "calibration.json", found)  # every value can be written as JSON


def test_a_ground_truth_server_that_does_not_start(
    bench: Bench, short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "TTFT_MS", "never")
    with pytest.raises(locust_process.LoadFailed) as failed:
        calibration.calibrate(tmp_path, 4, None, Placement(Workers(1)))
    sentence, *log = str(failed.value).splitlines()
    assert (
        sentence == "the ground truth server did not start:"
        and "argument --ttft-ms: invalid number value: 'never'" in log[-1]
    )
    assert list(tmp_path.iterdir()) == [] and bench.left_over() == []


def test_a_campaign_calibrates_once(bench: Bench) -> None:
    """Its cases fail, so it can be continued."""
    first = campaign(bench, "calibrated", "no-cases")
    folder = bench.folder / "calibrated"
    assert first.returncode == 1 and "no valid case of" in first.stderr, first.stdout + first.stderr
    assert first.stdout.count("calibrating the load generator: about 30 s\n") == 1
    assert re.search(
        r"^calibrated: the load generator adds -?[\d.]+ ms with 3 users to the P99 of TTFT, and"
        r" measures up to [\d,]+ chunks/s correctly\. A case is invalid if .*\.$",
        first.stdout,
        re.MULTILINE,
    )
    found = (folder / "calibration.json").read_text()
    errors = schema.read_json(folder / "calibration.json")
    assert errors.keys() == schema.CALIBRATION_KEYS.keys()
    assert (errors["users"], errors["rate"]) == (3, None)
    assert errors["closed"]["requests"] > 0 and errors["open"] is None
    again = campaign(bench, "calibrated", "no-cases")
    assert again.returncode == 1, again.stdout + again.stderr
    for done in (first, again):
        assert "case 1 of 1" in done.stdout
    assert "calibrating the load generator" not in again.stdout
    assert (folder / "calibration.json").read_text() == found
    assert {file.name for file in folder.iterdir()} == {
        "campaign.json",
        "calibration.json",
        "cases",
    } and bench.left_over() == []


def test_a_campaign_that_cannot_calibrate_names_the_option_to_skip_it(bench: Bench) -> None:
    done = campaign(bench, "hopeless", "no-server")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: the load generator could not be calibrated (--no-calibration skips this): the"
        " ground truth "
    )
    assert "Traceback" not in done.stderr
    assert [file.name for file in (bench.folder / "hopeless").rglob("*") if file.is_file()] == [
        "campaign.json"
    ] and bench.left_over() == []


@pytest.mark.parametrize("how", ["Ctrl-C", "kill -9"])
def test_an_interrupted_calibration_leaves_no_process(bench: Bench, how: str) -> None:
    """kill -9 leaves the scratch folder; the next calibration replaces it."""
    folder = bench.folder / how.replace(" ", "")
    terminal = Terminal(command(folder.name, "whole"), bench.environment, bench.folder)
    try:
        wait_for(
            lambda: any(folder.glob("calibration.partial/*/load.json")),
            "the load of the calibration",
        )
        terminal.press(b"\x03") if how == "Ctrl-C" else terminal.process.send_signal(signal.SIGKILL)
    finally:
        code = terminal.wait()
    wait_for(lambda: not bench.left_over(), "nothing left running")
    text = ESCAPES.sub("", terminal.text)
    assert not (folder / "calibration.json").exists() and not any((folder / "cases").iterdir())
    if how == "Ctrl-C":
        assert (
            code == 130
            and "Traceback" not in text
            and f"--out {folder.name} continues the campaign" in text
        )
        assert not (folder / "calibration.partial").exists()
