"""Experiments with closed loops: errors of times, cost of the start, memory over a long run, and
the effect of a second load worker.
"""

import statistics
import subprocess
import time
from dataclasses import replace

import psutil

from loadtests import schema
from loadtests.accuracy import ground_truth_server
from loadtests.accuracy.calibration import (
    CalibrationRun,
    Results,
    describe_load,
    measure_errors,
    start_ground_truth,
)
from loadtests.accuracy.testbed import (
    TIMES,
    Testbed,
    make_scenario,
    median_results,
    set_environment,
)
from loadtests.generator import locust_process
from loadtests.generator.locust_process import Workers, read_status
from loadtests.generator.messages import Window
from loadtests.generator.status import RUNNING, LoadStatus


def measure_accuracy(bench: Testbed) -> Results:
    """The mean and the P99 of TTFT's errors are at most 0.1 and 0.5 ms at 64 streams of 100
    tokens/s, 0.2 and 1 ms at 256, and 0.5 and 3 ms at 512. The P99 of the errors of gaps is at most
    20 µs with the kernel's stamps, and 1 ms without.
    """
    scenario = make_scenario("closed", output_tokens=[96, 160], warmup_s=6.0, warmup_max_s=6.0)
    levels = []
    reader = bench.compile_program("floor_reader")
    for users in (64, 256, 512, 768):
        runs: dict[str, list[Results]] = {"kernel": [], "user": [], "C program": []}
        for number in range(bench.repeat):  # alternately, so a drift affects all equally
            for stamps in ("kernel", "user") if users == 64 else ("kernel",):
                with set_environment(SERVEOFF_STAMPS=stamps):
                    runs[stamps].append(
                        measure_errors(bench.load(scenario, *TIMES, users=users, seed=str(number)))
                    )
            if reader:
                runs["C program"].append(measure_errors_in_c(bench, reader, users))
        levels += [
            {"users": users, "stamps": stamps} | median_results(each)
            for stamps, each in runs.items()
            if each
        ]
    return {"levels": levels}


def measure_errors_in_c(bench: Testbed, reader: list[str], users: int) -> Results:
    """Measures the errors that the machine alone causes: a short C program reads, stamps and sends
    the next request.
    """
    folder = bench.next_folder()
    folder.mkdir()
    file, seconds = folder / "rows.jsonl", 8.0
    with start_ground_truth(folder, bench.place.server_cores, *TIMES) as url:
        subprocess.run(
            [*reader, url.rpartition(":")[2], str(users), "128", str(seconds), str(file)],
            stdout=subprocess.DEVNULL,
            check=True,
        )
    rows = schema.read_lines(file)
    start_s = min(row["scheduled_s"] for row in rows)
    window = Window(start_s, start_s + seconds - 2.0)  # later responses may be incomplete
    return measure_errors(
        CalibrationRun(window, rows, *ground_truth_server.read_log(folder / "truth.jsonl"))
    )


def measure_stalls(bench: Testbed) -> Results:
    """The load generator finds every pause of 50 ms or more in a stream, and no others."""
    scenario = make_scenario("closed", output_tokens=[96, 160])
    run = bench.load(scenario, *TIMES, "--stall-every", "40", "--stall-ms", "50", users=64)
    true = seen = both = 0
    for row, each in run.pairs():
        if each is None or row["error"]:
            continue
        for i in range(1, min(len(each.stamps_s), len(row["token_s"]))):
            is_true = each.stamps_s[i] - each.stamps_s[i - 1] >= 0.050
            is_seen = row["token_s"][i] - row["token_s"][i - 1] >= 0.0499
            true, seen, both = true + is_true, seen + is_seen, both + (is_true and is_seen)
    return {"stalls": true, "found": both, "false": seen - both}


def measure_start_up(bench: Testbed) -> Results:
    """The load generator needs less than 100 MB and 1 s of CPU time before it can send its first
    request.
    """
    runs = []
    for _ in range(bench.repeat):
        folder = bench.next_folder()
        folder.mkdir()
        with start_ground_truth(folder, bench.place.server_cores, *TIMES) as url:
            scenario = make_scenario("closed", warmup_s=1.0, warmup_max_s=1.0, duration_s=2.0)
            task = replace(describe_load(url, scenario, users=1, seed="start"), planted=False)
            with locust_process.start_load(
                folder, task, Workers(1), bench.place.load_cores
            ) as load:
                assert load.stdout is not None
                process = psutil.Process(int(load.stdout.readline()))
                while (status := read_status(folder)) is None or status.state != RUNNING:
                    time.sleep(0.01)
                used, memory = process.cpu_times(), process.memory_full_info()
                runs.append(
                    {
                        "cpu_s": used.user + used.system,
                        "pss_mb": memory.pss / 1e6,
                        "rss_mb": memory.rss / 1e6,
                    }
                )
                locust_process.wait_for_load(load, folder, 60)
    return median_results(runs)


def measure_workers(bench: Testbed) -> Results:
    """Two load workers send the same requests at the same times as one. Also measures their CPU
    time per event.
    """
    scenario = make_scenario("poisson", output_tokens=[8, 8])
    plans = []
    for count in (1, 2):
        run = bench.load(scenario, *TIMES, workers=count, rate=200.0)
        plans.append(
            sorted(
                (
                    round(row["scheduled_s"] - run.window.start_s, 5),
                    row["prompt_tokens_asked"],
                    row["max_tokens"],
                )
                for row in run.rows_in_window()
            )
        )
    closed = make_scenario("closed", output_tokens=[96, 160], warmup_s=6.0, warmup_max_s=6.0)
    us = {
        str(count): (
            1e6
            * measure_errors(bench.load(closed, *TIMES, workers=count, users=256))[
                "cpu_per_event_s"
            ]
        )
        for count in (1, 2)
    }
    return {
        "requests": [len(plan) for plan in plans],
        "same": plans[0] == plans[1],
        "us_per_event": us,
        "load_cores": len(bench.place.load_cores),
    }


def measure_soak(bench: Testbed) -> Results:
    """The load generator's memory does not grow: its resident set size every 10 s, with 64
    streams.
    """
    folder = bench.next_folder()
    folder.mkdir()
    samples: list[tuple[float, float]] = []  # (time in s, MB)
    with start_ground_truth(folder, bench.place.server_cores, *TIMES) as url:
        scenario = make_scenario("closed", duration_s=60 * bench.minutes)
        task = describe_load(url, scenario, users=64, seed="soak")
        with locust_process.start_load(folder, task, Workers(1), bench.place.load_cores) as load:
            assert load.stdout is not None
            process = psutil.Process(int(load.stdout.readline()))

            def sample_memory(status: LoadStatus | None) -> None:
                if status is None or status.window is None:
                    return
                if not samples or time.monotonic() - samples[-1][0] >= 10:
                    samples.append((time.monotonic(), process.memory_info().rss / 1e6))

            status = locust_process.wait_for_load(
                load, folder, locust_process.longest_load_s(task, Workers(1)), sample_memory
            )
    bench.note_readers(worker.reader for worker in status.workers)
    used = [mb for _, mb in samples]
    third = len(used) // 3
    return {
        "minutes": bench.minutes,
        "requests": status.rows,
        "rss_mb": used,
        "first_third_mb": statistics.mean(used[:third]),
        "last_third_mb": statistics.mean(used[-third:]),
    }
