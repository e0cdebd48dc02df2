"""The metrics of a case: METRICS is the table, and `measure_case` applies it to one case. Formulas
stand once, in the modules beside this one; stats.py combines the numbers of several cases.
"""

from collections.abc import Callable
from typing import NamedTuple

from analysis.case import CaseData
from analysis.metrics import kv_cache, requests, resources
from analysis.stats import NAN, percentile, values_needed


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
            "first chunk with a generated token, visible or reasoning - scheduled; a failure counts"
            " as +inf",
        ),
        (
            "visible_ttft_s",
            "visible TTFT",
            "requests_scheduled",
            "first chunk with visible text, no reasoning - scheduled; a failure counts as +inf, as"
            " does a response without visible text",
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
            "output_tokens_per_s",
            "output throughput",
            "tokens/s",
            "higher",
            requests.output_tokens_per_s,
        ),
        Metric(
            "partial_tokens_per_s",
            "tokens of failed requests",
            "tokens/s",
            "",
            requests.partial_tokens_per_s,
        ),
        Metric("requests_per_s", "requests", "1/s", "higher", requests.requests_per_s),
        Metric(
            "user_tokens_per_s",
            "tokens/s for a user",
            "tokens/s",
            "higher",
            requests.user_tokens_per_s,
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
            requests.ttft_mean_s,
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
            requests.itl_mean_s,
            "ms",
            1000,
            "requests_of_several_tokens",
            values_needed(50),
        ),
        Metric("requests_scheduled", "requests in the window", "", "", requests.requests_scheduled),
        Metric("requests_completed", "of them completed", "", "", requests.requests_completed),
        Metric(
            "requests_of_several_tokens",
            "of them with a TPOT",
            "",
            "",
            requests.requests_of_several_tokens,
        ),
        Metric("error_share", "errors", "share", "lower", requests.error_share, "%", 100),
        Metric("wrong_share", "wrong answers", "share", "lower", requests.wrong_share, "%", 100),
        Metric("goodput_per_s", "goodput", "1/s", "higher", requests.goodput_per_s),
        Metric(
            "slo_attainment", "SLO attainment", "share", "higher", requests.slo_attainment, "%", 100
        ),
        Metric(
            "reasoning_share", "reasoning tokens", "share", "", requests.reasoning_share, "%", 100
        ),
        Metric("tokens_per_chunk", "tokens a chunk", "tokens", "", requests.tokens_per_chunk),
        Metric(
            "outside_engine_p50_s",
            "outside the engine P50",
            "s",
            "lower",
            requests.outside_engine_p50_s,
            "ms",
            1000,
            "requests_completed",
            values_needed(50),
        ),
        Metric(
            "cache_hit_share", "cache hits", "share", "higher", requests.cache_hit_share, "%", 100
        ),
        Metric("running_mean", "running at once", "", "", requests.running_mean),
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
            resources.event_loop_lag_p99_s,
            "ms",
            1000,
        ),
        Metric("server_cores", "server CPU", "cores", "lower", resources.server_cores),
        Metric(
            "tokens_per_cpu_s",
            "tokens a CPU second",
            "tokens/s",
            "higher",
            resources.tokens_per_cpu_s,
        ),
        Metric(
            "context_switches_per_s",
            "context switches",
            "1/s",
            "lower",
            resources.context_switches_per_s,
        ),
        Metric(
            "load_cpu_share",
            "load generator's CPU",
            "share",
            "lower",
            resources.load_cpu_share,
            "%",
            100,
        ),
        Metric(
            "server_peak_bytes",
            "server memory",
            "bytes",
            "lower",
            resources.server_peak_bytes,
            "MiB",
            2**-20,
        ),
        Metric("gpu_utilization_percent", "GPU", "%", "", resources.gpu_utilization_percent),
        Metric(
            "gpu_memory_bytes",
            "GPU memory",
            "bytes",
            "lower",
            resources.gpu_memory_bytes,
            "MiB",
            2**-20,
        ),
        Metric("gpu_power_w", "GPU power", "W", "lower", resources.gpu_power_w),
        Metric(
            "gpu_tokens_per_joule",
            "tokens a joule",
            "tokens/J",
            "higher",
            resources.gpu_tokens_per_joule,
        ),
        Metric(
            "goodput_tokens_per_s",
            "goodput, tokens",
            "tokens/s",
            "higher",
            requests.goodput_tokens_per_s,
        ),
        Metric(
            "usd_per_million_tokens",
            "cost of a million good tokens",
            "USD",
            "lower",
            resources.usd_per_million_tokens,
        ),
        Metric("mbu", "MBU", "share", "higher", resources.mbu, "%", 100),
        Metric("mfu", "MFU", "share", "higher", resources.mfu, "%", 100),
        Metric("startup_s", "start-up", "s", "lower", resources.startup_s),
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
