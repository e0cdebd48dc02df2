"""Every formula, on rows whose result can be computed by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis import checks, metrics, stats, summary
from tests.helpers import synthetic_campaign


def test_a_regular_load(observe):
    values = metrics.measure_case(observe())
    # 40 requests/s of 11 tokens in a window of 8 s: 320 requests.
    expected = {
        "output_tokens_per_s": 440,
        "requests_per_s": 40,
        "goodput_per_s": 40,
        "slo_attainment": 1,
        "error_share": 0,
        "wrong_share": 0,
        "goodput_tokens_per_s": 440,
        "requests_scheduled": 320,
        "requests_completed": 320,
        "requests_of_several_tokens": 320,
        "tokens_per_chunk": 1,
        "ttft_p50_s": 0.05,
        "ttft_p95_s": 0.05,
        "ttft_p99_s": 0.05,
        "ttft_p99_completed_s": 0.05,
        "tpot_p50_s": 0.01,
        "tpot_p99_s": 0.01,
        "e2e_p50_s": 0.15,
        "e2e_p99_s": 0.15,
        "itl_p50_s": 0.01,
        "itl_p99_s": 0.01,
        "send_lag_p50_s": 0,
        "send_lag_p99_s": 0,
        # E2E is 150 ms; the server's timings are 1 + 48 + 100 ms.
        "outside_engine_p50_s": 0.001,
        "running_mean": 40 * (0.048 + 0.1),
        "server_cores": 0.5,
        "tokens_per_cpu_s": 880,
        "context_switches_per_s": 200,
        "load_cpu_share": 0.25,
        "server_peak_bytes": synthetic_campaign.GIB + 48 * 2**20,
        "startup_s": 1.5,
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(
            value, rel=0.01 if name in ("output_tokens_per_s", "requests_per_s") else 1e-6
        ), name
    not_measured = (
        "gpu_",
        "machine_",
        "slot_wait_",
        "cache_",
        "kv_",
        "preemptions",
        "prefix_",
        "event_loop_",
        "usd_",
        "mbu",
        "mfu",
    )
    assert {name for name, value in values.items() if math.isnan(value)} == {
        name for name in values if name.startswith(not_measured)
    }


def test_gpu(observe):
    values = metrics.measure_case(observe(samples=synthetic_campaign.telemetry(gpus=2)))
    assert values["gpu_utilization_percent"] == 80
    assert values["gpu_memory_bytes"] == 4 * synthetic_campaign.GIB
    assert values["gpu_power_w"] == 600
    assert values["gpu_tokens_per_joule"] == pytest.approx(values["output_tokens_per_s"] / 600)


def two_gpus():
    """GPU 1 has the values of synthetic telemetry; GPU 0 is another one, half as busy."""
    samples = synthetic_campaign.telemetry(gpus=2)
    for i, sample in enumerate(samples):
        sample["gpus"][0] |= {
            "utilization_percent": 40.0,
            "memory_used_bytes": 5 * synthetic_campaign.GIB,
            "power_w": 70.0,
            "energy_j": 17.5 * i,
        }
    return samples


def test_only_gpus_that_the_server_uses_count(observe):
    """A server on one of eight cards would otherwise seem to leave seven eighths unused."""

    def measured(**run):
        values = metrics.measure_case(observe(samples=two_gpus(), **run))
        joules = values["output_tokens_per_s"] / values["gpu_tokens_per_joule"]
        names = ("utilization_percent", "memory_bytes", "power_w", "others_power_w")
        return [*(values[f"gpu_{name}"] for name in names), pytest.approx(joules)]

    gib, nan = synthetic_campaign.GIB, pytest.approx(math.nan, nan_ok=True)
    assert measured(gpus=[1]) == [80, 2 * gib, 300, 70, 300]
    assert measured(gpus=[0]) == [40, 5 * gib, 70, 300, 70]
    assert measured(gpus=[0, 1]) == [60, 7 * gib, 370, nan, 370]
    assert measured() == measured(gpus=None) == [60, 7 * gib, 370, nan, 370], "unknown: all"
    assert measured(gpus=[]) == [nan, nan, nan, 370, nan], "a simulated engine"


def test_window_is_half_open_and_tokens_count_by_arrival(observe):
    rows = synthetic_campaign.requests(n=1, tokens=4)
    rows[0] |= {
        "scheduled_s": 1.5,
        "sent_s": 1.5,
        "first_s": 1.9,
        "last_s": 10.0,
        "done_s": 10.0,
        "token_s": [1.9, 2.0, 9.9, 10.0],
        "token_n": [1, 2, 4, 8],
    }
    o = observe(rows)
    assert metrics.requests.output_tokens_per_s(o) == 6 / 8
    assert len(o.scheduled) == 0 and len(o.finished) == 0
    rows[0] |= {"scheduled_s": 2.0}
    assert len(observe(rows).scheduled) == 1


def test_tpot_leaves_the_first_chunk_out(observe):
    rows = synthetic_campaign.requests(n=1, tokens=10)
    rows[0] |= {
        "scheduled_s": 3.0,
        "first_s": 3.5,
        "last_s": 4.1,
        "done_s": 4.2,
        "token_s": [3.5, 3.8, 4.1],
        "token_n": [4, 3, 3],
    }
    o = observe(rows)
    # 0.6 s for the 6 tokens after the first chunk's 4
    assert o.latencies("tpot_s") == pytest.approx([0.1])
    assert o.latencies("ttft_s") == pytest.approx([0.5])
    assert o.gaps == pytest.approx([0.3, 0.3])
    assert metrics.requests.tokens_per_chunk(o) == pytest.approx(10 / 3)
    rows[0] |= {"tokens": 1, "max_tokens": 1, "token_s": [3.5], "token_n": [1], "last_s": 3.5}
    assert len(observe(rows).latencies("tpot_s")) == 0  # one token has no TPOT
    assert metrics.requests.goodput_per_s(observe(rows)) == 1 / 8  # and cannot miss its bound


def test_tokens_of_failed_requests_are_not_output_throughput(observe):
    """Every other stream breaks after 5 of its 11 tokens."""
    rows = synthetic_campaign.requests()
    for row in rows[::2]:
        row |= {"error": "server error in the stream", "answer": "unchecked", "tokens": None}
        row |= {"token_s": row["token_s"][:5], "token_n": [1] * 5, "tokens_counted": 5}
        row |= {"last_s": row["token_s"][-1], "token_source": None}
    o = observe(rows)
    values = metrics.measure_case(o)
    assert values["output_tokens_per_s"] == 220 and values["partial_tokens_per_s"] == 100
    assert values["tokens_per_cpu_s"] == pytest.approx(440)
    frame = summary.timeline_frame(o)
    assert frame["tokens_per_s"].iloc[3:8].mean() == pytest.approx(220, rel=0.05)


def test_time_to_the_first_visible_token_and_the_share_of_reasoning(observe):
    """40 reasoning tokens 50 ms apart, then 8 visible ones."""
    rows = synthetic_campaign.requests(n=300, rate=30, ttft_s=0.2, tpot_s=0.05, tokens=48)
    for row in rows:
        row |= {"first_visible_s": row["token_s"][40], "reasoning_tokens": 40}
    values = metrics.measure_case(observe(rows))
    assert values["ttft_p50_s"] == pytest.approx(0.2)
    assert values["tpot_p50_s"] == pytest.approx(0.05)
    for p in (50, 95):
        assert values[f"visible_ttft_p{p}_s"] == pytest.approx(0.2 + 40 * 0.05)
    assert math.isnan(values["visible_ttft_p99_s"]), "too few for a P99"
    assert values["reasoning_share"] == pytest.approx(40 / 48)
    for row in rows[60:180]:  # without visible text: half of the window's 240
        row["first_visible_s"] = None
    assert metrics.measure_case(observe(rows))["visible_ttft_p95_s"] == math.inf


def test_older_campaigns_without_these_columns_lack_these_metrics(observe):
    rows = synthetic_campaign.requests()
    new = ("first_visible_s", "reasoning_tokens", "tokens_counted", "token_source")
    for row in rows:
        for name in (*new, "error_detail", "retry_after_s", "resent"):
            del row[name]
    values = metrics.measure_case(observe(rows))
    assert math.isnan(values["visible_ttft_p50_s"]) and math.isnan(values["reasoning_share"])
    assert values["goodput_per_s"] == 40 and values["tpot_p50_s"] == pytest.approx(0.01)
    assert all(check.ok for check in checks.run_checks(observe(rows)))


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 3000, "token_source": "counted"},  # an impossible usage
        {"token_n": [11], "token_s": [0.0]},  # all in one chunk
    ],
)
def test_an_unknown_tpot_meets_no_bound(observe, change):
    rows = [row | change for row in synthetic_campaign.requests()]
    values = metrics.measure_case(observe(rows))
    assert math.isnan(values["tpot_p50_s"])
    assert (
        values["goodput_per_s"] == values["slo_attainment"] == values["goodput_tokens_per_s"] == 0
    )
    assert metrics.measure_case(observe(rows, slo={"ttft_s": 1.0}))["goodput_per_s"] == 40


def test_without_usage_tpot_counts_chunks(observe):
    change = {"tokens": None, "token_source": "counted"}
    rows = [row | change for row in synthetic_campaign.requests()]
    values = metrics.measure_case(observe(rows))
    assert values["tpot_p50_s"] == pytest.approx(0.01) and values["goodput_per_s"] == 40


def test_one_token_without_usage_has_no_tpot_to_miss(observe):
    rows = [
        row | {"tokens": None, "token_source": "counted"}
        for row in synthetic_campaign.requests(tokens=1)
    ]
    assert metrics.requests.goodput_per_s(observe(rows)) == 40


def test_gaps_never_join_two_requests(observe):
    rows = synthetic_campaign.requests()
    for i in (100, 101, 200):
        synthetic_campaign.fail(rows[i])
    rows[150] |= {"token_s": rows[150]["token_s"][:1], "token_n": [1]}
    assert observe(rows).gaps == pytest.approx(np.full((320 - 4) * 10, 0.01))


def test_failures_are_infinite_in_ttft_and_e2e(observe):
    rows = synthetic_campaign.requests()
    for i in range(100, 116):  # 16 of the 320: 5%
        synthetic_campaign.fail(rows[i])
    values = metrics.measure_case(observe(rows))
    assert values["error_share"] == 0.05
    assert values["e2e_p99_s"] == math.inf and values["ttft_p99_s"] == math.inf
    # rank 304 of 320 is the last request that did not fail
    assert values["ttft_p95_s"] == pytest.approx(0.05)
    assert values["e2e_p99_completed_s"] == pytest.approx(0.15)
    assert values["tpot_p50_s"] == pytest.approx(0.01)
    assert values["ttft_mean_s"] == pytest.approx(0.05) and values["itl_mean_s"] == pytest.approx(
        0.01
    )
    assert values["slo_attainment"] == 0.95
    assert values["requests_per_s"] == pytest.approx((320 - 16) / 8, rel=0.01)


def test_a_token_before_the_failure_does_not_make_its_ttft_finite(observe):
    rows = synthetic_campaign.requests()
    rows[100]["error"] = "stream ended without [DONE]"
    assert np.isinf(observe(rows).latencies("ttft_s")).sum() == 1


def test_queueing_in_the_client_counts(observe):
    rows = synthetic_campaign.requests()
    for row in rows:
        row["scheduled_s"] -= 0.5
    values = metrics.measure_case(observe(rows))
    assert values["ttft_p50_s"] == pytest.approx(0.55)
    assert values["e2e_p50_s"] == pytest.approx(0.65)
    assert values["send_lag_p50_s"] == pytest.approx(0.5)


def test_goodput_needs_every_bound_and_a_right_answer(observe):
    assert metrics.requests.goodput_per_s(observe(slo={"ttft_s": 0.04})) == 0
    assert metrics.requests.goodput_per_s(observe(slo={"ttft_s": 1.0, "tpot_s": 0.009})) == 0
    rows = synthetic_campaign.requests()
    for row in rows:
        row["answer"] = "wrong"
    o = observe(rows)
    assert (
        metrics.requests.goodput_per_s(o),
        metrics.requests.requests_per_s(o),
        metrics.requests.wrong_share(o),
    ) == (0, 0, 1)


def test_too_small_a_sample_has_no_percentile(observe):
    assert [stats.values_needed(p) for p in (50, 95, 99)] == [5, 59, 299]
    rows = synthetic_campaign.requests()
    values = metrics.measure_case(observe(rows[: 80 + 298]))
    assert values["requests_scheduled"] == 298
    assert math.isnan(values["ttft_p99_s"]) and values["ttft_p95_s"] == pytest.approx(0.05)
    assert not math.isnan(metrics.measure_case(observe(rows[: 80 + 299]))["ttft_p99_s"])


@pytest.mark.parametrize("rows", [[], None])
def test_no_window_no_rows_no_telemetry(observe, rows):
    values = metrics.measure_case(
        observe(rows, samples=[], window=None, startup_s=None, counts=None)
    )
    known = {
        name: value
        for name, value in values.items()
        if not math.isnan(value) and name != "tokens_per_chunk"
    }
    assert known == {}


def test_lines_of_a_killed_case_equal_its_parquet(observe):
    whole, killed = metrics.measure_case(observe()), metrics.measure_case(observe(lines=True))
    assert killed == pytest.approx(whole, nan_ok=True)


def test_every_metric_has_a_definition():
    for name, metric in metrics.METRICS.items():
        assert metric.value.__doc__ and metric.label, name
        assert metric.sample in ("", *metrics.METRICS)
        unit = {"s": "_s", "bytes": "_bytes", "1/s": "_per_s", "tokens/s": "_s", "W": "_w"}.get(
            metric.unit, ""
        )
        assert name.endswith(unit), name


def test_sums_of_arrays():
    arrays = pd.Series([np.array([]), np.array([1.0, 2.0]), np.array([3.0]), np.array([])])
    assert (
        list(metrics.requests.sum_arrays(arrays)) == [0, 3, 3, 0]
        and list(metrics.requests.sum_arrays(arrays[:0])) == []
    )
