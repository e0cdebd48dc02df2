"""Useful keys and values, of numbers that are known."""

import json
import math

import pytest

from analysis import metrics
from analysis.metrics import kv_cache
from tests.helpers import synthetic_campaign


def said(name, value, labels="{}"):
    """A word a second, answered after 0.25 s."""
    return [
        dict(
            zip(
                synthetic_campaign.schema.SERVER_METRICS_FIELDS,
                (float(t), 0.25, name, labels, float(value(t))),
                strict=True,
            )
        )
        for t in range(12)
    ]


def config(blocks, size, engine="0"):
    return said(
        kv_cache.CONFIG,
        lambda t: 1,
        json.dumps({"block_size": str(size), "num_gpu_blocks": str(blocks), "engine": engine}),
    )


def test_a_static_batch_counts_both_itself(observe):
    counted = [
        *said(kv_cache.USEFUL, lambda t: 60 * t if t < 10 else 0),
        *said(kv_cache.POSITIONS, lambda t: 100 * t if t < 10 else 0),
    ]
    assert metrics.METRICS["kv_useful_share"].value(observe(said=counted)) == pytest.approx(0.6)
    still = [*said(kv_cache.USEFUL, lambda t: 7), *said(kv_cache.POSITIONS, lambda t: 9)]
    assert math.isnan(kv_cache.useful_share(observe(said=still))), (
        "nothing was generated in the window"
    )


def test_paged_memory_is_blocks_in_use(observe):
    """One request under way from second 1 to 11: 32 tokens of prompt, and one a second."""
    rows = synthetic_campaign.requests(n=1)
    rows[0] |= {
        "first_s": 1.0,
        "last_s": 11.0,
        "done_s": 11.0,
        "prompt_tokens": 32,
        "tokens": 11,
        "token_s": [float(t) for t in range(1, 12)],
        "token_n": [1] * 11,
    }
    usage = said(kv_cache.USAGE, lambda t: 0.03)  # 3 of 100 blocks of 16
    found = kv_cache.useful_share(observe(rows, said=[*usage, *config(101, 16)]))
    held = [32 + t for t in range(2, 10)]  # at 2.25 s the second token is there
    assert found == pytest.approx(sum(held) / len(held) / 48)
    other = [*said(kv_cache.USAGE, lambda t: 0.03, '{"engine": "1"}'), *config(101, 16, "1")]
    two = kv_cache.useful_share(observe(rows, said=[*usage, *config(101, 16), *other]))
    assert two == pytest.approx(found / 2), "two engines hold twice as much"
    assert math.isnan(kv_cache.useful_share(observe(rows, said=usage))), (
        "how large a block is was not said"
    )
    assert math.isnan(
        kv_cache.useful_share(
            observe(rows, said=[*said(kv_cache.USAGE, lambda t: 0), *config(101, 16)])
        )
    )
    unknown = said(
        kv_cache.CONFIG, lambda t: 1, json.dumps({"block_size": "16", "num_gpu_blocks": "None"})
    )
    assert math.isnan(kv_cache.useful_share(observe(rows, said=[*usage, *unknown])))


def test_who_says_nothing_has_no_share(observe):
    assert math.isnan(kv_cache.useful_share(observe()))


def test_how_full_it_gets_and_who_loses_the_place(observe):
    usage = [
        *said(kv_cache.USAGE, lambda t: 0.5 if t < 5 else 0.9 if t == 5 else 0.2),
        *said(kv_cache.USAGE, lambda t: 0.7, '{"engine": "1"}'),
    ]
    late = said(kv_cache.USAGE, lambda t: 1.0 if t > 10 else 0.0, '{"engine": "2"}')
    lost = [
        *said(kv_cache.PREEMPTIONS, lambda t: 4 + (t >= 4) + (t >= 11)),
        *said(kv_cache.PREEMPTIONS, lambda t: 2 * (t >= 9), '{"engine": "1"}'),
    ]
    o = observe(said=[*usage, *late, *lost])
    assert kv_cache.used_peak_share(o) == 0.9, "the fullest engine, in the window"
    assert kv_cache.preemptions(o) == 3, "of all engines, in the window"
    assert math.isnan(kv_cache.used_peak_share(observe())) and math.isnan(
        kv_cache.preemptions(observe())
    ), "it has none, or does not say"
