"""Failures: responses without a token, all kinds of errors, cut streams, false usage.

None of them is ranked, recommended or valid. The reason is the server's own message, and the exit
code shows that there is no valid case.
"""

import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from loadtests.client.http import request_id
from tests.helpers.campaign_process import Bench
from tests.helpers.endpoint_campaign import (
    SCENARIOS,
    UNTRUE,
    Measured,
    check_invalid,
    check_no_winner,
    check_reasons,
    check_refused,
    measure_script,
    measure_valid,
)
from tests.helpers.endpoint_kinds import ERROR, NO_SUCCESS
from tests.helpers.endpoint_load import measure_load, measure_undisturbed
from tests.helpers.endpoint_script import ALWAYS, DONE, LOAD, Failure, Script, serve_script

slow = pytest.mark.slow

QUICK = ("only [DONE]", "error after 10")


def failure_of(name: str, when: str) -> Failure:
    events, after, _ = NO_SUCCESS[name]
    kind = "text/html" if name == "HTML" else "text/event-stream"
    return Failure(events=events, after_tokens=after, content_type=kind, when=when)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else slow) for name in NO_SUCCESS]
)
def test_no_success(tmp_path: Path, name: str) -> None:
    """It fails only under load, so nothing shows it before."""
    _, _, words = NO_SUCCESS[name]
    measured = measure_load(tmp_path, Script(failure=failure_of(name, LOAD)))
    check_reasons(measured, words[-1])
    assert measured.rows
    for row in measured.rows:
        check_failed_row(row, name)
    check_no_numbers(measured)


def check_failed_row(row: dict[str, Any], name: str) -> None:
    assert row["error"], (name, row)
    for word in NO_SUCCESS[name][2]:
        assert word in f"{row['error']} {row['error_detail']}", (name, row)


def check_no_numbers(measured: Measured) -> None:
    case = measured.case
    assert not case["goodput_per_s"] > 0 and not case["error_share"] < 1
    assert not case["output_tokens_per_s"] > 0


def test_a_campaign_without_a_success(bench: Bench, tmp_path: Path) -> None:
    """Each request fails in a different way, and each row has its own reason."""
    kinds = {name: {"failure": failure_of(name, LOAD)} for name in NO_SUCCESS}
    script = Script(step_s=0.001, kinds=kinds)
    measured = measure_script(
        bench, tmp_path, script, "--report", "page", "--users", "8", "--duration", "6"
    )
    check_invalid(measured)
    served = {each.headers["x-request-id"]: each.kind for each in measured.endpoint.load()}
    met = set()
    for row in measured.all_rows:
        # the end of a load that fails cuts off what is in flight
        if not str(row["error"]).startswith("cut off"):
            kind = served[request_id(row["worker"], row["request"])]
            check_failed_row(row, kind)
            met.add(kind)
    assert met == set(NO_SUCCESS)
    check_no_numbers(measured)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else slow) for name in NO_SUCCESS]
)
def test_no_success_from_the_start(tmp_path: Path, name: str) -> None:
    """Nothing is measured, and the error shows the server's message."""
    measured = measure_load(tmp_path, Script(failure=failure_of(name, ALWAYS)))
    check_refused(measured, *(("breaks off",) if name == "cut" else NO_SUCCESS[name][2]))
    assert not measured.endpoint.load()


CUDA = "CUDA error: device-side assert triggered"


@pytest.mark.parametrize("scenario", ["chats", pytest.param("open", marks=slow)])
def test_every_request_of_the_load_fails(bench: Bench, tmp_path: Path, scenario: str) -> None:
    """The load ends long before its window would."""
    failure = Failure(500, CUDA, when=LOAD)
    began_s = time.monotonic()
    measured = measure_script(
        bench, tmp_path, Script(failure=failure), "--duration", "120", scenarios=scenario
    )
    check_invalid(measured, "http 500", CUDA)
    why = str(measured.case["why"])
    assert "100%" in why or "all requests" in why, why
    assert CUDA in measured.text
    reasons = {row["error"] for row in measured.rows}
    assert {reason for reason in reasons if not reason.startswith("cut off")} == {"http 500"}
    assert len(measured.endpoint.load()) < 2000
    assert time.monotonic() - began_s < 60


STATUSES = {
    "http 500": Failure(500, CUDA, when=LOAD),
    "http 503": Failure(503, "no healthy upstream", when=LOAD),
    "http 404": Failure(404, "Not Found", when=LOAD),
    "http 401": Failure(401, "Incorrect API key provided: sk-abcdefghijklmnop", when=LOAD),
    "http 429": Failure(429, "quota exceeded", retry_after="30", when=LOAD),
}


@pytest.mark.parametrize("scenario", ["chats", "texts"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "http 401" else slow) for name in STATUSES]
)
def test_statuses_of_the_load(tmp_path: Path, name: str, scenario: str) -> None:
    measured = measure_load(tmp_path, Script(failure=STATUSES[name]), scenario=scenario)
    check_reasons(measured, name, STATUSES[name].words.partition(":")[0])
    assert {row["error"] for row in measured.rows} == {name}
    assert "abcdefghijklmnop" not in str(measured.case["why"]) + str(measured.rows)


FAILS_NOW_AND_THEN = {"first_s": 0.05, "step_s": 0.004}


