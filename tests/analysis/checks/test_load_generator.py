"""The load generator's own error: each reason makes a case client-bound, and a value just below its
bound does not.
"""

from typing import Any

import pytest

from analysis.case import CaseData
from analysis.checks import load, load_generator
from tests.helpers import synthetic_campaign

CLEAN = synthetic_campaign.calibration()


def rows(lag_s: float = 0.0, **changes: Any) -> list[dict[str, Any]]:
    """TTFT 50 ms and E2E 150 ms, of which `lag_s` is the client's delay."""
    return [
        row | {"sent_s": row["scheduled_s"] + lag_s} | changes
        for row in synthetic_campaign.requests()
    ]


def worker(**shares: float | None) -> dict[str, Any]:
    return {
        "worker": 0,
        "rows": 400,
        "offset_s": 0.0,
        "estimated_offset_s": 0.0,
        "round_trip_s": 0.0,
        "cpu_share": 0.1,
        **shares,
    }


@pytest.fixture
def case(observe: Any) -> Any:
    def make(calibration: dict[str, Any] | None = CLEAN, **written: Any) -> CaseData:
        o = observe(**written)
        o.campaign["calibration"] = calibration
        return o

    return make


def test_errors_are_shares_of_the_reported_values(case):
    shares = load_generator.error_shares(
        case(
            rows=rows(0.002),
            calibration=synthetic_campaign.calibration(
                stamp_error_p99_s=-0.001, itl_seen_p50_s=0.0104
            ),
        )
    )
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert shares == pytest.approx(
        {
            "TTFT P50": 0.06,
            "TTFT P99": 0.06,
            "ITL P50": 0.04,
            "E2E P50": 0.02,
            "E2E P99": 0.02,
            "ITL P99": 0.0,
        }
    )


def test_without_calibration_only_the_rows_count(case):
    assert load_generator.error_shares(case(rows=rows(0.002), calibration=None)) == pytest.approx(
        {"TTFT P50": 0.04, "TTFT P99": 0.04, "E2E P50": 2 / 150, "E2E P99": 2 / 150}
    )


def test_waiting_for_a_slot_is_no_delay_of_the_client(case):
    slotted = [
        row | {"slot_s": row["scheduled_s"] + 0.020, "sent_s": row["scheduled_s"] + 0.020}
        for row in synthetic_campaign.requests()
    ]
    assert max(load_generator.error_shares(case(rows=slotted, calibration=None)).values()) == 0.0


def test_percentiles_of_too_small_a_sample_are_left_out(case):
    o = case(rows=synthetic_campaign.requests()[::4])
    assert len(o.scheduled) == 80 and {name[-3:] for name in load_generator.error_shares(o)} == {
        "P50"
    }
    assert load_generator.error_shares(case(rows=synthetic_campaign.requests()[:84])) == {}


def test_the_floor_is_that_of_the_same_kind_of_load(case):
    both = synthetic_campaign.calibration(8, 40.0)
    both["open"] = both["open"] | {"stamp_error_p99_s": 0.02}
    assert load_generator.noise_floor_of(case(both))["stamp_error_p99_s"] == 11e-6
    assert (
        load_generator.noise_floor_of(case(both, users=None, rate=40.0))["stamp_error_p99_s"]
        == 0.02
    )
    assert (
        load_generator.noise_floor_of(case(users=None, rate=40.0))
        == {}
        == load_generator.noise_floor_of(case(None))
    )


def limited(sustained: int, kept_up: bool) -> dict[str, Any]:
    """The ladder's last step was not sustained. The case has 440 events/s."""
    steps = [
        step
        | {
            "sustained": step["asked_per_s"] <= sustained,
            "server_kept_up": step["asked_per_s"] <= sustained or kept_up,
        }
        for step in [
            step | {"asked_per_s": asked}
            for step, asked in zip(CLEAN["ladder"], (200, 430, 450), strict=True)
        ]
    ]
    return CLEAN | {"ladder": steps, "sustained_events_per_s": sustained}


@pytest.mark.parametrize(
    ("reason", "bad", "good"),
    [
        ("may have changed TTFT P50 by 6%", {"rows": rows(0.003)}, {"rows": rows(0.002)}),
        (
            "may have changed TTFT P50 by 6%",
            {"calibration": synthetic_campaign.calibration(stamp_error_p99_s=0.003)},
            {"calibration": synthetic_campaign.calibration(stamp_error_p99_s=0.002)},
        ),
        (
            "may have changed ITL P99 by 6%",
            {"calibration": synthetic_campaign.calibration(itl_seen_p99_s=1.06 * 0.011)},
            {"calibration": synthetic_campaign.calibration(itl_seen_p99_s=0.96 * 0.011)},
        ),
        (
            "a load worker waited 12% of the window for a core",
            {"load_workers": [worker(waited_share=0.01), worker(waited_share=0.12)]},
            {
                "load_workers": [
                    worker(waited_share=0.01),
                    worker(waited_share=0.09),
                    worker(waited_share=None),
                ]
            },
        ),
        (
            "440 events/s exceed the 430 that the calibration measured",
            {"calibration": limited(430, True)},
            {"calibration": limited(450, True)},
        ),
        (
            "440 events/s exceed the 200",
            {"calibration": limited(200, True)},
            {"calibration": limited(200, False)},
        ),
    ],
)
def test_each_reason_both_ways(case, reason, bad, good):
    bad, good = load.check_client_error(case(**bad)), load.check_client_error(case(**good))
    assert (
        (bad.ok, bad.severity) == (False, "invalid")
        and bad.detail.startswith("client-bound: ")
        and reason in bad.detail
    )
    assert good.ok is True and good.detail.startswith("at most ")


