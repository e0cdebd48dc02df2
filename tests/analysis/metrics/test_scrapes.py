"""Metrics from the server's own counts: its /metrics over time, and its timings."""

import math

import pytest

from analysis import metrics, summary
from tests.helpers import synthetic_campaign


def test_the_server_over_time_beside_the_client(observe):
    frame = summary.timeline_frame(observe(said=synthetic_campaign.server_metrics()))
    middle = frame[(frame["time_s"] > 0) & (frame["time_s"] < 7)]
    assert middle["in_flight"].between(5, 7).all()  # 40 per second, 0.15 s each
    assert set(middle["server_running"].dropna()) == {3.0} and set(
        middle["server_waiting"].dropna()
    ) == {1.0}
    assert middle["server_running"].isna().sum() == 1  # the scrape that returned nothing
    # not scraped; killed while it ran
    for o in (observe(), observe(lines=True, said=synthetic_campaign.server_metrics())):
        assert (
            len(o.server_metrics) == 0 and summary.timeline_frame(o)["server_running"].isna().all()
        )
    vllm = [
        row | {"name": row["name"] and row["name"].replace("serveoff_", "vllm:num_")}
        for row in synthetic_campaign.server_metrics(running=9.0)
    ]
    assert set(
        observe(said=vllm).served("serveoff_requests_running", "vllm:num_requests_running")
    ) == {9.0}
    both = summary.timeline_frame(observe(said=[*synthetic_campaign.server_metrics(), *vllm]))[
        "server_running"
    ].dropna()
    assert set(both) == {9.0}, "ours counts requests that wait inside vLLM as running"


def test_cache_hits_are_those_of_the_window(observe):
    def share(seconds, hits, misses):
        samples = [
            dict(
                zip(
                    synthetic_campaign.schema.SERVER_METRICS_FIELDS,
                    (float(t), 0.25, f"serveoff_cache_{what}_total", "{}", float(count(t))),
                    strict=True,
                )
            )
            for t in seconds
            for what, count in (("hits", hits), ("misses", misses))
        ]
        return metrics.requests.cache_hit_share(
            observe(said=[*synthetic_campaign.server_metrics(), *samples])
        )

    assert share(range(12), lambda t: 3 * t, lambda t: t if t < 10 else 99) == 0.75
    assert share((0, 5, 9), lambda t: t, lambda t: 0 if t < 5 else 40) == 1, (
        "misses of the warm-up do not count"
    )
    assert share(range(12), lambda t: 7, lambda t: t) == 0
    assert math.isnan(share((0, 5, 11), lambda t: t, lambda t: t)), (
        "one sample in the window is not enough"
    )
    assert math.isnan(share(range(12), lambda t: 7, lambda t: 7)), "the cache had no requests"
    assert math.isnan(
        metrics.requests.cache_hit_share(observe(said=synthetic_campaign.server_metrics()))
    ), "no cache"


def test_running_requests_are_the_engine_s_time_in_the_window(observe):
    rows = synthetic_campaign.requests(n=3)
    for row, first, prompt_ms, predicted_ms in zip(
        rows, (2.5, 5.0, 9.5), (1000, 500, 0), (1000, 2000, 4000), strict=True
    ):
        row |= {"first_s": first, "prompt_ms": prompt_ms, "predicted_ms": predicted_ms}
    assert metrics.requests.running_mean(observe(rows)) == pytest.approx((1.5 + 2.5 + 0.5) / 8), (
        "time outside [2, 10) does not count"
    )
    synthetic_campaign.fail(rows[2])
    assert metrics.requests.running_mean(observe(rows)) == pytest.approx(4.0 / 8)
    rows[0]["predicted_ms"] = None
    assert (
        metrics.requests.running_mean(
            observe(rows, said=synthetic_campaign.server_metrics(running=9.0))
        )
        == 9
    ), "then the server's own gauge"
    assert math.isnan(metrics.requests.running_mean(observe(rows)))


def test_event_loop_lag_is_the_buckets_bound_in_which_p99_lies(observe):
    def lag(counts, seconds=range(12)):
        """`counts`: new observations per second, by the bucket's bound."""
        samples, so_far = [], dict.fromkeys(counts, 1000)  # counts before the window are left out
        for t in seconds:
            total = 0
            for bound in counts:
                so_far[bound] += counts[bound]
                total += so_far[bound]
                sample = (
                    float(t),
                    0.25,
                    "serveoff_event_loop_lag_seconds_bucket",
                    f'{{"le": "{bound}"}}',
                    float(total),
                )
                samples.append(
                    dict(zip(synthetic_campaign.schema.SERVER_METRICS_FIELDS, sample, strict=True))
                )
        return metrics.resources.event_loop_lag_p99_s(observe(said=samples))

    assert lag({"0.001": 99, "0.5": 1, "+Inf": 0}) == 0.001
    assert lag({"0.001": 98, "0.5": 2, "+Inf": 0}) == 0.5
    assert lag({"0.001": 50, "0.5": 0, "+Inf": 50}) == math.inf
    assert math.isnan(lag({"0.001": 20, "+Inf": 0})), "140 are too few for a P99"
    assert math.isnan(lag({"0.001": 2000, "+Inf": 0}, (0, 5, 11))), (
        "one sample in the window is not enough"
    )
    assert math.isnan(
        metrics.resources.event_loop_lag_p99_s(observe(said=synthetic_campaign.server_metrics()))
    ), "no event loop"
