"""Estimates how long cases take before any like them has ended."""

from collections.abc import Mapping, Sequence

from loadtests.progress.rows import format_span
from loadtests.schema import Case
from loadtests.workload import arrivals
from loadtests.workload.arrivals import ScenarioTable

# to launch, verify and stop a server without a GPU, in seconds
OVERHEAD_S = 35.0
# The same with a model of billions of parameters on a GPU, by engine. vLLM compiles, though only
# once, and captures CUDA graphs. Transformers starts sooner, but the checks wait for its responses.
# Nothing has run on a GPU yet: these are sums of what each step takes on a CPU or in vLLM's logs.
OVERHEAD_ON_GPU_S = {"vllm": 100.0, "hf": 55.0, "hf_batched": 55.0}
# a warm-up that waits for a steady load (median of the simulated servers in docs/methodology.md)
STEADY_AFTER_S = 20.0
DRAIN_S = 10.0  # responses of several users that are in flight when the window closes
AROUND_S = 60.0  # the calibration before the cases, and the report after them


def estimate_case_s(case: Case, scenario: ScenarioTable, on_gpu: bool) -> float:
    """The time for one case in seconds: its server's start, checks and stop, and its load. On a
    GPU, a window of unknown length counts as the mean of its shortest and longest.
    """
    if not on_gpu:
        return float(scenario["warmup_s"] + case.duration_s + OVERHEAD_S)
    warmup_s = min(max(scenario["warmup_s"], STEADY_AFTER_S), arrivals.longest_warm_up_s(scenario))
    window_s, drain_s = case.duration_s, min(DRAIN_S, scenario["drain_s"])
    if case.users and "requests" in scenario:
        window_s = (window_s + arrivals.longest_window_s(scenario, window_s)) / 2
    if case.users == 1 or case.engine == "vllm":  # their last responses soon end
        drain_s = 0.0
    return float(OVERHEAD_ON_GPU_S.get(case.engine, OVERHEAD_S) + warmup_s + window_s + drain_s)


def describe_estimate(
    cases: Sequence[Case], scenarios: Mapping[str, ScenarioTable], on_gpu: bool
) -> str:
    """The time for a whole campaign, in words."""
    total_s = AROUND_S + sum(
        estimate_case_s(case, scenarios[case.scenario], on_gpu) for case in cases
    )
    # 16 GB of weights took 180 s on two cores, to make and to write
    once = ", and up to 3 min to generate the model the first time" if on_gpu else ""
    return f"about {format_span(60 * round(total_s / 60) or total_s).removesuffix(' 0 s')}{once}"
