"""Responses: their tokens where an endpoint need not have exact counts, and the server's own
counts.
"""

import pytest

from analysis import checks, metrics
from analysis.checks import load, responses
from tests.helpers.checked_case import FOREIGN, early, failed, rows_with


def foreign(observe, change, indices=range(400)):
    return observe(rows_with(change, indices), **FOREIGN)


def found_by(o, name):
    return next(c for c in checks.run_checks(o) if c.name == name)


def test_a_profiled_endpoint_s_counts_are_compared_too(observe):
    o = foreign(observe, lambda row: row)
    assert failed(o) == {}
    assert found_by(o, "token counts").detail == "4,400 tokens by usage in 4,400 chunks"
    assert metrics.measure_case(o)["goodput_per_s"] == 40


@pytest.mark.parametrize(
    ("change", "name", "severity", "detail"),
    [
        (
            {"tokens": 3000, "token_source": "counted"},
            "token counts",
            "warning",
            "usage cannot be right in 400 of 400 responses, such as 3,000 tokens for 11 requested"
            " and 11 chunks received",
        ),
        (
            {"tokens": 44, "max_tokens": 44},
            "token counts",
            "invalid",
            "usage has 17,600 tokens, but the metrics count 4,400",
        ),
        (
            {"tokens_counted": 30},
            "token counts",
            "warning",
            "400 of 400 responses have more chunks with text than tokens, such as 30 chunks for 11",
        ),
        (
            {"tokens": None, "token_source": "counted"},
            "usage",
            "warning",
            "missing in 400 of 400 responses",
        ),
        (
            {"max_tokens": 20},
            "response lengths",
            "note",
            "100% ended early (mean 11.0 of 20.0 tokens)",
        ),
        ({"max_tokens": 5}, "response lengths", "warning", "100% had more tokens than requested"),
        (
            {"prompt_tokens": 20},
            "prompt lengths",
            "warning",
            "100% of the prompts have fewer tokens by usage than were sent, such as 20 of 32 (mean"
            " 32.0 tokens sent, 20.0 by usage)",
        ),
        (
            {"prompt_tokens": 40},
            "prompt lengths",
            "warning",
            "100% of the prompts have more tokens by usage than were sent, such as 40 of 32",
        ),
    ],
)
def test_a_wrong_count_is_named(observe, change, name, severity, detail):
    o = foreign(observe, lambda row: row.update(change))
    assert failed(o) == {name: severity}
    assert detail in found_by(o, name).detail


@pytest.mark.parametrize(
    ("change", "lengths", "ok", "detail"),
    [
        ({"prompt_tokens": 33}, {}, True, "mean 32.0 tokens sent, 33.0 by usage"),
        ({"prompt_tokens": 40}, {"per_word": 1.3}, True, "mean 32.0 tokens sent, 40.0 by usage"),
        ({"prompt_tokens": 40}, {"source": "assumed"}, None, "the expected number is not known"),
        ({"prompt_tokens_asked": None}, {}, None, "mean 32.0 tokens by usage; the expected number"),
        ({"prompt_tokens": None}, {}, None, "the server does not count the tokens of prompts"),
    ],
)
def test_prompts_may_differ_by_what_is_not_known(observe, change, lengths, ok, detail):
    rows = rows_with(lambda row: row.update(change), range(400))
    found = found_by(observe(rows, **FOREIGN, prompt_lengths=lengths), "prompt lengths")
    assert (found.ok, detail in found.detail) == (ok, True), found


def test_a_few_cut_prompts_are_found_among_many(observe):
    o = foreign(observe, lambda row: row.update(prompt_tokens_asked=3000), range(100, 110))
    assert failed(o) == {"prompt lengths": "warning"}
    assert "2.5% of the prompts have fewer tokens" in found_by(o, "prompt lengths").detail


def test_chunks_of_several_tokens_pass(observe):
    def in_fours(row):
        row.update(tokens_counted=3, token_s=row["token_s"][:3], token_n=[4, 4, 3])

    assert failed(foreign(observe, in_fours)) == {}


def test_a_server_without_usage_is_judged_by_its_chunks(observe):
    def silent(row):
        row.update(tokens=None)

    assert failed(observe(rows=rows_with(silent, range(400)))) == {}
    short = rows_with(silent, range(400))
    short[7].update(token_n=[1] * 9 + [0, 0])
    assert failed(observe(rows=short)) == {"token counts": "invalid"}


CUT = rows_with(
    lambda row: row.update(
        error="cut off", http_status=None, tokens=None, first_s=None, last_s=None
    ),
    [398, 399],
)


NEVER_SENT = rows_with(
    lambda row: row.update(error="connection refused", http_status=None, tokens=None, sent_s=None),
    [399],
)


@pytest.mark.parametrize(
    ("rows", "requests", "tokens", "ok"),
    [
        (CUT, 398, 398 * 11, True),  # the server never saw the failed ones, or does not count them
        (CUT, 400, 398 * 11 + 7, True),  # it counts them, and generated some of their tokens
        (CUT, 397, 398 * 11, False),
        (CUT, 401, 400 * 11, False),
        (CUT, 399, 400 * 11 + 1, False),
        (CUT, 399, 398 * 11 - 1, False),
        (NEVER_SENT, 399, 399 * 11, True),
        (NEVER_SENT, 400, 400 * 11, False),
    ],
)
def test_the_server_may_have_served_failed_requests(observe, rows, requests, tokens, ok):
    assert (
        responses.check_served(observe(rows, served={"requests": requests, "tokens": tokens})).ok
        == ok
    )


def test_the_servers_own_view_where_it_is_partly_unknown(observe):
    unknown_usage = rows_with(lambda row: row.update(tokens=None), [7])
    o = observe(unknown_usage, served={"requests": 400, "tokens": 1})
    assert responses.check_served(o).ok, "without usage, only the requests can be compared"
    for tokens, ok in ((400 * 11, True), (1, False)):  # llama.cpp counts no requests
        assert responses.check_served(observe(served={"tokens": tokens})).ok is ok
    assert responses.check_served(observe(unknown_usage, served={"tokens": 1})).ok is None
    # llama.cpp gives no queue_ms; most servers give no timings
    for unknown in ({"queue_ms": None}, {"prompt_ms": None}):
        check = load.check_own_times(
            observe(rows_with(lambda row, unknown=unknown: row.update(unknown), range(400)))
        )
        assert check.ok is (True if "queue_ms" in unknown else None), check
    few = rows_with(early, range(100, 103))  # 3 of the window's 320: less than 1%
    assert load.check_own_times(observe(few)).ok
