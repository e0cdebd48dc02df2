"""KV cache metrics of known numbers."""

import json
import math

import pytest

from analysis import metrics
from analysis.metrics import kv_cache
from tests.helpers import synthetic_campaign


def samples(name, value, labels="{}"):
    """One sample per second, each returned after 0.25 s."""
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
    return samples(
        kv_cache.CONFIG,
        lambda t: 1,
        json.dumps({"block_size": str(size), "num_gpu_blocks": str(blocks), "engine": engine}),
    )


def test_a_static_batch_counts_both_itself(observe):
    counted = [
        *samples(kv_cache.USEFUL, lambda t: 60 * t if t < 10 else 0),
        *samples(kv_cache.POSITIONS, lambda t: 100 * t if t < 10 else 0),
    ]
    assert metrics.METRICS["kv_useful_share"].value(observe(said=counted)) == pytest.approx(0.6)
    still = [*samples(kv_cache.USEFUL, lambda t: 7), *samples(kv_cache.POSITIONS, lambda t: 9)]
    assert math.isnan(kv_cache.useful_share(observe(said=still))), (
        "nothing was generated in the window"
    )


def test_paged_memory_is_blocks_in_use(observe):
    """One request from second 1 to 11, with a prompt of 32 tokens and one token per second."""
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
    usage = samples(kv_cache.USAGE, lambda t: 0.03)  # 3 of 100 blocks of 16
    found = kv_cache.useful_share(observe(rows, said=[*usage, *config(101, 16)]))
    held = [32 + t for t in range(2, 10)]  # at 2.25 s the second token has arrived
    assert found == pytest.approx(sum(held) / len(held) / 48)
    other = [*samples(kv_cache.USAGE, lambda t: 0.03, '{"engine": "1"}'), *config(101, 16, "1")]
    two = kv_cache.useful_share(observe(rows, said=[*usage, *config(101, 16), *other]))
    assert two == pytest.approx(found / 2), "two engines hold twice as much"
    assert math.isnan(kv_cache.useful_share(observe(rows, said=usage))), (
        "the size of a block is unknown"
    )
    assert math.isnan(
        kv_cache.useful_share(
            observe(rows, said=[*samples(kv_cache.USAGE, lambda t: 0), *config(101, 16)])
        )
    )
    unknown = samples(
        kv_cache.CONFIG, lambda t: 1, json.dumps({"block_size": "16", "num_gpu_blocks": "None"})
    )
    assert math.isnan(kv_cache.useful_share(observe(rows, said=[*usage, *unknown])))


def test_a_server_without_metrics_has_no_share(observe):
    assert math.isnan(kv_cache.useful_share(observe()))


def test_the_peak_and_the_preemptions(observe):
    usage = [
        *samples(kv_cache.USAGE, lambda t: 0.5 if t < 5 else 0.9 if t == 5 else 0.2),
        *samples(kv_cache.USAGE, lambda t: 0.7, '{"engine": "1"}'),
    ]
    late = samples(kv_cache.USAGE, lambda t: 1.0 if t > 10 else 0.0, '{"engine": "2"}')
    lost = [
        *samples(kv_cache.PREEMPTIONS, lambda t: 4 + (t >= 4) + (t >= 11)),
        *samples(kv_cache.PREEMPTIONS, lambda t: 2 * (t >= 9), '{"engine": "1"}'),
    ]
    o = observe(said=[*usage, *late, *lost])
    assert kv_cache.used_peak_share(o) == 0.9, "the fullest engine, in the window"
    assert kv_cache.preemptions(o) == 3, "of all engines, in the window"
    assert math.isnan(kv_cache.used_peak_share(observe())) and math.isnan(
        kv_cache.preemptions(observe())
    ), "the server does not report it"


def counted(name, rise, engine="0"):
    return samples(name, lambda t: 1000 + rise * t, json.dumps({"engine": engine}))


def test_prefix_hits_are_of_all_engines_in_the_window(observe):
    said = [
        *counted(kv_cache.PREFIX_QUERIES, 200),
        *counted(kv_cache.PREFIX_HITS, 20),
        *counted(kv_cache.PREFIX_QUERIES, 100, "1"),
        *counted(kv_cache.PREFIX_HITS, 70, "1"),
    ]
    assert kv_cache.prefix_hit_share(observe(said=said)) == pytest.approx(90 / 300)
    off = [*counted(kv_cache.PREFIX_QUERIES, 0), *counted(kv_cache.PREFIX_HITS, 0)]
    assert math.isnan(kv_cache.prefix_hit_share(observe(said=off)))
    assert math.isnan(kv_cache.prefix_hit_share(observe()))


def test_shared_blocks_have_no_useful_share(observe):
    """Two requests that share a block would count its tokens twice: 180% of the held positions."""
    usage = [*samples(kv_cache.USAGE, lambda t: 0.03), *config(101, 16)]
    queries = counted(kv_cache.PREFIX_QUERIES, 200)
    missed = [*usage, *queries, *counted(kv_cache.PREFIX_HITS, 0)]
    shared = [*usage, *queries, *counted(kv_cache.PREFIX_HITS, 20)]
    assert kv_cache.useful_share(observe(said=missed)) > 0
    assert math.isnan(kv_cache.useful_share(observe(said=shared)))
