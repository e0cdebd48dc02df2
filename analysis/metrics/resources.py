"""Metrics of what was spent: processor, memory, GPU, energy and money, start-up."""

import json
import math

from analysis import hardware
from analysis.case import CaseData
from analysis.metrics import roofline
from analysis.metrics.requests import goodput_tokens_per_s, mean_or_nan, output_tokens_per_s
from analysis.stats import NAN, values_needed


def server_cores(case: CaseData) -> float:
    """CPU cores that the server's process tree kept busy in the window: rise of its CPU time /
    time.
    """
    return case.slope("server_cpu_s")


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
    return mean_or_nan([case.samples(c)[c].mean() for c in case.gpu_columns("utilization_percent")])


def gpu_memory_bytes(case: CaseData) -> float:
    """Largest memory that all processes used in the whole case, sum of all GPUs."""
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


def startup_s(case: CaseData) -> float:
    """From the start of the server's process to the first 200 of /health."""
    value = case.run.get("startup_s")
    return NAN if value is None else float(value)
