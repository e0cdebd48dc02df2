"""Every formula, once: METRICS is the table, and `measure` applies it to one case. How numbers of
several cases are put together is in statistics.py.
"""

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis import hardware
from analysis.case import CaseData
from analysis.metrics import kv_cache, roofline
from analysis.stats import NAN, percentile, values_needed


def output_tokens_per_s(case: CaseData) -> float:
    """Tokens that arrived inside the window / its length, whatever request they belong to."""
    times, numbers = case.tokens
    return float(numbers[case.inside(times)].sum()) / case.length


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
    SLO / its length.
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
    """Those of them that did not fail and have more than one token: the n of TPOT and of ITL, whose
    gaps within one request are no independent values.
    """
    return float(case.scheduled["tpot_s"].notna().sum()) if case.run.get("window") else NAN


def ttft_mean_s(case: CaseData) -> float:
    """Mean of first chunk with a generated token - scheduled, completed requests only."""
    return _mean(case.latencies("ttft_s", failures=False))


def itl_mean_s(case: CaseData) -> float:
    """Mean of the gaps between chunks that carry tokens."""
    return _mean(case.latencies("itl_s"))


def tokens_per_chunk(case: CaseData) -> float:
    """Mean tokens in a chunk that carries any, of the requests scheduled in the window; 1 is a
    stream token by token.
    """
    numbers = list(case.scheduled["token_n"])
    return _mean(np.concatenate(numbers)) if numbers else NAN


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
    return _mean(said[case.inside(said.index)])


def event_loop_lag_p99_s(case: CaseData) -> float:
    """How late the server's event loop ran what was due, each 50 ms, P99 over the window: the upper
    bound of the histogram's bucket in which it lies, from its first to its last word on it there;
    of all its processes, and of a gateway the servers behind it.
    """
    m = case.server_metrics
    rows = m[m["name"] == "serveoff_event_loop_lag_seconds_bucket"]
    at = rows["time_s"] + rows["took_s"]
    bounds = rows["labels"].map(lambda labels: float(json.loads(labels)["le"])).astype("float64")
    said = rows["value"].groupby([at, bounds]).sum().unstack()
    said = said[case.inside(said.index)]
    if len(said) < 2:
        return NAN
    risen = said.iloc[-1] - said.iloc[0]
    total = float(risen.iloc[-1])  # le is "+Inf"
    return (
        float(risen.index[(risen >= 0.99 * total).argmax()]) if total >= values_needed(99) else NAN
    )


def server_cores(case: CaseData) -> float:
    """CPU cores that the server's process tree kept busy in the window: rise of its CPU time /
    time.
    """
    return case.slope("server_cpu_s")


def load_cpu_share(case: CaseData) -> float:
    """Share of the window in which the busiest load worker computed (each computes on one core). Of
    a case that did not record that: cores that the load generator kept busy / cores that it could
    use, one a load worker, at most those it was given.
    """
    shares = [worker.get("cpu_share") for worker in case.run.get("load_workers") or []]
    if shares and None not in shares:
        return float(max(shares))
    cores = (case.campaign.get("machine_share") or {}).get("load_cores")
    cores = len(cores) if isinstance(cores, list) else cores or math.inf
    workers = max(case.requests["worker"].nunique(), 1)
    return case.slope("load_cpu_s") / min(cores, workers)


def server_peak_bytes(case: CaseData) -> float:
    """Largest proportional set size of the server's process tree in the whole case."""
    return float(case.telemetry["server_pss_bytes"].max())


def context_switches_per_s(case: CaseData) -> float:
    """Voluntary and involuntary context switches of the server's process tree in the window /
    time.
    """
    return case.slope("server_context_switches_total")


def tokens_per_cpu_s(case: CaseData) -> float:
    """Output throughput / CPU cores used by the server."""
    cores = server_cores(case)
    return output_tokens_per_s(case) / cores if cores > 0 else NAN


def gpu_utilization_percent(case: CaseData) -> float:
    """Mean of NVML's utilisation in the window over the samples and all GPUs: the share of the time
    in which any kernel ran, which is no share of what the card could do (MBU and MFU are).
    """
    return _mean([case.samples(c)[c].mean() for c in case.gpu_columns("utilization_percent")])


def gpu_memory_bytes(case: CaseData) -> float:
    """Largest memory in use in the whole case, sum of all GPUs, whoever used it."""
    columns = case.gpu_columns("memory_used_bytes")
    return float(case.telemetry[columns].sum(axis="columns", min_count=1).max()) if columns else NAN


def gpu_power_w(case: CaseData) -> float:
    """Mean power in the window, sum of all GPUs."""
    columns = case.gpu_columns("power_w")
    return float(sum(case.samples(c)[c].mean() for c in columns)) if columns else NAN


