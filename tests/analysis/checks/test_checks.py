"""Each check is silent on a clean case and fires on the one that breaks it."""

import pytest

from analysis import checks, metrics
from analysis.case import CaseData
from analysis.checks import errors, load, responses, verdict
from tests.helpers import synthetic_campaign
from tests.studies import steadiness


def failed(o: CaseData) -> dict[str, str]:
    return {c.name: c.severity for c in checks.run_checks(o) if c.ok is False}


def test_a_clean_case_passes_everything(observe):
    for o in (
        observe(samples=synthetic_campaign.telemetry(gpus=1)),
        observe(users=None, rate=40.0, counts=COUNTS | {"planned": 320}),
    ):
        assert failed(o) == {}
        assert [c.name for c in checks.run_checks(o) if c.ok is None] == []
    assert {c.name for c in checks.run_checks(observe())} | {"arrivals", "GPU clocks"} >= {
        "contract",
        "answers",
        "rows",
        "token counts",
        "errors",
        "load generator's CPU",
        "send lag",
        "steadiness",
        "other processes",
        "steal",
        "swap",
        "P99 sample",
        "unanswered",
        "server's counts",
        "server's times",
    }


def rows_with(change, indices=range(100, 110)):
    rows = synthetic_campaign.requests()
    for i in indices:
        change(rows[i])
    return rows


BAD = [{"name": "stream trickles", "ok": False, "detail": "one chunk"}]
COUNTS = {"sent": 400, "rows": 400, "locust_requests": 400, "locust_failures": 0, "cut_off": 0}


def drifting(share):
    """In the second half of the window `share` of the requests' tokens are missing."""
    rows = synthetic_campaign.requests()
    for i, row in enumerate(rows):
        if row["scheduled_s"] >= 6 and i % 10 < 10 * share:
            row |= {"token_s": row["token_s"][:1], "token_n": [1]}
            row |= dict.fromkeys(("tokens", "tokens_counted", "max_tokens"), 1)
    return rows


def growing(share):
    """E2E and TTFT grow by `share` of their mean over the window, tokens/s stay: a queue that
    grows.
    """
    rows = synthetic_campaign.requests()
    for row in rows:
        later = 0.15 * share * (row["scheduled_s"] - 6) / 8
        row |= {name: row[name] + later for name in ("first_s", "last_s", "done_s")} | {
            "prompt_ms": row["prompt_ms"] + 1e3 * later
        }
    return rows


def late(row):
    row.update(sent_s=row["scheduled_s"] + 0.02, prompt_ms=row["prompt_ms"] - 20)


def early(row):
    """The server says that it began later than its first token was here."""
    row.update(queue_ms=1.0 + 1.5, prompt_ms=50.0)


def held_back(ms):
    return lambda row: row.update(predicted_ms=100.0 + ms)


def samples_with(**changes):
    return [
        sample | {key: change(i) for key, change in changes.items()}
        for i, sample in enumerate(synthetic_campaign.telemetry())
    ]


def gpu_samples(**changes):
    samples = synthetic_campaign.telemetry(gpus=1)
    for i, sample in enumerate(samples):
        sample["gpus"][0] |= {key: change(i) for key, change in changes.items()}
    return samples


