"""The framing of streams, and the HTTP around them."""

import itertools
from pathlib import Path

import pytest

from loadtests.client.http import request_id
from tests.helpers.campaign_process import Bench
from tests.helpers.endpoint_campaign import (
    CALM,
    check_reasons,
    check_refused,
    measure_script,
    measure_valid,
)
from tests.helpers.endpoint_kinds import FRAMES, INTERIM, KINDS_OF_STREAMS
from tests.helpers.endpoint_load import measure_load, measure_valid_load
from tests.helpers.endpoint_script import LOAD, Failure, Script

slow = pytest.mark.slow
QUICK = ("all of it", "CR")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else slow) for name in FRAMES]
)
def test_a_stream_is_read_as_the_standard_defines_it(tmp_path: Path, name: str) -> None:
    measured = measure_valid_load(tmp_path, Script(**CALM | FRAMES[name]))
    for row in measured.rows:
        assert row["error"] is None
        assert sum(row["token_n"]) == row["tokens"] == row["max_tokens"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "several" else slow) for name in INTERIM]
)
def test_responses_before_the_final_one(tmp_path: Path, name: str) -> None:
    measured = measure_valid_load(tmp_path, Script(**CALM, interim=INTERIM[name]))
    assert {row["http_status"] for row in measured.rows} == {200}


def test_a_load_reads_each_response_whatever_kind_it_is(bench: Bench, tmp_path: Path) -> None:
    """The load generator's own reader reads all of them in one campaign, one after the other."""
    script = Script(**CALM, kinds=KINDS_OF_STREAMS)
    measured = measure_valid(
        bench, tmp_path, script, "--users", "6", "--duration", "6", scenarios="chats48"
    )
    rows = {request_id(row["worker"], row["request"]): row for row in measured.rows}
    met = set()
    for served in measured.served():
        row = rows[served.headers["x-request-id"]]
        assert (row["error"], row["http_status"]) == (None, 200), served.kind
        assert sum(row["token_n"]) == row["tokens"] == 48, served.kind
        assert row["reasoning_tokens"] == served.reasoning, served.kind
        assert served.first_visible_s is not None
        seen_s = row["first_visible_s"] + measured.run["clock_zero_s"]
        assert -0.001 < seen_s - served.first_visible_s < 0.05, served.kind
        met.add(served.kind)
    assert met == set(KINDS_OF_STREAMS)


def test_a_connection_that_closes_when_it_is_used_again(bench: Bench, tmp_path: Path) -> None:
    """Each request is sent a second time, and a check warns of it."""
    script = Script(**CALM | {"first_s": 0.4}, serves=1)  # each also waits for a new connection
    measured = measure_valid(bench, tmp_path, script)
    resent = [row for row in measured.rows if row["resent"]]
    assert resent and all(row["error"] is None for row in measured.rows)
    assert len(resent) >= len(measured.rows) - 2
    [check] = measured.checks[measured.checks["name"] == "resent requests"].itertuples()
    resent = sum(row["resent"] for row in measured.all_rows)
    assert (check.ok, check.severity) == (False, "warning") and check.detail.startswith(
        f"{resent:,}"
    )


def test_a_connection_that_closes_after_a_few(tmp_path: Path) -> None:
    measured = measure_valid_load(tmp_path, Script(**CALM, serves=2), window_s=2.0)
    assert all(row["error"] is None for row in measured.rows)
    assert 0 < sum(row["resent"] for row in measured.rows) < len(measured.rows)
    [note] = [
        check.detail for check in measured.checks.itertuples() if check.name == "resent requests"
    ]
    assert "were sent twice" in note


def test_a_connection_that_never_responds(tmp_path: Path) -> None:
    """A new connection that closes is a failure, and is not retried endlessly."""
    check_refused(measure_load(tmp_path, Script(serves=0), model="m"))


REFUSAL = "Rate limit reached for requests"


def test_a_refusal_with_retry_after_is_reported(tmp_path: Path) -> None:
    failure = Failure(429, REFUSAL, retry_after="7", when=LOAD, every=2)
    measured = measure_load(tmp_path, Script(**CALM, failure=failure))
    check_reasons(measured, "http 429", REFUSAL)
    refused = [row for row in measured.rows if row["error"]]
    assert {row["retry_after_s"] for row in refused} == {7.0}
    assert {row["error"] for row in refused} == {"http 429"}
    assert all(REFUSAL in row["error_detail"] for row in refused)


@slow
@pytest.mark.parametrize(("option", "respected"), [(("--respect-retry-after",), True), ((), False)])
def test_a_user_respects_retry_after_with_the_option(
    bench: Bench, tmp_path: Path, option: tuple[str, ...], respected: bool
) -> None:
    failure = Failure(429, REFUSAL, retry_after="1", when=LOAD, every=2)
    measured = measure_script(bench, tmp_path, Script(**CALM, failure=failure), *option)
    waits = []
    for user in (0, 1):
        rows = sorted(
            (row for row in measured.rows if row["user"] == user), key=lambda row: row["sent_s"]
        )
        waits += [
            after["sent_s"] - before["done_s"]
            for before, after in itertools.pairwise(rows)
            if before["error"] == "http 429"
        ]
    assert len(waits) >= 2
    assert min(waits) >= 1 if respected else max(waits) < 0.5


@pytest.mark.parametrize("retry_after", ["", "Wed, 21 Oct 2026 07:28:00 GMT", "soon", "-3"])
def test_other_values_of_retry_after(tmp_path: Path, retry_after: str) -> None:
    failure = Failure(429, REFUSAL, retry_after=retry_after, when=LOAD)
    check_reasons(measure_load(tmp_path, Script(failure=failure)), "429", REFUSAL)
