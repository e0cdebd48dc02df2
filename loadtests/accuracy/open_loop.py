"""Experiments with open loops: requests are sent on time, and a frozen server shows in E2E."""

import csv
import datetime
import heapq
import itertools
import json
import random
import subprocess
from collections.abc import Sequence

import scipy  # scipy.stats loads at its first use: that takes most of a second

from loadtests.accuracy.calibration import Results, measure_errors, percentile, start_ground_truth
from loadtests.accuracy.testbed import ITL_S, TIMES, TTFT_S, Testbed, make_scenario, median_results


def measure_open_loop(bench: Testbed) -> Results:
    """At 50, 200, 500 and 2,000 requests/s of 8 tokens, the rate is within 0.5%, and up to 500 the
    send lag is at most 0.3 ms at P50 and 0.6 ms at P99. The gaps between arrivals pass a
    Kolmogorov-Smirnov test against the requested exponential distribution. The gaps between sent
    requests pass it too, up to the rate where sending two requests often takes longer than their
    gap: 10,000 requests show that. A short C program sends at the same times, alternately with the
    load generator, and shows the limit of the machine.
    """
    levels, sender = [], bench.compile_program("floor_sender")
    for rate in (50, 200, 500, 2000):
        runs = []
        for number in range(bench.repeat):
            run = bench.load(
                make_scenario("poisson", output_tokens=[8, 8], duration_s=20.0),
                *TIMES,
                rate=float(rate),
                seed=str(number),
            )
            assert run.planned is not None, "an open loop plans its requests"
            sent = sorted(row["sent_s"] for row in run.rows_in_window())
            planned = sorted(row["scheduled_s"] for row in run.rows_in_window())
            inside = sum(run.window.start_s <= at < run.window.end_s for at in sent)
            runs.append(
                measure_errors(run)
                | {
                    "rate_error": inside / run.planned - 1,
                    "ks_planned_p": exponential_p_value(planned, rate),
                    "ks_sent_p": exponential_p_value(sent, rate),
                    "ks_sent_in_c_p": (
                        exponential_p_value(send_in_c(bench, sender, planned), rate)
                        if sender
                        else None
                    ),
                }
            )
        tests = [
            name
            for name in ("ks_planned_p", "ks_sent_p", "ks_sent_in_c_p")
            if runs[0][name] is not None
        ]
        levels.append(
            {"rate": rate}
            | median_results(runs)
            | {f"least_{name}": min(run[name] for run in runs) for name in tests}
        )
    return {"levels": levels}


def send_in_c(bench: Testbed, sender: list[str], planned: Sequence[float]) -> list[float]:
    """Sends requests at these times with a C program that does nothing else. Returns the times when
    it sent them, in seconds since the first planned time.
    """
    folder = bench.next_folder()
    folder.mkdir()
    with start_ground_truth(folder, bench.place.server_cores, *TIMES) as url:
        sending = subprocess.run(
            [*sender, url.rpartition(":")[2], "500"],
            input="".join(f"{at - planned[0]:.9f}\n" for at in planned),
            capture_output=True,
            text=True,
            check=True,
        )
    return [float(line) for line in sending.stdout.split()]


def exponential_p_value(at: Sequence[float], rate: float) -> float:
    """The p-value of a Kolmogorov-Smirnov test that the gaps are exponential with this rate."""
    gaps = [after - before for before, after in itertools.pairwise(at)]
    return float(scipy.stats.kstest(gaps, "expon", args=(0, 1 / rate)).pvalue)


