"""Metrics of resources: processor, memory, GPU, energy, money, start-up."""

import json
import math

from analysis import hardware
from analysis.case import CaseData
from analysis.metrics import roofline
from analysis.metrics.requests import (
    goodput_tokens_per_s,
    mean_or_nan,
    output_tokens_per_s,
    requests_per_s,
)
from analysis.stats import NAN, values_needed


def server_cores(case: CaseData) -> float:
    """CPU cores that the server's process tree kept busy in the window: the rise of its CPU time
    per second.
    """
    return case.slope("server_cpu_s")


def server_cpu_per_request_s(case: CaseData) -> float:
    """CPU time of the server's process tree in the window, divided by the requests that completed
    in it: server CPU / requests.
    """
    rate = requests_per_s(case)
    return server_cores(case) / rate if rate > 0 else NAN


def server_peak_bytes(case: CaseData) -> float:
    """Largest proportional set size (PSS) of the server's process tree during the whole case."""
    return float(case.telemetry["server_pss_bytes"].max())


def context_switches_per_s(case: CaseData) -> float:
    """Voluntary and involuntary context switches per second of the server's process tree in the
    window.
    """
    return case.slope("server_context_switches_total")


def tokens_per_cpu_s(case: CaseData) -> float:
    """Output throughput divided by the CPU cores that the server used."""
    cores = server_cores(case)
    return output_tokens_per_s(case) / cores if cores > 0 else NAN


def machine_cores(case: CaseData) -> float:
    """CPU cores that were busy in the window on the machine of an endpoint, by all its processes,
    but without the load generator: those of --host-metrics, or of this machine if the endpoint has
    an address of it. A server that Serveoff started has its own CPU time instead.
    """
    if case.run.get("command") or not case.server_machine:
        return NAN
    load = case.slope("load_cpu_s") if case.server_machine["here"] else 0.0
    return case.slope("cpu_busy_s") - load


def machine_memory_bytes(case: CaseData) -> float:
    """Largest memory in use during the whole case on the machine of an endpoint: all of it minus
    what the system reports as available. The machine is that of `machine CPU`.
    """
    machine = case.server_machine
    if case.run.get("command") or not machine:
        return NAN
    total = machine.get("memory_bytes")
    if machine["here"] and not machine["host_exporter"]:
        memory = (case.campaign.get("manifest") or {}).get("memory")
        total = memory.get("total_bytes") if isinstance(memory, dict) else None
    return float(total - case.telemetry["memory_available_bytes"].min()) if total else NAN


# Samples of an exporter that a mean needs: it may repeat its values for 30 s, and each is the state
# of a moment.
FEWEST_SAMPLES = 5


def mean_sample(case: CaseData, column: str) -> float:
    """The mean of a telemetry column over the window; nan if an exporter had too few samples."""
    found = case.samples(column)
    if case.is_exported(column) and not case.covers_window(found["time_s"], FEWEST_SAMPLES):
        return NAN
    return float(found[column].mean())


def gpu_utilization_percent(case: CaseData) -> float:
    """Mean of the utilisation, by NVML or by the exporter of --gpu-metrics, over the window and the
    GPUs that the server uses (all GPUs where that is unknown, here and below): the share of the
    time in which any kernel ran. It does not show how much of its peak a card reached; MBU and MFU
    do. Numbers of an exporter need 5 new samples, over at least half of the window.
    """
    return mean_or_nan([mean_sample(case, c) for c in case.gpu_columns("utilization_percent")])


def gpu_memory_bytes(case: CaseData) -> float:
    """Largest GPU memory in use during the whole case, by all processes, summed over the GPUs that
    the server uses.
    """
    columns = case.gpu_columns("memory_used_bytes")
    # each exporter has rows of its own
    used = case.telemetry[columns].ffill().sum(axis="columns", min_count=1)
    return float(used.max()) if columns else NAN


def gpu_power_w(case: CaseData) -> float:
    """Mean power in the window, summed over the GPUs that the server uses."""
    return _mean_power_w(case, used=True)


def gpu_others_power_w(case: CaseData) -> float:
    """Mean power in the window, summed over the GPUs that the server does not use. No other number
    includes it, except that a price is for the whole machine.
    """
    return _mean_power_w(case, used=False)


def _mean_power_w(case: CaseData, used: bool) -> float:
    columns = case.gpu_columns("power_w", used)
    return float(sum(mean_sample(case, c) for c in columns)) if columns else NAN


def gpu_tokens_per_joule(case: CaseData) -> float:
    """Output throughput divided by the rise per second of the energy counters in the window, by
    NVML or by the exporter of --gpu-metrics, summed over the GPUs that the server uses. A card
    without a counter has its mean power instead. – if an exporter's counter rises by less than half
    or more than twice the power that it reports. The energy of other GPUs, CPU, memory and cooling
    is not included.
    """
    columns = case.gpu_columns("energy_j")
    power = float(sum(energy_w(case, c.removesuffix("_energy_j")) for c in columns))
    return output_tokens_per_s(case) / power if columns and power > 0 else NAN