def gpu_tokens_per_joule(case: CaseData) -> float:
    """Output throughput / (rise of NVML's energy counters in the window, all GPUs, used or not /
    time). What CPU, memory and cooling take is not in it.
    """
    columns = case.gpu_columns("energy_j")
    power = float(sum(case.slope(c) for c in columns))
    return output_tokens_per_s(case) / power if columns and power > 0 else NAN


def goodput_tokens_per_s(case: CaseData) -> float:
    """Output tokens of the requests that goodput counts / the window's length."""
    good = case.finished[case.finished["met_slo"]]
    return float(sum(n.sum() for n in good["token_n"])) / case.length


def usd_per_million_tokens(case: CaseData) -> float:
    """Price of the whole machine an hour / 3600 / goodput in tokens/s x 1,000,000: dollars for a
    million output tokens whose requests met every bound of the SLO, if it were always loaded like
    that. ∞ if none did.
    """
    if case.machine_cost.price is None or not case.length > 0:
        return NAN
    good = goodput_tokens_per_s(case)
    return case.machine_cost.price.usd_per_hour / 3600 / good * 1e6 if good > 0 else math.inf


def mbu(case: CaseData) -> float:
    """Model bandwidth utilisation: bytes a second that the model had to move / the machine's peak
    bandwidth. (Weights + keys and values) / TPOT / peak (Databricks, "LLM inference performance
    engineering: best practices", 2023), over the window and a batch: weights x forward passes a
    second + 2 x layers x key-value heads x head size x tokens that each generated token looks back
    on, times 2 bytes (bfloat16). Passes are those that vLLM counts, or one a token (Transformers
    one request at a time); else they are a lower bound, and so is this. Above 100% where weights
    stay in a cache nearer than that memory. – on simulated engines, with a cache of answers, and if
    the model's shape or the peak is not known.
    """
    peak = hardware.find_peaks(case.campaign, case.machine_cost).bytes_per_s
    return roofline.bytes_per_s(case) / peak if peak > 0 else NAN


def mfu(case: CaseData) -> float:
    """Model FLOPs utilisation: operations a second that the model had to do / the machine's peak.
    The forward pass of Chowdhery et al., "PaLM", 2022, appendix B, 2 N + 4 L H Q T for each token
    of prompts and answers, where N is without the table of input embeddings (and without the output
    head for tokens that predict none) and T is what a token looks back on. – where MBU is.
    """
    peak = hardware.find_peaks(case.campaign, case.machine_cost).flops
    return roofline.flops(case) / peak if peak > 0 else NAN


def startup_s(case: CaseData) -> float:
    """From the start of the server's process to the first 200 of /health."""
    value = case.run.get("startup_s")
    return NAN if value is None else float(value)


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


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else NAN


class Metric(NamedTuple):
    """One number of a case. `unit` is that of the value (and of the name's end); it is shown times
    `scale` as `display_unit`. `sample` names the metric that holds its sample size, and below
    `needs` of them there is no number.
    """

    name: str
    label: str
    unit: str
    better: str  # higher, lower, or nothing where neither is
    value: Callable[[CaseData], float]
    display_unit: str = ""
    scale: float = 1
    sample: str = ""
    needs: int = 0


def _percentiles() -> list[Metric]:
    """P50, P95 and P99 of the latencies; of TTFT and E2E also of the completed requests alone."""
    table = []
    for name, label, count, meaning in (
        (
            "ttft_s",
            "TTFT",
            "requests_scheduled",
            "first chunk with a generated token - scheduled; a failure counts as +inf",
        ),
        (
            "tpot_s",
            "TPOT",
            "requests_of_several_tokens",
            "(last - first) / (tokens - tokens in the first chunk); without failures",
        ),
        (
            "e2e_s",
            "E2E",
            "requests_scheduled",
            "the answer's end - scheduled; a failure counts as +inf",
        ),
        (
            "itl_s",
            "ITL",
            "requests_of_several_tokens",
            "gaps between chunks that carry tokens, all kept",
        ),
        (
            "send_lag_s",
            "send lag",
            "requests_scheduled",
            "sent - scheduled: the load generator's own delay, and the wait for a slot",
        ),
        (
            "slot_wait_s",
            "slot wait",
            "requests_scheduled",
            "wait for a slot under the scenario's cap on concurrency",
        ),
    ):
        for failures in (True, False) if name in ("ttft_s", "e2e_s") else (True,):
            for p in (50, 99) if name in ("send_lag_s", "slot_wait_s") else (50, 95, 99):

                def value(
                    case: CaseData, name: str = name, p: int = p, failures: bool = failures
                ) -> float:
                    return percentile(case.latencies(name, failures), p)

                only_completed = meaning.split(";")[0] + ", completed requests only"
                value.__doc__ = (
                    f"Nearest-rank percentile of {meaning if failures else only_completed}."
                )
                stem = (
                    name.removesuffix("_s") + f"_p{p}" + ("" if failures else "_completed") + "_s"
                )
                suffix = "" if failures else ", completed"
                table.append(
                    Metric(
                        stem,
                        f"{label} P{p}{suffix}",
                        "s",
                        "lower",
                        value,
                        "ms",
                        1000,
                        count if failures else "requests_completed",
                        values_needed(p),
                    )
                )
    return table