@pytest.mark.parametrize(
    ("name", "severity", "case"),
    [
        ("contract", "invalid", {"verify_before": BAD}),
        ("contract", "invalid", {"verify_after": BAD}),
        ("contract", "invalid", {"verify_after": None}),
        ("contract", "invalid", {"verify_before": []}),
        ("answers", "invalid", {"rows": rows_with(lambda row: row.update(answer="wrong"), [399])}),
        (
            "answers",
            "invalid",
            {"rows": rows_with(lambda row: row.update(answer="unchecked"), [7])},
        ),
        ("agreement", "warning", {"agreement": {"with": "alpha/hf", "share": 0.75}}),
        ("rows", "invalid", {"counts": COUNTS | {"locust_requests": 401}}),
        ("rows", "invalid", {"counts": COUNTS | {"sent": 399}}),
        ("rows", "invalid", {"rows": synthetic_campaign.requests()[:-1]}),
        ("server's counts", "invalid", {"served": {"requests": 399, "tokens": 4400}}),
        ("server's counts", "invalid", {"served": {"requests": 401, "tokens": 4400}}),
        ("server's counts", "invalid", {"served": {"requests": 400, "tokens": 4399}}),
        ("server's counts", "invalid", {"served": {"requests": -30, "tokens": 4400}}),
        (
            "server's counts",
            "warning",
            {"served": {"requests": 900, "tokens": 9900}, "command": None},
        ),
        ("token counts", "invalid", {"rows": rows_with(lambda row: row.update(tokens=10), [7])}),
        ("token counts", "invalid", {"rows": rows_with(lambda row: row.update(tokens=None), [7])}),
        (
            "token counts",
            "invalid",
            {"rows": rows_with(lambda row: row.update(token_n=[1] * 9 + [0, 0]), [7])},
        ),
        ("errors", "warning", {"rows": rows_with(synthetic_campaign.fail)}),
        ("arrivals", "invalid", {"users": None, "rate": 60.0, "counts": COUNTS | {"planned": 480}}),
        (
            "arrivals",
            "invalid",
            {
                "users": None,
                "rate": 40.0,
                "counts": COUNTS | {"planned": 320},
                "rows": rows_with(lambda row: row.update(sent_s=None), range(200, 220)),
            },
        ),
        (
            "load generator's CPU",
            "invalid",
            {"samples": synthetic_campaign.telemetry(load_cores=0.9)},
        ),
        ("send lag", "invalid", {"rows": rows_with(late)}),
        ("server's times", "warning", {"rows": rows_with(early)}),
        ("server's times", "warning", {"rows": rows_with(held_back(13.0), range(400))}),
        ("server's times", "warning", {"rows": rows_with(held_back(-13.0), range(400))}),
        ("steadiness", "invalid", {"rows": drifting(0.5)}),
        ("steadiness", "warning", {"rows": drifting(0.1)}),
        ("steadiness", "invalid", {"rows": growing(0.25)}),
        ("other processes", "warning", {"samples": synthetic_campaign.telemetry(other_cores=1.0)}),
        ("steal", "warning", {"samples": samples_with(cpu_steal_s=lambda i: 0.05 * i)}),
        ("swap", "warning", {"samples": samples_with(swap_used_bytes=lambda i: i * 2**20)}),
        (
            "GPU clocks",
            "warning",
            {"samples": gpu_samples(throttle_reasons=lambda i: 0x40 if i == 20 else 0)},
        ),
        (
            "GPU clocks",
            "warning",
            {"samples": gpu_samples(sm_clock_mhz=lambda i: 1980.0 if i < 25 else 1500.0)},
        ),
        ("P99 sample", "warning", {"window": {"start_s": 2.0, "end_s": 9.0}}),
        ("unanswered", "warning", {"counts": COUNTS | {"cut_off": 3}}),
    ],
)
def test_a_check_fires_alone(observe, name, severity, case):
    o = observe(**case)
    assert failed(o) == {name: severity}
    assert bool(verdict.failed_checks(checks.run_checks(o))) == (severity == "invalid")
    for check in checks.run_checks(o):
        assert check.remedy and check.detail, check.name


# --- errors


def broken(n, error="http 500", detail=None, start=80):
    """`n` requests of the window's 320 failed."""
    rows = synthetic_campaign.requests()
    for row in rows[start : start + n]:
        synthetic_campaign.fail(row, error, detail)
    return rows


@pytest.mark.parametrize(
    ("n", "ok", "severity"),
    [(3, True, "warning"), (4, False, "warning"), (16, False, "warning"), (17, False, "invalid")],
)
def test_more_than_5_percent_failed_is_no_number(observe, n, ok, severity):
    found = errors.check_errors(observe(broken(n)))
    assert (found.ok, found.severity) == (ok, severity)


