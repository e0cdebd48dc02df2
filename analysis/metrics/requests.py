"""Metrics of requests and their tokens: throughput, goodput, errors, latencies, batches, cache."""

from typing import Any

import numpy as np
import pandas as pd

from analysis.case import CaseData
from analysis.stats import NAN, percentile


def output_tokens_per_s(case: CaseData) -> float:
    """Tokens that arrived inside the window / its length, of requests that did not fail."""
    times, numbers = case.completed_tokens
    return float(numbers[case.inside(times)].sum()) / case.length


def partial_tokens_per_s(case: CaseData) -> float:
    """Tokens that arrived inside the window / its length, of requests that failed later: nobody
    could use them, so they are no output throughput.
    """
    times, numbers = case.partial_tokens
    return float(numbers[case.inside(times)].sum()) / case.length


def reasoning_share(case: CaseData) -> float:
    """Share of reasoning tokens in all tokens of the requests scheduled in the window that did not
    fail.
    """
    r = case.scheduled[~case.scheduled["failed"] & case.scheduled["reasoning_tokens"].notna()]
    tokens = float(sum_arrays(r["token_n"]).sum())
    return float(r["reasoning_tokens"].sum()) / tokens if tokens > 0 else NAN


def user_tokens_per_s(case: CaseData) -> float:
    """How fast an answer runs for its reader: 1 / TPOT P50, "output token throughput per user" of
    NVIDIA's AIPerf. The wait for the first token is not in it: TTFT is beside it.
    """
    tpot = percentile(case.latencies("tpot_s"), 50)
    return 1 / tpot if tpot > 0 else NAN


def requests_per_s(case: CaseData) -> float:
    """Requests that finished inside the window, complete and not wrong / its length."""
    return float(case.finished["good"].sum()) / case.length


def goodput_per_s(case: CaseData) -> float:
    """Requests that finished inside the window, complete and not wrong, and met every bound of the
    SLO / its length. A response of several tokens whose TPOT could not be measured meets no bound
    of TPOT.
    """
    return float(case.finished["met_slo"].sum()) / case.length


def slo_attainment(case: CaseData) -> float:
    """Share of the requests scheduled in the window that were complete, not wrong and met every
    bound of the SLO.
    """
    return _share(case.scheduled["met_slo"])


def error_share(case: CaseData) -> float:
    """Share of the requests scheduled in the window that failed, for whatever reason."""
    return _share(case.scheduled["failed"])


def wrong_share(case: CaseData) -> float:
    """Share of the requests scheduled in the window whose answer was not the expected one."""
    return _share(case.scheduled["answer"] == "wrong")


def requests_scheduled(case: CaseData) -> float:
    """Requests scheduled in the window: the n of TTFT and E2E."""
    return float(len(case.scheduled)) if case.run.get("window") else NAN


def requests_completed(case: CaseData) -> float:
    """Those of them that did not fail."""
    return float((~case.scheduled["failed"]).sum()) if case.run.get("window") else NAN


def requests_of_several_tokens(case: CaseData) -> float:
    """Those of them that did not fail and whose TPOT is known, which takes more than one token and
    a usage that can be believed: the n of TPOT and of ITL, whose gaps within one request are no
    independent values.
    """
    return float(case.scheduled["tpot_s"].notna().sum()) if case.run.get("window") else NAN


def ttft_mean_s(case: CaseData) -> float:
    """Mean of first chunk with a generated token, visible or reasoning - scheduled, completed
    requests only.
    """
    return mean_or_nan(case.latencies("ttft_s", failures=False))


def itl_mean_s(case: CaseData) -> float:
    """Mean of the gaps between chunks that carry tokens."""
    return mean_or_nan(case.latencies("itl_s"))


def tokens_per_chunk(case: CaseData) -> float:
    """Mean tokens in a chunk that carries any, of the requests scheduled in the window; 1 is a
    stream token by token.
    """
    numbers = list(case.scheduled["token_n"])
    return mean_or_nan(np.concatenate(numbers)) if numbers else NAN


def outside_engine_p50_s(case: CaseData) -> float:
    """Median of E2E - (queue_ms + prompt_ms + predicted_ms) of the server's own timings: what the
    architecture, the network and the client add to the engine's time; requests scheduled in the
    window that did not fail.
    """
    r = case.scheduled[~case.scheduled["failed"]]
    outside = r["e2e_s"] - (r["queue_ms"] + r["prompt_ms"] + r["predicted_ms"]) / 1000
    return percentile(outside.dropna().to_numpy(), 50)


def cache_hit_share(case: CaseData) -> float:
    """Share of hits in what the server says of its cache of answers: rise of
    serveoff_cache_hits_total / that of it and of serveoff_cache_misses_total, from its first to its
    last word on them in the window.
    """
    said = [case.served(f"serveoff_cache_{what}_total") for what in ("hits", "misses")]
    hits, misses = (
        float(np.ptp(s[inside])) if (inside := case.inside(s.index)).sum() > 1 else NAN
        for s in said
    )
    return hits / (hits + misses) if hits + misses > 0 else NAN


def running_mean(case: CaseData) -> float:
    """Requests that the engine worked on at once, mean over the window: the sum over the completed
    requests of its time for each (prompt_ms before the first token, predicted_ms from it on) inside
    the window / its length (Little's law). Of a server without timings the mean of what it said in
    the window (vllm:num_requests_running).
    """
    r = case.rows[~case.rows["failed"] & case.rows["first_s"].notna()]
    begin, end = r["first_s"] - r["prompt_ms"] / 1e3, r["first_s"] + r["predicted_ms"] / 1e3
    if len(r) and end.notna().all() and begin.notna().all():
        return float((end.clip(*case.window) - begin.clip(*case.window)).sum()) / case.length
    said = case.served("vllm:num_requests_running", "serveoff_requests_running")
    return mean_or_nan(said[case.inside(said.index)])


def goodput_tokens_per_s(case: CaseData) -> float:
    """Output tokens of the requests that goodput counts / the window's length."""
    good = case.finished[case.finished["met_slo"]]
    return float(sum(n.sum() for n in good["token_n"])) / case.length


def sum_arrays(arrays: pd.Series) -> np.ndarray:
    """The sum of each array, 0 of an empty one, a hundred times as fast as one by one."""
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
    """Mean of the values; nan if there are none."""
    return float(np.mean(values)) if len(values) else NAN