def energy_w(case: CaseData, gpu: str) -> float:
    """The rise per second of a GPU's energy counter, or else its mean power, in W."""
    counted, power = case.slope(f"{gpu}_energy_j"), mean_sample(case, f"{gpu}_power_w")
    if case.is_exported(f"{gpu}_energy_j") and not is_plausible(counted, power):
        return NAN
    return power if math.isnan(counted) else counted


def is_plausible(counted_w: float, power_w: float) -> bool:
    """Whether a counter of energy agrees with the power, as far as both are known."""
    return not (counted_w < power_w / 2 or counted_w > 2 * power_w)


def usd_per_million_tokens(case: CaseData) -> float:
    """The machine's price per hour / 3600 / goodput in tokens/s x 1,000,000: US dollars for a
    million output tokens of requests that met every bound of the SLO, on a machine that is always
    loaded like this. ∞ if no request met them.
    """
    if case.machine_cost.price is None or not case.length > 0:
        return NAN
    good = goodput_tokens_per_s(case)
    return case.machine_cost.price.usd_per_hour / 3600 / good * 1e6 if good > 0 else math.inf


def mbu(case: CaseData) -> float:
    """Model bandwidth utilisation: the bytes per second that the model had to move, divided by the
    peak memory bandwidth of the GPUs that the server uses. It is (weights + keys and values) / TPOT
    / peak (Databricks, "LLM inference performance engineering: best practices", 2023), extended to
    batches: weights x forward passes per second + 2 x layers x key-value heads x head size x tokens
    that the generated tokens attend to per second, times the bytes of a value (2 in bfloat16). vLLM
    counts its passes; Transformers with one request at a time makes one per token; for others the
    passes, and so MBU, are a lower bound. MBU exceeds 100% where weights stay in a cache nearer
    than that memory. – on simulated engines, with quantised weights, with a response cache that had
    hits, or if the model's shape or the peak is unknown.
    """
    peak = hardware.find_peaks(case.gpu_names, case.machine_cost).bytes_per_s
    return roofline.bytes_per_s(case) / peak if peak > 0 else NAN


def mfu(case: CaseData) -> float:
    """Model FLOPs utilisation: the operations per second that the model had to do, divided by the
    peak of the GPUs that the server uses. A token of a prompt or response takes 2 N + 4 L H Q T
    (the forward pass of Chowdhery et al., "PaLM", 2022, appendix B). N is the number of parameters
    without the input embedding table (and without the output head for tokens that predict none), L
    layers, H heads, Q head size, T the tokens that it attends to. – under the same conditions as
    MBU, and after hits of a prefix cache.
    """
    peak = hardware.find_peaks(case.gpu_names, case.machine_cost).flops
    return roofline.flops(case) / peak if peak > 0 else NAN


def load_cpu_share(case: CaseData) -> float:
    """Share of the window in which the busiest load worker computed; each computes on one core. In
    older campaigns: the cores that the load generator kept busy, divided by the cores that it could
    use (one per load worker, at most those assigned to it).
    """
    shares = [worker.get("cpu_share") for worker in case.run.get("load_workers") or []]
    if shares and None not in shares:
        return float(max(shares))
    cores = (case.campaign.get("machine_share") or {}).get("load_cores")
    cores = len(cores) if isinstance(cores, list) else cores or math.inf
    workers = max(case.requests["worker"].nunique(), 1)
    return case.slope("load_cpu_s") / min(cores, workers)


def event_loop_lag_p99_s(case: CaseData) -> float:
    """P99 over the window of how late the server's event loop ran a callback that is due every
    50 ms: the upper bound of its bucket in serveoff_event_loop_lag_seconds, between the first and
    the last scrape in the window. All processes together; for a gateway, with the servers behind
    it.
    """
    m = case.server_metrics
    rows = m[m["name"] == "serveoff_event_loop_lag_seconds_bucket"]
    at = rows["time_s"] + rows["took_s"]
    bounds = rows["labels"].map(lambda labels: float(json.loads(labels)["le"])).astype("float64")
    counts = rows["value"].groupby([at, bounds]).sum().unstack()
    counts = counts[case.inside(counts.index)]
    if len(counts) < 2:
        return NAN
    risen = counts.iloc[-1] - counts.iloc[0]
    total = float(risen.iloc[-1])  # le is "+Inf"
    return (
        float(risen.index[(risen >= 0.99 * total).argmax()]) if total >= values_needed(99) else NAN
    )


def startup_s(case: CaseData) -> float:
    """Time from the start of the server's process to the first 200 response of /health."""
    value = case.run.get("startup_s")
    return NAN if value is None else float(value)
