"""The metrics of a case. METRICS is the table; `measure_case` applies it to one case.

Each formula stands once, in a module of this folder, and its docstring is the published definition.
stats.py combines the values of several cases.
"""

from collections.abc import Callable
from typing import NamedTuple

from analysis.case import CaseData
from analysis.metrics import kv_cache, requests, resources
from analysis.stats import NAN, percentile, values_needed


class Metric(NamedTuple):
    """One number of a case. `value` computes it in `unit`, which also ends the name; it is shown
    times `scale` in `display_unit`. `sample` names the metric that is its sample size; with fewer
    than `needs` of them the value is missing.
    """

    name: str
    label: str
    unit: str
    better: str  # higher, lower, or empty if neither is better
    value: Callable[[CaseData], float]
    display_unit: str = ""
    scale: float = 1
    sample: str = ""
    needs: int = 0


def _percentiles() -> list[Metric]:
    """P50, P95 and P99 of each latency (without P95 for the two waits before sending); for TTFT and
    E2E also over the completed requests alone.
    """
    table = []
    for name, label, count, meaning in (
        (
            "ttft_s",
            "TTFT",
            "requests_scheduled",
            "time to first token, from scheduled to the first chunk with a generated token, visible"
            " or reasoning; a failed request counts as +inf",
        ),
        (
            "visible_ttft_s",
            "visible TTFT",
            "requests_scheduled",
            "time to first visible token, from scheduled to the first chunk with text that is not"
            " reasoning; a failed request or one without such text counts as +inf",
        ),
        (
            "tpot_s",
            "TPOT",
            "requests_of_several_tokens",
            "time per output token, from the first chunk with tokens to the last, divided by the"
            " tokens after the first chunk; completed requests only, without those of one chunk or"
            " of a usage that is not credible",
        ),
        (
            "e2e_s",
            "E2E",
            "requests_scheduled",
            "end-to-end latency, from scheduled to the end of the response; a failed request counts"
            " as +inf",
        ),
        (
            "itl_s",
            "ITL",
            "requests_of_several_tokens",
            "inter-token latency, the gaps between consecutive chunks that carry tokens, pooled"
            " over these requests",
        ),
        (
            "send_lag_s",
            "send lag",
            "requests_scheduled",
            "time from scheduled to sent: the load generator's own delay, the wait for a"
            " connection, and the wait for a slot under a cap on concurrency",
        ),
        (
            "slot_wait_s",
            "slot wait",
            "requests_scheduled",
            "time from scheduled to a free slot under the scenario's cap on concurrency",
        ),
    ):
        for failures in (True, False) if name in ("ttft_s", "e2e_s") else (True,):
            for p in (50, 99) if name in ("send_lag_s", "slot_wait_s") else (50, 95, 99):

                def value(
                    case: CaseData, name: str = name, p: int = p, failures: bool = failures
                ) -> float:
                    return percentile(case.latencies(name, failures), p)

                only_completed = meaning.split(";")[0] + "; completed requests only"
                value.__doc__ = (
                    "Nearest-rank percentile over the requests scheduled in the window:"
                    f" {meaning if failures else only_completed}."
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
            "tokens/s per user",
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
        Metric("requests_completed", "requests completed", "", "", requests.requests_completed),
        Metric(
            "requests_of_several_tokens",
            "requests with a TPOT",
            "",
            "",
            requests.requests_of_several_tokens,
        ),
        Metric("error_share", "errors", "share", "lower", requests.error_share, "%", 100),
        Metric("wrong_share", "wrong responses", "share", "lower", requests.wrong_share, "%", 100),
        Metric("goodput_per_s", "goodput", "1/s", "higher", requests.goodput_per_s),
        Metric(
            "slo_attainment", "SLO attainment", "share", "higher", requests.slo_attainment, "%", 100
        ),
        Metric(
            "reasoning_share", "reasoning tokens", "share", "", requests.reasoning_share, "%", 100
        ),
        Metric("tokens_per_chunk", "tokens per chunk", "tokens", "", requests.tokens_per_chunk),
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
        Metric("running_mean", "running requests", "", "", requests.running_mean),
        Metric(
            "kv_useful_share", "useful KV cache", "share", "higher", kv_cache.useful_share, "%", 100
        ),
        Metric(
            "kv_used_peak_share",
            "peak KV cache use",
            "share",
            "",
            kv_cache.used_peak_share,
            "%",
            100,
        ),
        Metric("preemptions", "preemptions", "", "lower", kv_cache.preemptions),
        Metric(
            "prefix_hit_share",
            "prefix cache hits",
            "share",
            "higher",
            kv_cache.prefix_hit_share,
            "%",
            100,
        ),
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
            "server_cpu_per_request_s",
            "server CPU per request",
            "s",
            "lower",
            resources.server_cpu_per_request_s,
            "ms",
            1000,
        ),
        Metric(
            "tokens_per_cpu_s",
            "tokens per CPU-second",
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
        Metric("machine_cores", "machine CPU", "cores", "lower", resources.machine_cores),
        Metric(
            "machine_memory_bytes",
            "machine memory",
            "bytes",
            "lower",
            resources.machine_memory_bytes,
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
        Metric("gpu_others_power_w", "power of other GPUs", "W", "", resources.gpu_others_power_w),
        Metric(
            "gpu_tokens_per_joule",
            "tokens per joule",
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
            "cost per million good tokens",
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
    """All metrics of one case by name, in their `unit`; nan if not measured, or if n is too
    small.
    """
    values = {name: metric.value(case) for name, metric in METRICS.items()}
    return {
        name: NAN if m.sample and values[m.sample] < m.needs else values[name]
        for name, m in METRICS.items()
    }
