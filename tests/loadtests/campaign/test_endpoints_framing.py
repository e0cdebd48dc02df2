"""How a stream is framed, and what HTTP allows around it."""

import itertools
from pathlib import Path

import pytest

from tests.helpers.campaign_process import Bench
from tests.helpers.endpoint_campaign import CALM, check_invalid, measure_script, measure_valid
from tests.helpers.endpoint_kinds import FRAMES
from tests.helpers.endpoint_script import LOAD, Failure, Script

slow = pytest.mark.slow
QUICK = ("all of it", "CR")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else slow) for name in FRAMES]
)
def test_a_stream_is_read_as_the_standard_defines_it(
    bench: Bench, tmp_path: Path, name: str
) -> None:
    measured = measure_valid(bench, tmp_path, Script(**CALM | FRAMES[name]))
    for row in measured.rows:
        assert row["error"] is None
        assert sum(row["token_n"]) == row["tokens"] == row["max_tokens"]


INTERIM: dict[str, tuple[str, ...]] = {
    "100": ("HTTP/1.1 100 Continue\r\n\r\n",),
    "103": ("HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n",),
    "several": ("HTTP/1.1 102 Processing\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "several" else slow) for name in INTERIM]
)
def test_responses_before_the_final_one(bench: Bench, tmp_path: Path, name: str) -> None:
    measured = measure_valid(bench, tmp_path, Script(**CALM, interim=INTERIM[name]))
    assert {row["http_status"] for row in measured.rows} == {200}


@pytest.mark.parametrize("serves", [1, pytest.param(3, marks=slow)])
def test_a_connection_that_closes_when_it_is_used_again(
    bench: Bench, tmp_path: Path, serves: int
) -> None:
    """One resend each, counted and shown."""
    script = Script(**CALM, serves=serves)
    measured = measure_valid(bench, tmp_path, script, "--report", "page")
    resent = [row for row in measured.rows if row["resent"]]
    assert resent and all(row["error"] is None for row in measured.rows)
    if serves == 1:
        assert len(resent) >= len(measured.rows) - 2
    assert "resent" in (measured.folder / "report.md").read_text()


@slow
def test_a_connection_that_never_responds(bench: Bench, tmp_path: Path) -> None:
    """A new connection that closes is a failure, and is not asked again for ever."""
    script = Script(serves=0)
    measured = measure_script(bench, tmp_path, script, "--model", "m")
    assert measured.done.returncode != 0
    assert "Traceback" not in measured.text


REFUSAL = "Rate limit reached for requests"


def test_a_refusal_with_retry_after_is_reported(bench: Bench, tmp_path: Path) -> None:
    failure = Failure(429, REFUSAL, retry_after="7", when=LOAD, every=2)
    measured = measure_script(bench, tmp_path, Script(**CALM, failure=failure))
    text = check_invalid(measured, "http 429", REFUSAL)
    assert "429" in text
    refused = [row for row in measured.rows if row["error"]]
    assert {row["retry_after_s"] for row in refused} == {7.0}
    assert {row["error"] for row in refused} == {"http 429"}
    assert all(REFUSAL in row["error_detail"] for row in refused)


@slow
@pytest.mark.parametrize(("option", "respected"), [(("--respect-retry-after",), True), ((), False)])
def test_a_user_waits_as_long_as_the_server_asks_for(
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


@slow
@pytest.mark.parametrize("retry_after", ["", "Wed, 21 Oct 2026 07:28:00 GMT", "soon", "-3"])
def test_other_values_of_retry_after(bench: Bench, tmp_path: Path, retry_after: str) -> None:
    failure = Failure(429, REFUSAL, retry_after=retry_after, when=LOAD)
    measured = measure_script(bench, tmp_path, Script(**CALM, failure=failure))
    check_invalid(measured, "429", REFUSAL)
