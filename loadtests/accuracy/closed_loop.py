"""Closed loops of many streams: how wrong a time is, what the load generator costs to start and to
keep, and what a second one changes.
"""

import statistics
import subprocess
import time
from typing import Any

import psutil

from loadtests import schema
from loadtests.accuracy import ground_truth_server
from loadtests.accuracy.calibration import CalibrationRun, measure_errors, start_ground_truth
from loadtests.accuracy.testbed import TIMES, Testbed, median_results, scenario, set_environment
from loadtests.generator import locust_process
from loadtests.generator.locust_process import Workers


def measure_accuracy(bench: Testbed) -> dict[str, Any]:
    """TTFT error mean / P99 at most 0.1 / 0.5 ms at 64 streams, 0.2 / 1 at 256, 0.5 / 3 at 512 (100
    tokens/s each); each gap within 20 us at P99 with kernel stamps, 1 ms without.
    """
    wanted = scenario("closed", output_tokens=[96, 160], warmup_s=6.0, warmup_max_s=6.0)
    found = []
    reader = bench.in_c("floor_reader")
    for users in (64, 256, 512, 768):
        runs: dict[str, list[dict[str, Any]]] = {"kernel": [], "user": [], "C program": []}
        for number in range(bench.repeat):  # one after the other, so that all see the same machine
            for stamps in ("kernel", "user") if users == 64 else ("kernel",):
                with set_environment(SERVEOFF_STAMPS=stamps):
                    runs[stamps].append(
                        measure_errors(bench.load(wanted, *TIMES, users=users, seed=str(number)))
                    )
            if reader:
                runs["C program"].append(measure_errors_in_c(bench, reader, users))
        found += [
            {"users": users, "stamps": stamps} | median_results(each)
            for stamps, each in runs.items()
            if each
        ]
    return {"levels": found}


def measure_errors_in_c(bench: Testbed, reader: list[str], users: int) -> dict[str, Any]:
    """Of times for which nothing but the machine is to blame: a few lines of C read, stamp and send
    the next request.
    """
    folder = bench.folder()
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
    # answers to later ones may not have ended
    said = {
        "window": {"start_s": start_s, "end_s": start_s + seconds - 2.0},
        "workers": [{"cpu_share": None, "waited_share": None}],
    }
    return measure_errors(
        CalibrationRun(said, rows, *ground_truth_server.read_log(folder / "truth.jsonl"))
    )


def measure_stalls(bench: Testbed) -> dict[str, Any]:
    """Every pause of 50 ms or more in a stream is found, and no other gap is taken for one."""
    wanted = scenario("closed", output_tokens=[96, 160])
    found = bench.load(wanted, *TIMES, "--stall-every", "40", "--stall-ms", "50", users=64)
    true = seen = both = 0
    for row, each in found.pairs():
        if each is None or row["error"]:
            continue
        for i in range(1, min(len(each.stamps_s), len(row["token_s"]))):
            sent, came = (
                each.stamps_s[i] - each.stamps_s[i - 1] >= 0.050,
                row["token_s"][i] - row["token_s"][i - 1] >= 0.0499,
            )
            true, seen, both = true + sent, seen + came, both + (sent and came)
    return {"stalls": true, "found": both, "false": seen - both}


def measure_start_up(bench: Testbed) -> dict[str, Any]:
    """Under 100 MB and 1 s of CPU until the first request can be sent."""
    found = []
    for _ in range(bench.repeat):
        folder = bench.folder()
        folder.mkdir()
        with start_ground_truth(folder, bench.place.server_cores, *TIMES) as url:
            wanted = scenario("closed", warmup_s=1.0, warmup_max_s=1.0, duration_s=2.0)
            task = {
                "base_url": url,
                "model": "serveoff-tiny",
                "planted": False,
                "scenario": wanted,
                "scenario_name": "start",
                "users": 1,
                "rate": None,
                "duration_s": 2.0,
                "clock_zero_s": 0.0,
                "seed": "start",
            }
            with locust_process.start_load(
                folder, task, Workers(1), bench.place.load_cores
            ) as load:
                assert load.stdout is not None
                process = psutil.Process(int(load.stdout.readline()))
                while (
                    not (folder / "load.json").exists()
                    or schema.read_json(folder / "load.json")["state"] != "running"
                ):
                    time.sleep(0.01)
                used, memory = process.cpu_times(), process.memory_full_info()
                found.append(
                    {
                        "cpu_s": used.user + used.system,
                        "pss_mb": memory.pss / 1e6,
                        "rss_mb": memory.rss / 1e6,
                    }
                )
                locust_process.wait_for_load(load, folder, 60, lambda _: None)
    return median_results(found)


def measure_workers(bench: Testbed) -> dict[str, Any]:
    """Two load workers send the same requests at the same times as one; what an event costs
    them.
    """
    wanted = scenario("poisson", output_tokens=[8, 8])
    plans = []
    for count in (1, 2):
        found = bench.load(wanted, *TIMES, workers=count, rate=200.0)
        start_s, end_s = found.window
        plans.append(
            sorted(
                (
                    round(row["scheduled_s"] - start_s, 5),
                    row["prompt_tokens_asked"],
                    row["max_tokens"],
                )
                for row in found.rows
                if start_s <= row["scheduled_s"] < end_s
            )
        )
    closed = scenario("closed", output_tokens=[96, 160], warmup_s=6.0, warmup_max_s=6.0)
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


def measure_soak(bench: Testbed) -> dict[str, Any]:
    """The load generator's memory is flat: resident set size every 10 s, 64 streams."""
    folder = bench.folder()
    folder.mkdir()
    seconds = 60 * bench.minutes
    samples: list[tuple[float, float]] = []
    with start_ground_truth(folder, bench.place.server_cores, *TIMES) as url:
        wanted = scenario("closed", duration_s=seconds)
        task = {
            "base_url": url,
            "model": "serveoff-tiny",
            "planted": True,
            "scenario": wanted,
            "scenario_name": "soak",
            "users": 64,
            "rate": None,
            "duration_s": seconds,
            "clock_zero_s": 0.0,
            "seed": "soak",
        }
        with locust_process.start_load(folder, task, Workers(1), bench.place.load_cores) as load:
            assert load.stdout is not None
            process = psutil.Process(int(load.stdout.readline()))

            def watch(said: dict[str, Any]) -> None:
                if said.get("window") and (not samples or time.monotonic() - samples[-1][0] >= 10):
                    samples.append((time.monotonic(), process.memory_info().rss / 1e6))

            said = locust_process.wait_for_load(
                load, folder, locust_process.longest_load_s(task, Workers(1)), watch
            )
    bench.note_readers(said["workers"])
    used = [mb for _, mb in samples]
    third = len(used) // 3
    return {
        "minutes": bench.minutes,
        "requests": said["rows"],
        "rss_mb": used,
        "first_third_mb": statistics.mean(used[:third]),
        "last_third_mb": statistics.mean(used[-third:]),
    }