METRICS = {
    m.name: m
    for m in (
        Metric(
            "output_tokens_per_s", "output throughput", "tokens/s", "higher", output_tokens_per_s
        ),
        Metric("requests_per_s", "requests", "1/s", "higher", requests_per_s),
        Metric(
            "user_tokens_per_s",
            "tokens/s for a user",
            "tokens/s",
            "higher",
            user_tokens_per_s,
            "",
            1,
            "requests_of_several_tokens",
            values_needed(50),
        ),
        *_percentiles(),
        Metric(
            "ttft_mean_s",
            "TTFT mean",
            "s",
            "lower",
            ttft_mean_s,
            "ms",
            1000,
            "requests_completed",
            values_needed(50),
        ),
        Metric(
            "itl_mean_s",
            "ITL mean",
            "s",
            "lower",
            itl_mean_s,
            "ms",
            1000,
            "requests_of_several_tokens",
            values_needed(50),
        ),
        Metric("requests_scheduled", "requests in the window", "", "", requests_scheduled),
        Metric("requests_completed", "of them completed", "", "", requests_completed),
        Metric(
            "requests_of_several_tokens", "of them with a TPOT", "", "", requests_of_several_tokens
        ),
        Metric("error_share", "errors", "share", "lower", error_share, "%", 100),
        Metric("wrong_share", "wrong answers", "share", "lower", wrong_share, "%", 100),
        Metric("goodput_per_s", "goodput", "1/s", "higher", goodput_per_s),
        Metric("slo_attainment", "SLO attainment", "share", "higher", slo_attainment, "%", 100),
        Metric("tokens_per_chunk", "tokens a chunk", "tokens", "", tokens_per_chunk),
        Metric(
            "outside_engine_p50_s",
            "outside the engine P50",
            "s",
            "lower",
            outside_engine_p50_s,
            "ms",
            1000,
            "requests_completed",
            values_needed(50),
        ),
        Metric("cache_hit_share", "cache hits", "share", "higher", cache_hit_share, "%", 100),
        Metric("running_mean", "running at once", "", "", running_mean),
        Metric(
            "kv_useful_share",
            "useful keys and values",
            "share",
            "higher",
            kv_cache.useful_share,
            "%",
            100,
        ),
        Metric(
            "kv_used_peak_share",
            "keys and values in use, at most",
            "share",
            "",
            kv_cache.used_peak_share,
            "%",
            100,
        ),
        Metric("preemptions", "preemptions", "", "lower", kv_cache.preemptions),
        Metric(
            "event_loop_lag_p99_s",
            "event loop lag P99, at most",
            "s",
            "lower",
            event_loop_lag_p99_s,
            "ms",
            1000,
        ),
        Metric("server_cores", "server CPU", "cores", "lower", server_cores),
        Metric("tokens_per_cpu_s", "tokens a CPU second", "tokens/s", "higher", tokens_per_cpu_s),
        Metric(
            "context_switches_per_s", "context switches", "1/s", "lower", context_switches_per_s
        ),
        Metric(
            "load_cpu_share", "load generator's CPU", "share", "lower", load_cpu_share, "%", 100
        ),
        Metric(
            "server_peak_bytes", "server memory", "bytes", "lower", server_peak_bytes, "MiB", 2**-20
        ),
        Metric("gpu_utilization_percent", "GPU", "%", "", gpu_utilization_percent),
        Metric("gpu_memory_bytes", "GPU memory", "bytes", "lower", gpu_memory_bytes, "MiB", 2**-20),
        Metric("gpu_power_w", "GPU power", "W", "lower", gpu_power_w),
        Metric(
            "gpu_tokens_per_joule", "tokens a joule", "tokens/J", "higher", gpu_tokens_per_joule
        ),
        Metric(
            "goodput_tokens_per_s", "goodput, tokens", "tokens/s", "higher", goodput_tokens_per_s
        ),
        Metric(
            "usd_per_million_tokens",
            "cost of a million good tokens",
            "USD",
            "lower",
            usd_per_million_tokens,
        ),
        Metric("mbu", "MBU", "share", "higher", mbu, "%", 100),
        Metric("mfu", "MFU", "share", "higher", mfu, "%", 100),
        Metric("startup_s", "start-up", "s", "lower", startup_s),
    )
}


def measure_case(case: CaseData) -> dict[str, float]:
    """All metrics of one case by name, in their `unit`; nan where it was not measured or where n is
    too small.
    """
    values = {name: metric.value(case) for name, metric in METRICS.items()}
    return {
        name: NAN if m.sample and values[m.sample] < m.needs else values[name]
        for name, m in METRICS.items()
    }