def test_how_many_may_fail_can_be_chosen(observe):
    o = observe(broken(32), data={"max_errors": 0.1})
    assert failed(o)["errors"] == "warning"
    o = observe(broken(8), data={"max_errors": 0.005})
    check = errors.check_errors(o)
    assert check.severity == "invalid" and check.remedy.endswith(
        "--max-errors sets how many may fail, here 0.5%"
    )


def test_the_most_frequent_reason_comes_first_with_the_server_s_words(observe):
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
    """It refuses at once, so that a closed loop asks as often as the client can."""
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
    assert found[0].detail == "100% failed: 100% http 500: CUDA error"
    assert failed(o) == {"errors": "invalid"}
    judged = {c.name: c.detail for c in found if c.name in LOAD_CHECKS}
    assert judged.keys() == LOAD_CHECKS
    assert set(judged.values()) == {"not judged, since 100% of the requests failed"}


def test_a_late_client_s_time_outs_do_not_excuse_it(observe):
    o = observe(broken(40, "timeout"), synthetic_campaign.telemetry(load_cores=0.9))
    assert failed(o) == {"errors": "invalid", "load generator's CPU": "invalid"}


def test_a_response_without_a_token_failed_whatever_its_row_says(observe):
    """As rows from before the parser refused them."""
    rows = synthetic_campaign.requests()
    for row in rows:
        row |= {"first_s": None, "last_s": None, "tokens": None, "token_s": [], "token_n": []}
    o = observe(rows)
    assert errors.check_errors(o).detail == "100% failed: 100% no token"
    values = metrics.measure_case(o)
    assert values["output_tokens_per_s"] == values["requests_per_s"] == 0
    assert values["e2e_p50_s"] == float("inf") and values["goodput_per_s"] == 0


def test_a_load_that_ended_before_its_window_is_judged_by_all_its_requests(observe):
    o = observe(broken(40, "http 404", start=0)[:40], window={"start_s": 2.0, "end_s": 2.5})
    assert errors.check_errors(o).detail == "100% failed: 100% http 404"


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
    assert "10 of 400 responses the server asked for a pause of 5 s" in (
        errors.check_retry_after(o).detail
    )


# --- token counts of endpoints that are not held to them

PROFILE = {
    "base_url": "http://127.0.0.1:8000",
    "dialect": {
        "root": "/v1",
        "query": "",
        "max_tokens_field": "max_tokens",
        "omitted": ["ignore_eos"],
        "usage": "stream",
        "has_system_role": True,
    },
    "model": "m",
    "models": ["m"],
    "endpoints": ["chat", "completions"],
    "fields": {"ignore_eos": "refused"},
    "usage": "stream",
    "tokens_per_chunk": 1.0,
    "reasoning": None,
    "early_chunks": 0,
    "repeats_alone": True,
    "repeats_under_load": False,
    "tokens_per_word": 1.3,
    "template_tokens": 9,
    "context": 4096,
    "metrics": None,
    "notes": ["greedy text is not stable under load: 20% of the responses differ"],
}
FOREIGN = {
    "engine": "external",
    "data": {"model": {"name": "m", "planted": False}},
    "profile": PROFILE,
}


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
    ("change", "name", "severity", "says"),
    [
        (
            {"tokens": 3000, "token_source": "counted"},
            "token counts",
            "warning",
            "usage cannot be right in 400 of 400 responses, such as 3,000 tokens where 11 were"
            " asked for and 11 chunks came",
        ),
        (
            {"tokens": 44, "max_tokens": 44},
            "token counts",
            "invalid",
            "usage has 17,600 tokens, and the numbers count 4,400",
        ),
        (
            {"tokens_counted": 30},
            "token counts",
            "warning",
            "more chunks with text than tokens in 400 of 400 responses, such as 30 chunks for 11",
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
        ({"max_tokens": 5}, "response lengths", "warning", "100% had more tokens than asked for"),
    ],
)
def test_what_is_wrong_with_a_count_is_named(observe, change, name, severity, says):
    o = foreign(observe, lambda row: row.update(change))
    assert failed(o) == {name: severity}
    assert says in found_by(o, name).detail


