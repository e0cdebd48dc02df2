"""Memory for keys and values: how much of what an engine holds has tokens in it, which made paged
attention known, and how full it gets.
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


def useful_share(case: CaseData) -> float:
    """Positions of tokens that unfinished requests need / positions that the engine holds for keys
    and values, over the window: "token states" of Kwon et al., "Efficient memory management for
    large language model serving with PagedAttention", 2023, figure 2. Static batches count both at
    each step: padding and rows that have ended are the rest. vLLM: tokens of the requests between
    their first and their last token / blocks in use x block size, mean over the moments at which it
    said how many those were; prompts that are just being read hold blocks, too, so this is a lower
    bound. – of others, which hold one request's exactly, or do not say.
    """
    counted = [case.served(name) for name in (USEFUL, POSITIONS)]
    useful, held = (
        float(np.ptp(s[inside])) if (inside := case.inside(s.index)).sum() > 1 else NAN
        for s in counted
    )
    if held > 0:
        return useful / held
    said = case.served(USAGE)
    said = said[case.inside(said.index) & (said > 0)]
    positions = paged_positions(case.server_metrics)
    if said.empty or not positions > 0:
        return NAN
    return float(
        np.mean([tokens_at(case.rows, at) / (usage * positions) for at, usage in said.items()])
    )


def used_peak_share(case: CaseData) -> float:
    """Most that any of vLLM's engines had in use of its blocks for keys and values, by its word in
    the window (vllm:kv_cache_usage_perc, a share in spite of its name). At 100% requests wait, or
    are preempted.
    """
    m = case.server_metrics
    said = m[(m["name"] == USAGE) & case.inside(m["time_s"] + m["took_s"])]
    return float(said["value"].max()) if len(said) else NAN


def preemptions(case: CaseData) -> float:
    """Requests that lost their place, and whose keys and values were computed again, since there
    was no room: rise of vllm:num_preemptions_total over the window, from its first to its last word
    on it there.
    """
    said = case.served(PREEMPTIONS)
    said = said[case.inside(said.index)]
    return float(np.ptp(said)) if len(said) > 1 else NAN


def paged_positions(server_metrics: pd.DataFrame) -> float:
    """Blocks x block size of one engine by vLLM's word on its cache; one block is always empty.
    Several engines have the same, and the shares that they use of it are added up.
    """
    for labels in map(
        json.loads, server_metrics[server_metrics["name"] == CONFIG]["labels"].dropna().unique()
    ):
        with contextlib.suppress(KeyError, ValueError):  # "None": not known yet
            return float((int(labels["num_gpu_blocks"]) - 1) * int(labels["block_size"]))
    return NAN


def tokens_at(rows: pd.DataFrame, at: float) -> float:
    """Of prompts and answers that are in the engine at that moment, as far as a client can see."""
    under_way = rows[(rows["first_s"] <= at) & (at < rows["last_s"])]
    answered = sum(
        float(n[t <= at].sum())
        for t, n in zip(under_way["token_s"], under_way["token_n"], strict=True)
    )
    return float(under_way["prompt_tokens"].sum()) + answered