def measure_replay(bench: Testbed) -> Results:
    """Requests of a trace in Azure's and in Mooncake's format are sent within 5 ms of the recorded
    times at P99.
    """
    source, at, rows = random.Random("trace"), 0.0, []
    while at < 60:
        at += source.gammavariate(0.5, 2 / 20)
        rows.append((at, source.randint(16, 400), source.randint(4, 40), source.randrange(20)))
    folder = bench.next_folder()
    folder.mkdir()
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    with (folder / "azure.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["TIMESTAMP", "ContextTokens", "GeneratedTokens"])
        table.writerows(
            [
                (start + datetime.timedelta(seconds=at)).strftime("%Y-%m-%d %H:%M:%S.%f"),
                prompt,
                output,
            ]
            for at, prompt, output, _ in rows
        )
    with (folder / "mooncake.jsonl").open("w") as file:
        for at, prompt, output, block in rows:
            print(
                json.dumps(
                    {
                        "timestamp": int(1e3 * at),
                        "input_length": prompt + 512,
                        "output_length": output,
                        "hash_ids": [block],
                    }
                ),
                file=file,
            )
    errors = {}
    for name, first_s in (
        ("azure.csv", rows[0][0]),
        ("mooncake.jsonl", int(1e3 * rows[0][0]) / 1e3),
    ):
        scenario = make_scenario("trace", trace=str(folder / name), time_scale=2.0, duration_s=20.0)
        run = bench.load(scenario, *TIMES, rate=40.0)
        began_s = run.window.start_s - scenario["warmup_s"]
        true = [
            began_s + (at if name == "azure.csv" else int(1e3 * at) / 1e3) / 2 - first_s / 2
            for at, *_ in rows
        ]
        late = [
            sent - planned
            for sent, planned in zip(sorted(row["sent_s"] for row in run.rows), true, strict=False)
        ]
        errors[name] = {
            "requests": len(run.rows),
            "arrival_error_p50_s": percentile(late, 50),
            "arrival_error_p99_s": percentile(late, 99),
        }
    return errors


def measure_freeze(bench: Testbed) -> Results:
    """The server freezes once, for 2 s. In an open loop, with a cap on concurrency and in a replay,
    the P99 of E2E is within 2% of the value computed from the arrivals. A closed loop cannot see
    the freeze.
    """
    tokens, rate, cap = 16, 50.0, 20
    freeze = (*TIMES, "--freeze-at-s", "8", "--freeze-s", "2")
    sizes = {"output_tokens": [tokens, tokens], "duration_s": 16.0, "drain_s": 20.0}
    file = bench.scratch / "freeze.csv"
    source, at, lines = random.Random("freeze"), 0.0, ["arrival_s,prompt_tokens,output_tokens"]
    while at < 30:
        at += source.expovariate(rate)
        lines.append(f"{at:.6f},32,{tokens}")
    file.write_text("\n".join(lines))
    results = {}
    for name, run in (
        ("open", bench.load(make_scenario("poisson", **sizes), *freeze, rate=rate)),
        (
            "capped",
            bench.load(make_scenario("poisson", max_in_flight=cap, **sizes), *freeze, rate=rate),
        ),
        (
            "replay",
            bench.load(make_scenario("trace", trace=str(file), **sizes), *freeze, rate=rate),
        ),
        ("closed", bench.load(make_scenario("closed", **sizes), *freeze, users=10)),
    ):
        start_s, end_s = run.window.start_s, run.window.end_s
        assert run.server.freeze is not None, "the server was asked to freeze"
        inside = run.rows_in_window()
        arrivals = sorted(row["scheduled_s"] for row in run.rows)
        true = e2e_with_freeze(
            arrivals,
            TTFT_S + (tokens - 1) * ITL_S,
            run.server.freeze,
            cap if name == "capped" else None,
        )
        e2e = {
            "e2e": [row["done_s"] - row["scheduled_s"] for row in inside],
            "expected": [
                each for at, each in zip(arrivals, true, strict=True) if start_s <= at < end_s
            ],
            "from_sent": [row["done_s"] - row["sent_s"] for row in inside],
        }
        # P95 as well: between 1% and 5% of the requests wait in a closed loop or for a slot.
        results[name] = {
            "requests": len(inside),
            **{
                f"{what}_p{p}_s": percentile(each, p)
                for what, each in e2e.items()
                for p in (95, 99)
            },
            "waited_over_1_s": sum(row["done_s"] - row["scheduled_s"] > 1 for row in inside),
        }
    return results


def e2e_with_freeze(
    arrivals: Sequence[float], service_s: float, freeze: tuple[float, float], cap: int | None
) -> list[float]:
    """Computes the E2E of each arrival, in order, if `cap` slots serve requests in order of arrival
    (None: no limit). A request takes `service_s`, plus the part of the freeze that overlaps it.
    """
    start_s, end_s = freeze
    free: list[float] = []
    e2e = []
    for at in arrivals:
        sent = at if cap is None or len(free) < cap else max(at, heapq.heappop(free))
        # a frozen server reads a request only after the freeze
        read = end_s if start_s <= sent < end_s else sent
        done = read + service_s + (end_s - start_s if read < start_s < read + service_s else 0.0)
        if cap is not None:
            heapq.heappush(free, done)
        e2e.append(done - at)
    return e2e