def test_chunks_of_several_tokens_are_no_difference(observe):
    def in_fours(row):
        row.update(tokens_counted=3, token_s=row["token_s"][:3], token_n=[4, 4, 3])

    assert failed(foreign(observe, in_fours)) == {}


def test_causes_come_in_their_order(observe):
    """Errors, wrong answers, the contract, lengths, rows; then the load generator, the machine."""
    names = [
        c.name
        for c in checks.run_checks(
            observe(
                broken(8, "http 429"),
                synthetic_campaign.telemetry(gpus=1),
                users=None,
                rate=40.0,
                counts=COUNTS | {"planned": 320},
                agreement={"with": "alpha/hf", "share": 0.75},
                **FOREIGN,
            )
        )
    ]
    order = [
        "errors",
        "answers",
        "contract",
        "token counts",
        "response lengths",
        "rows",
        "arrivals",
        "client error",
        "steadiness",
        "other processes",
    ]
    assert [name for name in names if name in order] == order


def test_who_never_gives_usage_is_judged_by_its_chunks(observe):
    def silent(row):
        row.update(tokens=None)

    assert failed(observe(rows=rows_with(silent, range(400)))) == {}
    short = rows_with(silent, range(400))
    short[7].update(token_n=[1] * 9 + [0, 0])
    assert failed(observe(rows=short)) == {"token counts": "invalid"}


def test_throttling_outside_the_window_does_not_matter(observe):
    assert (
        failed(observe(samples=gpu_samples(throttle_reasons=lambda i: 0x40 if i < 8 else 0x4)))
        == {}
    )


def test_what_was_not_measured_is_neither_good_nor_bad(observe):
    o = observe(
        rows=[],
        samples=[],
        counts=None,
        served=None,
        engine="hf",
        data={"model": {"planted": False}},
    )
    unknown = {c.name for c in checks.run_checks(o) if c.ok is None}
    assert unknown >= {
        "answers",
        "token counts",
        "rows",
        "errors",
        "send lag",
        "steadiness",
        "other processes",
        "swap",
        "unanswered",
        "server's counts",
        "server's times",
    }
    assert failed(o) == {"P99 sample": "warning"}


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
        (CUT, 398, 398 * 11, True),  # the server never saw them, or does not count them
        (CUT, 400, 398 * 11 + 7, True),  # it counts them, and has made some of their tokens
        (CUT, 397, 398 * 11, False),
        (CUT, 401, 400 * 11, False),
        (CUT, 399, 400 * 11 + 1, False),
        (CUT, 399, 398 * 11 - 1, False),
        (NEVER_SENT, 399, 399 * 11, True),
        (NEVER_SENT, 400, 400 * 11, False),
    ],
)
def test_what_failed_may_have_been_answered_there(observe, rows, requests, tokens, ok):
    assert (
        responses.check_served(observe(rows, served={"requests": requests, "tokens": tokens})).ok
        == ok
    )


def test_the_servers_own_view_where_it_is_partly_unknown(observe):
    o = observe(
        rows_with(lambda row: row.update(tokens=None), [7]), served={"requests": 400, "tokens": 1}
    )
    assert responses.check_served(o).ok, (
        "without usage only the requests can be held against each other"
    )
    # llama.cpp gives no queue_ms; most servers give nothing
    for unknown in ({"queue_ms": None}, {"prompt_ms": None}):
        check = load.check_own_times(
            observe(rows_with(lambda row, unknown=unknown: row.update(unknown), range(400)))
        )
        assert check.ok is (True if "queue_ms" in unknown else None), check
    few = rows_with(early, range(100, 103))  # 3 of the window's 320: less than 1%
    assert load.check_own_times(observe(few)).ok