def test_the_check_names_the_worst_error_and_a_missing_calibration(case):
    assert load.check_client_error(case(rows=rows(0.002))).detail.startswith("at most 4.0% (TTFT P")
    assert (
        load.check_client_error(case(None)).detail
        == "at most 0.0% (TTFT P50), but the load generator was not calibrated"
    )
    assert load.check_client_error(case(rows=synthetic_campaign.requests()[:84]))[1:4] == (
        None,
        "invalid",
        "too few requests",
    )


def test_a_worker_without_a_waited_share_is_left_out(case):
    assert load_generator.starved_share(case()) is None
    assert (
        load_generator.starved_share(
            case(load_workers=[worker(waited_share=None), worker(waited_share=0.3)])
        )
        == 0.3
    )


def unread(merged: bool = True, **changes: Any) -> list[dict[str, Any]]:
    """Rows with a stall between second 4 and 4.3: all tokens of a request that arrive in it have
    the stamp of the last one.
    """
    found = rows(**changes)
    for row in found:
        inside = [at for at in row["token_s"] if 4 < at <= 4.3]
        if merged and inside:
            row["token_s"] = [max(inside) if at in inside else at for at in row["token_s"]]
            row["first_s"] = row["token_s"][0]
    return found


STALLS = [worker(stalls=[[1.0, 1.02], [4.0, 4.3]]), worker(stalls=[[4.0, 4.3]]) | {"worker": 1}]


def test_tokens_that_arrived_in_a_stall_are_doubted(case):
    o = case(None, rows=unread(), load_workers=STALLS)
    shares = load_generator.error_shares(o)
    assert shares["TTFT P99"] == pytest.approx(1 - 0.05 / 0.15) and shares[
        "TTFT P50"
    ] == pytest.approx(0), shares
    assert shares["E2E P99"] == 0.0, "a response's last token has its own stamp"
    reported, certain = o.gaps, load_generator.certain_gaps(o)
    assert reported.max() > 0.09 and certain.max() == pytest.approx(0.01)
    together = sum(
        4 < at <= 4.3 and row["token_s"].count(at) > 1
        for row in unread()
        for at in row["token_s"][1:]
    )
    assert len(reported) - len(certain) == together > 100
    check = load.check_client_error(o)
    assert check.ok is False and check.detail.endswith(
        "(it stalled 2 times in the window, for at most 0.3 s)"
    ), check.detail


def test_a_stall_does_not_matter_where_each_token_has_a_stamp_of_its_own(case):
    assert load.check_client_error(case(rows=unread(merged=False), load_workers=STALLS)).ok is True
    assert (
        load.check_client_error(
            case(rows=unread(), load_workers=[worker(), worker() | {"worker": 1}])
        ).ok
        is True
    ), "an older campaign"
    assert (
        load.check_client_error(case(rows=unread(), load_workers=[worker(stalls=[[1.0, 1.3]])])).ok
        is True
    ), "the other worker did not stall"
    for lag_s, doubted in ((0.001, 0), (0.0, 40 * 0.3 * 10)):
        o = case(rows=unread(merged=False, read_lag_max_s=lag_s), load_workers=STALLS)
        assert len(o.gaps) - len(load_generator.certain_gaps(o)) == pytest.approx(
            doubted, abs=10
        ), "without the kernel's stamps, each token in a stall is doubtful"


def test_the_least_time_to_connect_is_not_the_clients(case):
    """An endpoint behind TLS that is 30 ms away needs 90 ms for each new connection."""

    def connecting(*seconds: float | None) -> CaseData:
        made = rows(0.0)
        return case(
            rows=[
                row | {"connect_s": s, "sent_s": row["scheduled_s"] + 0.0005 + (s or 0.0)}
                for row, s in zip(made, (seconds * len(made))[: len(made)], strict=True)
            ]
        )

    assert load.check_send_lag(connecting(0.09)).ok
    assert load.check_send_lag(connecting(0.09, None)).ok
    assert not load.check_send_lag(connecting(0.09, 0.15)).ok, "a busy client connects late"
    assert not load.check_send_lag(case(rows=rows(0.09))).ok, "an older campaign"
