"""Metrics of the memory for keys and values (the KV cache): how much of it holds tokens that are
needed, the measure that motivated paged attention, how full it gets, and how much of a prompt it
spares.
"""

import contextlib
import json

import numpy as np
import pandas as pd

from analysis.case import CaseData
from analysis.stats import NAN

POSITIONS = "serveoff_kv_positions_total"
USEFUL = "serveoff_kv_positions_useful_total"
USAGE, CONFIG, PREEMPTIONS = (
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
    "vllm:num_preemptions_total",
)
PREFIX_QUERIES, PREFIX_HITS = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"


def useful_share(case: CaseData) -> float:
    """Share of the positions held for keys and values that unfinished requests need, over the
    window: the "token states" of Kwon et al., "Efficient memory management for large language model
    serving with PagedAttention", 2023, figure 2. Static batches count both at each step; the rest
    is padding and finished rows. For vLLM: tokens of the requests between their first and their
    last token / (blocks in use x block size), mean over the scrapes in the window. That is a lower
    bound, since prompts that are being read also hold blocks. – for other engines, which hold
    exactly one request's positions or do not report them, and after hits of the prefix cache, whose
    blocks several requests share.
    """
    counted = [case.served(name) for name in (USEFUL, POSITIONS)]
    useful, held = (
        float(np.ptp(s[inside])) if (inside := case.inside(s.index)).sum() > 1 else NAN
        for s in counted
    )
    if held > 0:
        return useful / held
    usages = case.served(USAGE)
    usages = usages[case.inside(usages.index) & (usages > 0)]
    positions = paged_positions(case.server_metrics)
    if usages.empty or not positions > 0 or prefix_hit_share(case) > 0:
        return NAN
    return float(
        np.mean([tokens_at(case.rows, at) / (usage * positions) for at, usage in usages.items()])
    )


def used_peak_share(case: CaseData) -> float:
    """Largest share of its blocks for keys and values that any of vLLM's engines reported in use in
    the window (vllm:kv_cache_usage_perc, a share despite its name). At 100%, requests wait or are
    preempted.
    """
    m = case.server_metrics
    usages = m[(m["name"] == USAGE) & case.inside(m["time_s"] + m["took_s"])]
    return float(usages["value"].max()) if len(usages) else NAN


def preemptions(case: CaseData) -> float:
    """Times that vLLM evicted a running request for lack of room, to compute its keys and values
    again later: the rise of vllm:num_preemptions_total between the first and the last scrape in the
    window.
    """
    return _rise(case, PREEMPTIONS)


def prefix_hit_share(case: CaseData) -> float:
    """Share of the prompts' tokens whose keys and values vLLM found in its prefix cache and did not
    compute: the rise of vllm:prefix_cache_hits_total divided by that of
    vllm:prefix_cache_queries_total, both of all engines and between the first and the last scrape
    in the window. – if the cache is off.
    """
    found, asked = (_rise(case, name) for name in (PREFIX_HITS, PREFIX_QUERIES))
    return found / asked if asked > 0 else NAN


def _rise(case: CaseData, name: str) -> float:
    counter = case.served(name)
    counter = counter[case.inside(counter.index)]
    return float(np.ptp(counter)) if len(counter) > 1 else NAN


def paged_positions(server_metrics: pd.DataFrame) -> float:
    """Blocks x block size of one engine, as vLLM reports its cache; one block is always empty. All
    engines of a server have the same size, so their shares in use can be added.
    """
    for labels in map(
        json.loads, server_metrics[server_metrics["name"] == CONFIG]["labels"].dropna().unique()
    ):
        with contextlib.suppress(KeyError, ValueError):  # "None": not yet known
            return float((int(labels["num_gpu_blocks"]) - 1) * int(labels["block_size"]))
    return NAN


def tokens_at(rows: pd.DataFrame, at: float) -> float:
    """Tokens of the prompts and responses in the engine at that moment, as the client sees them."""
    under_way = rows[(rows["first_s"] <= at) & (at < rows["last_s"])]
    answered = sum(
        float(n[t <= at].sum())
        for t, n in zip(under_way["token_s"], under_way["token_n"], strict=True)
    )
    return float(under_way["prompt_tokens"].sum()) + answered