def test_more_than_a_twentieth_fails(bench: Bench, tmp_path: Path) -> None:
    failure = Failure(500, CUDA, when=LOAD, every=8)
    script = Script(**FAILS_NOW_AND_THEN, failure=failure)
    measured = measure_script(bench, tmp_path, script, "--report", "page")
    check_invalid(measured, "http 500", CUDA)
    check_some_failed(measured)


def test_a_quarter_fails(tmp_path: Path) -> None:
    failure = Failure(500, CUDA, when=LOAD, every=4)
    measured = measure_load(tmp_path, Script(**FAILS_NOW_AND_THEN, failure=failure))
    check_reasons(measured, "http 500", CUDA)
    check_some_failed(measured)


def check_some_failed(measured: Measured) -> None:
    failed = [row for row in measured.rows if row["error"]]
    assert 0.05 < len(failed) / len(measured.rows) < 0.5
    assert measured.case["goodput_per_s"] <= measured.case["requests_per_s"]


@slow
def test_less_than_a_twentieth_fails(bench: Bench, tmp_path: Path) -> None:
    """The case stays valid and reports the failures, and throughput leaves out their tokens."""
    failure = Failure(events=(f"data: {ERROR}\n\n",), after_tokens=10, when=LOAD, every=40)
    script = Script(first_s=0.1, step_s=0.002, failure=failure)
    measured = measure_valid(bench, tmp_path, script, "--duration", "6")
    assert 0 < measured.case["error_share"] <= 0.05


@slow
def test_a_capacity_search_finds_none(bench: Bench, tmp_path: Path) -> None:
    failure = Failure(events=(DONE,), when=LOAD)
    measured = measure_script(
        bench, tmp_path, Script(failure=failure), "--find-capacity", "--report", "page"
    )
    assert measured.done.returncode != 0, measured.text
    assert "no token" in measured.text
    check_no_winner(measured.text)


@slow
def test_recommend_and_compare_find_none(bench: Bench, tmp_path: Path) -> None:
    measured = measure_load(tmp_path, Script(failure=Failure(500, CUDA, when=LOAD)))
    folder = str(measured.folder)
    for command in (
        ("recommend", folder, "--rate", "5"),
        ("compare", folder, folder),
        ("checks", folder),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "analysis", *command],
            cwd=bench.folder,
            env=bench.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode != 0, (command, done.stdout)
        assert "Traceback" not in done.stderr, done.stderr
        check_no_winner(done.stdout + done.stderr)


@slow
def test_a_gate_with_a_broken_head(bench: Bench, tmp_path: Path) -> None:
    failure = Failure(500, CUDA, when=LOAD)
    with (
        serve_script(tmp_path / "base", Script()) as base,
        serve_script(tmp_path / "head", Script(failure=failure)) as head,
    ):
        done = run_gate(bench, base.url, head.url)
    assert done.returncode == 2, done.stdout + done.stderr
    assert CUDA in done.stdout + done.stderr
    check_no_winner(done.stdout)


def run_gate(bench: Bench, base: str, head: str) -> "subprocess.CompletedProcess[str]":
    (bench.folder / "endpoints.toml").write_text(SCENARIOS)
    servers = ("--base-server", base, "--head-server", head)
    load = ("--scenarios-file", "endpoints.toml", "--scenarios", "chats", "--duration", "3")
    return subprocess.run(
        [sys.executable, "-m", "loadtests.gate", *servers, *load, "--max-minutes", "0.01"],
        cwd=bench.folder,
        env=bench.environment,
        capture_output=True,
        text=True,
    )


@slow
def test_a_server_that_dies_under_load(bench: Bench, tmp_path: Path) -> None:
    """The report does not blame the load generator."""
    gone = Failure(after_requests=10, dies=True, when=LOAD)
    measured = measure_script(bench, tmp_path, Script(failure=gone), "--report", "page")
    assert measured.done.returncode != 0
    text = measured.text + str(measured.cases["why"].tolist())
    assert not measured.cases["valid"].any()
    assert not UNTRUE.search(text), text
    assert "no server listens" in text or "refused" in text, text
    check_no_winner(text)


FALSE_USAGE: dict[str, dict[str, Any]] = {
    "1,000 times": {"usage_times": 1000},
    "50 times": {"usage_times": 50},
    "none of them": {"usage_times": 0},
    "a thousandth": {"usage_says": 1},
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "1,000 times" else slow) for name in FALSE_USAGE],
)
def test_usage_that_cannot_be_true_is_named(tmp_path: Path, name: str) -> None:
    """TPOT and throughput ignore it."""
    script = {"first_s": 0.1, "step_s": 0.005} | FALSE_USAGE[name]
    measured = measure_undisturbed(tmp_path, Script(**script))
    why = str(measured.case["why"])
    assert "usage" in why + measured.notes
    for row in measured.rows:
        assert row["token_source"] == "counted"
    case = measured.case
    if case["valid"]:
        assert math.isnan(case["tpot_p50_s"]) or case["tpot_p50_s"] == pytest.approx(0.005, 0.1)
        assert case["output_tokens_per_s"] < 2 * 200
    else:
        assert "usage" in why


def test_usage_that_includes_the_prompt_is_refused(tmp_path: Path) -> None:
    """Rates would include tokens that were never generated."""
    measured = measure_load(tmp_path, Script(usage_adds_prompt=True))
    check_refused(measured, "completion_tokens", "prompt")
    assert not measured.endpoint.load()
