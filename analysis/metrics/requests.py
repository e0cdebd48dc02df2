"""Metrics of requests and their tokens: throughput, goodput, errors, latencies, batches, cache."""

from typing import Any

import numpy as np
import pandas as pd

from analysis.case import CaseData
from analysis.stats import NAN, percentile


def output_tokens_per_s(case: CaseData) -> float:
    """Output tokens that arrived inside the window, divided by its length; visible and reasoning
    tokens of requests that did not fail.
    """
    times, numbers = case.completed_tokens
    return float(numbers[case.inside(times)].sum()) / case.length


def partial_tokens_per_s(case: CaseData) -> float:
    """Output tokens that arrived inside the window, divided by its length, of requests that failed
    later. Output throughput does not count them.
    """
    times, numbers = case.partial_tokens
    return float(numbers[case.inside(times)].sum()) / case.length


def reasoning_share(case: CaseData) -> float:
    """Reasoning tokens as a share of all output tokens, over the completed requests scheduled in
    the window whose reasoning tokens are known.
    """
    r = case.scheduled[~case.scheduled["failed"] & case.scheduled["reasoning_tokens"].notna()]
    tokens = float(sum_arrays(r["token_n"]).sum())
    return float(r["reasoning_tokens"].sum()) / tokens if tokens > 0 else NAN


def user_tokens_per_s(case: CaseData) -> float:
    """1 / TPOT P50: how fast a response streams for its reader, AIPerf's "output token throughput
    per user". It leaves out the wait for the first token, which is TTFT.
    """
    tpot = percentile(case.latencies("tpot_s"), 50)
    return 1 / tpot if tpot > 0 else NAN


def requests_per_s(case: CaseData) -> float:
    """Requests that finished inside the window, complete and not wrong, divided by its length."""
    return float(case.finished["good"].sum()) / case.length


def goodput_per_s(case: CaseData) -> float:
    """Requests that finished inside the window, complete and not wrong, and met every bound of the
    SLO, divided by the window's length. A response of one token meets every bound of TPOT; one of
    several tokens whose TPOT is unknown meets none.
    """
    return float(case.finished["met_slo"].sum()) / case.length


def slo_attainment(case: CaseData) -> float:
    """Share of the requests scheduled in the window that were complete, were not wrong and met
    every bound of the SLO.
    """
    return _share(case.scheduled["met_slo"])


def error_share(case: CaseData) -> float:
    """Share of the requests scheduled in the window that failed, for any reason."""
    return _share(case.scheduled["failed"])


def wrong_share(case: CaseData) -> float:
    """Share of the requests scheduled in the window whose response was not the expected one; 0 if
    the model's responses are not known beforehand.
    """
    return _share(case.scheduled["answer"] == "wrong")


def requests_scheduled(case: CaseData) -> float:
    """Requests scheduled in the window: the sample size n of TTFT and E2E."""
    return float(len(case.scheduled)) if case.run.get("window") else NAN


def requests_completed(case: CaseData) -> float:
    """Requests scheduled in the window that did not fail: the n of the percentiles over completed
    requests.
    """
    return float((~case.scheduled["failed"]).sum()) if case.run.get("window") else NAN


def requests_of_several_tokens(case: CaseData) -> float:
    """Requests scheduled in the window that did not fail and have a TPOT: the n of TPOT and of ITL.
    ITL counts requests because the gaps within one request are not independent.
    """
    return float(case.scheduled["tpot_s"].notna().sum()) if case.run.get("window") else NAN


def ttft_mean_s(case: CaseData) -> float:
    """Mean time to first token of the completed requests scheduled in the window: from scheduled to
    the first chunk with a generated token, visible or reasoning.
    """
    return mean_or_nan(case.latencies("ttft_s", failures=False))


def itl_mean_s(case: CaseData) -> float:
    """Mean inter-token latency: the gaps between consecutive chunks that carry tokens, pooled over
    the requests scheduled in the window.
    """
    return mean_or_nan(case.latencies("itl_s"))


def tokens_per_chunk(case: CaseData) -> float:
    """Mean number of tokens in a chunk that carries any, over the requests scheduled in the window;
    1 means that the server streams token by token.
    """
    numbers = list(case.scheduled["token_n"])
    return mean_or_nan(np.concatenate(numbers)) if numbers else NAN


def outside_engine_p50_s(case: CaseData) -> float:
    """Median of E2E - (queue_ms + prompt_ms + predicted_ms), the last three from the server's own
    timings: the time that the architecture, the network and the client add to that of the engine.
    Over the completed requests scheduled in the window.
    """
    r = case.scheduled[~case.scheduled["failed"]]
    outside = r["e2e_s"] - (r["queue_ms"] + r["prompt_ms"] + r["predicted_ms"]) / 1000
    return percentile(outside.dropna().to_numpy(), 50)


def cache_hit_share(case: CaseData) -> float:
    """Hits / (hits + misses) of the server's response cache: the rises of serveoff_cache_hits_total
    and serveoff_cache_misses_total between the first and the last scrape in the window.
    """
    counters = [case.served(f"serveoff_cache_{what}_total") for what in ("hits", "misses")]
    hits, misses = (
        float(np.ptp(s[inside])) if (inside := case.inside(s.index)).sum() > 1 else NAN
        for s in counters
    )
    return hits / (hits + misses) if hits + misses > 0 else NAN


def running_mean(case: CaseData) -> float:
    """Mean number of requests that the engine worked on at once in the window: the sum over the
    completed requests of the engine's time inside the window (prompt_ms before the first token,
    predicted_ms after it), divided by the window's length (Little's law). For a server without
    timings, the mean of its own gauge (vllm:num_requests_running or serveoff_requests_running).
    """
    r = case.rows[~case.rows["failed"] & case.rows["first_s"].notna()]
    begin, end = r["first_s"] - r["prompt_ms"] / 1e3, r["first_s"] + r["predicted_ms"] / 1e3
    if len(r) and end.notna().all() and begin.notna().all():
        return float((end.clip(*case.window) - begin.clip(*case.window)).sum()) / case.length
    gauge = case.served("vllm:num_requests_running", "serveoff_requests_running")
    return mean_or_nan(gauge[case.inside(gauge.index)])


def goodput_tokens_per_s(case: CaseData) -> float:
    """All output tokens of the requests that goodput counts, divided by the window's length."""
    good = case.finished[case.finished["met_slo"]]
    return float(sum(n.sum() for n in good["token_n"])) / case.length


def sum_arrays(arrays: pd.Series) -> np.ndarray:
    """The sum of each array, 0 for an empty one; a hundred times as fast as a sum for each."""
    lengths = np.array([len(each) for each in arrays], dtype="int64")
    total = (
        np.concatenate([[0.0], np.cumsum(np.concatenate(list(arrays)))])
        if len(arrays)
        else np.zeros(1)
    )
    ends = np.cumsum(lengths)
    return total[ends] - total[ends - lengths]


def _share(flags: pd.Series) -> float:
    return float(flags.mean()) if len(flags) else NAN


def mean_or_nan(values: Any) -> float:
    """The mean of the values; nan without values."""
    return float(np.mean(values)) if len(values) else NAN