def test_bursts_are_no_drift(observe):
    """One answer of very many tokens in the second half: half means differ, the slices' spread says
    it is chance.
    """
    rows = synthetic_campaign.requests()
    rows[300] |= {"token_n": [*rows[300]["token_n"][:-1], 3000], "tokens": 3010, "max_tokens": 3010}
    assert "steadiness" not in failed(observe(rows))


def test_a_small_drift_is_none(observe):
    for rows in (drifting(0.0), growing(0.05)):  # TTFT is a third of E2E and grows by 15%
        assert "steadiness" not in failed(observe(rows))


def test_a_demand_that_varies_by_plan_is_not_tested(observe):
    for scenario in ({"arrivals": "poisson", "profile": [[0, 1], [5, 4]]}, {"arrivals": "trace"}):
        o = observe(drifting(0.5), data={"scenarios": {"chat": scenario}})
        assert load.check_steadiness(o)[1:4] == (
            None,
            "invalid",
            "not tested: the scenario's demand varies by plan",
        )


def test_few_requests_are_tested_by_their_tokens_only(observe):
    rows = [row for i, row in enumerate(synthetic_campaign.requests()) if i % 80 == 0]
    assert "TTFT" not in load.check_steadiness(observe(rows)).detail
    assert "TTFT" in load.check_steadiness(observe(synthetic_campaign.requests()[::20])).detail


@pytest.mark.parametrize(
    ("names", "least", "most"),
    [
        (
            (
                "steady, noise that correlates by 0.8",
                "closed loop, 16 users, one_by_one",
                "closed loop, 16 users, sharing",
                "gamma 3/s in bursts, batching",
                "drift of 5% over the window",
            ),
            0,
            0,
        ),
        (("Poisson, one by one, 90% of what it carries",), 0.04, 0.12),
        (("drift of 20% over the window",), 0.6, 0.8),
        (
            (
                "drift of 30% over the window",
                "step of 20% in its middle",
                "half the speed at its begin, time constant 5 s",
            ),
            0.96,
            1,
        ),
        (
            (
                "Poisson, one by one, 130% of what it carries",
                "Poisson, sharing, 130% of what it carries",
            ),
            0.96,
            1,
        ),
    ],
)
def test_the_error_rates_of_steadiness(names, least, most):
    """On simulated servers; seeds are fixed, so these are exact numbers of 25 runs each."""
    cases = [case for case in steadiness.CASES if case.name in names]
    assert len(cases) == len(names)
    for case in cases:
        assert least <= sum(steadiness.rates(case, 25)) <= most, case.name


def test_load_share_counts_the_cores_that_workers_can_use(observe):
    share = {"server_cores": [0], "load_cores": [1, 2, 3], "shared": False, "threads": 1}
    o = observe(samples=synthetic_campaign.telemetry(load_cores=1.0), data={"machine_share": share})
    assert metrics.resources.load_cpu_share(o) == pytest.approx(0.5)  # two load workers


def test_a_wait_for_a_slot_is_not_the_client_s(observe):
    """Under a cap on concurrency requests are sent later by intention, here even after the window;
    the client's own part counts.
    """

    def waiting(own_s):
        rows = [
            row | {"slot_s": row["scheduled_s"] + 30, "sent_s": row["scheduled_s"] + 30 + own_s}
            for row in synthetic_campaign.requests()
        ]
        return observe(rows=rows, users=None, rate=40.0, counts=COUNTS | {"planned": 320})

    assert not {"send lag", "arrivals"} & failed(waiting(0.001)).keys()
    assert {"send lag", "arrivals"} & failed(waiting(0.1)).keys() == {"send lag"}
    rows = synthetic_campaign.requests()
    del rows[100:120]
    assert "arrivals" in failed(
        observe(
            rows=[row | {"slot_s": row["sent_s"]} for row in rows],
            users=None,
            rate=40.0,
            counts=COUNTS | {"planned": 320},
        )
    )
