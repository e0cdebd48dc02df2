"""Each check is silent on a clean case and fires on the one that breaks it."""

import pytest

from analysis import checks, metrics
from analysis.case import CaseData
from analysis.checks import load, responses, verdict
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
            row |= {"token_s": row["token_s"][:1], "token_n": [1], "tokens": 1, "max_tokens": 1}
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
