"""Errors: the share that may fail, the order of reasons, and the checks not judged then."""

import pytest

from analysis import checks, metrics
from analysis.checks import errors
from tests.helpers import synthetic_campaign
from tests.helpers.checked_case import COUNTS, broken, failed, rows_with


@pytest.mark.parametrize(
    ("n", "ok", "severity"),
    [(3, True, "warning"), (4, False, "warning"), (16, False, "warning"), (17, False, "invalid")],
)
def test_more_than_5_percent_failed_is_invalid(observe, n, ok, severity):
    found = errors.check_errors(observe(broken(n)))
    assert (found.ok, found.severity) == (ok, severity)


def test_how_many_may_fail_can_be_chosen(observe):
    o = observe(broken(32), data={"max_errors": 0.1})
    assert failed(o)["errors"] == "warning"
    o = observe(broken(8), data={"max_errors": 0.005})
    check = errors.check_errors(o)
    assert check.severity == "invalid" and check.remedy.endswith(
        "--max-errors sets the share that may fail, here 0.5%"
    )


def test_the_most_frequent_reason_comes_first_with_the_server_s_message(observe):
    rows = broken(32, "http 500", "CUDA error: device-side assert")
    for row in rows[112:120]:
        synthetic_campaign.fail(row, "timeout")
    check = errors.check_errors(observe(rows))
    assert check.detail == (
        "12.5% failed: 10% http 500: CUDA error: device-side assert; 2.5% timeout"
    )
    assert "lower the load" not in check.remedy
    assert "lower the load" in errors.check_errors(observe(broken(32, "http 429"))).remedy


LOAD_CHECKS = {"arrivals", "load generator's CPU", "send lag", "client error", "steadiness"}


def test_a_dead_server_is_not_client_bound(observe):
    """It refuses at once, so a closed loop sends as fast as the client can."""
    rows = broken(400, "http 500", "CUDA error", start=0)
    for row in rows:
        row["sent_s"] = row["scheduled_s"] + 0.02
    worker = {"worker": 0, "rows": 400, "cpu_share": 0.97, "waited_share": 0.5}
    o = observe(
        rows,
        synthetic_campaign.telemetry(load_cores=1.9),
        load_workers=[worker],
        rate=60.0,
        counts=COUNTS | {"planned": 480},
    )
    found = checks.run_checks(o)
    assert found[0].detail == "100% http 500: CUDA error"
    assert failed(o) == {"errors": "invalid"}
    judged = {c.name: c.detail for c in found if c.name in LOAD_CHECKS}
    assert judged.keys() == LOAD_CHECKS
    assert set(judged.values()) == {"not judged because 100% of the requests failed"}


def test_a_late_client_s_timeouts_do_not_excuse_it(observe):
    o = observe(broken(40, "timeout"), synthetic_campaign.telemetry(load_cores=0.9))
    assert failed(o) == {"errors": "invalid", "load generator's CPU": "invalid"}


def test_a_response_without_a_token_failed_whatever_its_row_says(observe):
    """Rows from before the parser refused them are like this."""
    rows = synthetic_campaign.requests()
    for row in rows:
        row |= {"first_s": None, "last_s": None, "tokens": None, "token_s": [], "token_n": []}
    o = observe(rows)
    assert errors.check_errors(o).detail == "100% no token"
    values = metrics.measure_case(o)
    assert values["output_tokens_per_s"] == values["requests_per_s"] == 0
    assert values["e2e_p50_s"] == float("inf") and values["goodput_per_s"] == 0


def test_a_load_that_ended_before_its_window_is_judged_by_all_its_requests(observe):
    o = observe(broken(40, "http 404", start=0)[:40], window={"start_s": 2.0, "end_s": 2.5})
    assert errors.check_errors(o).detail == "100% http 404"


def test_resent_requests_and_pauses_are_counted(observe):
    def resend(n):
        return observe(rows_with(lambda row: row.update(resent=True), range(n)))

    assert failed(resend(0)) == {}
    assert failed(resend(3)) == {"resent requests": "note"}
    assert failed(resend(5)) == {"resent requests": "warning"}
    assert "5 of 400 requests were sent twice" in errors.check_resent(resend(5)).detail
    old = synthetic_campaign.requests()
    for row in old:
        del row["resent"]
    assert errors.check_resent(observe(old)) is None

    def pause(row):
        synthetic_campaign.fail(row, "http 429")
        row["retry_after_s"] = 5.0

    o = observe(rows_with(pause))
    assert failed(o) == {"errors": "warning", "Retry-After": "warning"}
    assert "10 of 400 responses asked for a pause of 5 s" in (errors.check_retry_after(o).detail)
