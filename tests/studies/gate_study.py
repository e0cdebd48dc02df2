"""How often is the gate wrong? Whole gates of equal code, planted changes, faults and disturbances,
on this machine.

    python -m tests.studies.gate_study run equal --decisions 100 --at-once 2
    python -m tests.studies.gate_study run engine-throughput --decisions 40
    python -m tests.studies.gate_study simulate    # 10,000 decisions from the runs of `equal`
    python -m tests.studies.gate_study page        # results/gate/README.md and its figure

Each decision is a line of results/gate/NAME.jsonl and takes about two minutes where Python may keep
its bytecode (no PYTHONDONTWRITEBYTECODE); `run` adds to the existing lines. A gate runs as its user
would run it, in a clone of the last commit, where each planted change is a commit on a branch. Two
gates at once on two cores take two thirds of the time, but disturb each other: too much where a
server needs much CPU (`framework`) and for a P99, to which the other adds 2 ms (`engine-p99`).
Three at once are too many for any study (`crowded`).
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from matplotlib import rc_context
from matplotlib.figure import Figure

from analysis import dataset, slo, summary
from analysis.gate import paired, verdicts
from analysis.metrics import METRICS
from analysis.plots import style
from tests.helpers.python_program import ROOT
from tests.studies.planted_changes import METRICS_OF_SHORT, SCENARIOS, STUDIES, Study

RESULTS = ROOT / "results" / "gate"


def clone_with(study: Study, folder: Path) -> Path:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=study", "-c", "user.email=study@example.org", *arguments],
            cwd=place,
            check=True,
        )

    place = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(place)], check=True)
    (place / "study.toml").write_text(SCENARIOS)
    git("branch", "base")
    git("branch", "head")
    for branch in study.where if study.patch else ():
        git("checkout", "--quiet", branch)
        for name, old, new in study.patch:
            text = (place / name).read_text()
            assert text.count(old) == 1, f"{name} no longer contains {old!r} once"
            (place / name).write_text(text.replace(old, new))
        git("commit", "--quiet", "--all", "--message", study.what)
        git("checkout", "--quiet", "-")  # the measuring checkout has no planted change
    return place


def run(name: str, decisions: int, at_once: int) -> None:
    study, file = STUDIES[name], RESULTS / f"{name}.jsonl"
    RESULTS.mkdir(exist_ok=True)
    done = {json.loads(line)["seed"] for line in file.open()} if file.exists() else set()
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(at_once) as pool,
        ended_with_us(),
    ):
        place = clone_with(study, Path(folder))
        seeds = [seed for seed in range(1, decisions + 1) if seed not in done]
        # gates that start together also measure and start their processes together
        for first in range(0, len(seeds), at_once):
            for decision in pool.map(
                lambda seed: decide(study, seed, place), seeds[first : first + at_once]
            ):
                with file.open("a") as handle:
                    plain = json.dumps(
                        decision | {"at_once": at_once}, default=lambda value: value.item()
                    )
                    short = shorten_floats(json.loads(plain))
                    handle.write(json.dumps(short, separators=(",", ":")) + "\n")
                print(
                    f"{name} {decision['seed']}: {decision['verdict']} after"
                    f" {decision['systems'][0]['repetitions']} repetitions",
                    flush=True,
                )


def shorten_floats(value: Any) -> Any:
    """The same JSON with six significant digits: more are noise, and half of the file."""
    if isinstance(value, dict):
        return {key: shorten_floats(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shorten_floats(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


@contextmanager
def ended_with_us() -> Iterator[None]:
    """End running gates on Ctrl-C or SIGTERM; they end their own processes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except BaseException:
        for gate_of_ours in psutil.Process().children():
            gate_of_ours.terminate()
        raise


def decide(study: Study, seed: int, place: Path) -> dict[str, Any]:
    """Run one gate in the clone. Returns gate.json, with what `simulate` needs of each run."""
    out, began = place.parent / f"{seed}", time.monotonic()
    command = [
        sys.executable,
        "-m",
        "loadtests.gate",
        "--base",
        "base",
        "--head",
        "head",
        "--seed",
        str(seed),
        "--out",
        str(out),
        *study.arguments,
    ]
    environment = os.environ | {
        "XDG_CACHE_HOME": str(place.parent),
        "STUDY_BEGAN": str(time.time()),
    }
    with study.around():
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    if not (out / "gate.json").exists():
        raise RuntimeError(f"{' '.join(command)} made no verdict: {done.stderr[-2000:]}")
    decision = json.loads((out / "gate.json").read_text()) | {
        "code": done.returncode,
        "seed": seed,
        "minutes": (time.monotonic() - began) / 60,
    }
    for system in decision["systems"]:  # without log lines, which contain paths of this machine
        system["faults"] = [fault.split("\n")[0] for fault in system["faults"]]
    found = summary.summarise(dataset.read_campaign(out), frames=False)
    sides = found.campaign.identities
    wanted = ("repetition", "valid", *verdicts.TOLERANCES, "requests_scheduled")
    decision["runs"] = [
        {"side": sides[case["index"]]["side"]}
        | {key: case[key] if case[key] == case[key] else None for key in wanted}
        for case in found.table.to_dict("records")
    ]
    shutil.rmtree(out)
    return decision


def simulate(decisions: int = 10_000, seed: int = 1) -> None:
    """Simulate decisions about equal code. Each draws recorded repetitions with their three runs
    and assigns the arms to the runs at random, since all three ran the same code.
    """
    recorded = [
        [found for found in line["runs"] if found["repetition"] == number and found["valid"]]
        for line in read("equal")
        for number in range(1, paired.LOOKS[-1] + 1)
    ]
    recorded = [runs for runs in recorded if len(runs) == len(paired.SIDES)]
    random, decided = np.random.default_rng(seed), []
    rules = verdicts.parse_rules(METRICS_OF_SHORT)
    for _ in range(decisions):
        rows = []
        for i in random.integers(len(recorded), size=paired.LOOKS[-1]):
            order = random.permutation(3)
            rows.append(
                {
                    (side, metric): recorded[i][place][metric]
                    for side, place in zip(paired.SIDES, order, strict=True)
                    for metric in (*rules.tolerances, "requests_scheduled")
                }
            )
        values = pd.DataFrame(
            rows, columns=pd.MultiIndex.from_product([paired.SIDES, METRICS]), dtype="float64"
        )
        system = verdicts.SystemVerdict("it")
        paired.decide_verdicts([paired.Repetitions(system, values, pd.DataFrame())], rules)
        decided.append({"verdict": system.verdict, "look": system.look, "faults": system.faults})
    counts = pd.Series([each["verdict"] for each in decided]).value_counts().to_dict()
    found = {"decisions": decisions, "from_repetitions": len(recorded), "counts": counts}
    (RESULTS / "simulated.json").write_text(json.dumps(found, indent=1) + "\n")
    print(counts)


def read(name: str) -> list[dict[str, Any]]:
    file = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in file.open()] if file.exists() else []


def page() -> None:
    lines, bars = [], []
    for name, study in STUDIES.items():
        if not (found := read(name)):
            continue
        right = sum(each["verdict"] in study.wanted for each in found)
        low, high = slo.attainment_interval(right, len(found))
        counts = pd.Series([each["verdict"] for each in found]).value_counts().to_dict()
        named = (
            sum(any(study.names in note for note in each["notes"]) for each in found)
            if study.names
            else ""
        )
        repetitions = np.mean([each["systems"][0]["repetitions"] for each in found])
        bars.append((name, {verdict: n / len(found) for verdict, n in counts.items()}))
        minutes = float(np.median([each["minutes"] for each in found]))
        lines.append(
            f"| {name} | {study.what} | {len(found)} |"
            f" {', '.join(f'{n} {verdict}' for verdict, n in counts.items())} |"
            f" {right / len(found):.0%} ({low:.0%} to {high:.0%}) | {named} | {repetitions:.1f} |"
            f" {minutes:.1f} |"
        )
    simulated = RESULTS / "simulated.json"
    drawn = json.loads(simulated.read_text()) if simulated.exists() else None
    text = [
        "# How often is the gate wrong?",
        "",
        (
            "Whole gates on one machine with two cores, run by `python -m tests.studies.gate_study"
            " run NAME`. Each line of `NAME.jsonl` is a"
        ),
        (
            "decision with all its runs. Right: decisions with the correct verdict, with the 95%"
            " interval of Clopper and Pearson. Named:"
        ),
        (
            "decisions with a note that names the disturbance. Minutes: the median decision."
            " `attempts/` has decisions about changes of other"
        ),
        (
            "sizes, which served to tune the planted changes to 10% and 20%, and three about equal"
            " code that ran beside the project's own"
        ),
        ("tests on both cores (PASS, INVALID, INVALID) and were repeated on an idle machine."),
        "",
        "| study | change | decisions | verdicts | right | named | repetitions | minutes |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |",
        *lines,
        "",
        "![verdicts](verdicts.png)",
        "",
    ]
    if drawn:
        wrong = sum(drawn["counts"].get(verdict, 0) for verdict in ("REGRESSED", "INVALID"))
        low, high = slo.attainment_interval(wrong, drawn["decisions"])
        text += [
            (
                f"`simulate` drew {drawn['decisions']:,} decisions from the"
                f" {drawn['from_repetitions']:,} repetitions of `equal`:"
                f" {', '.join(f'{n:,} {verdict}' for verdict, n in drawn['counts'].items())}. False"
                f" alarms: {wrong / drawn['decisions']:.2%} ({low:.2%} to {high:.2%})."
            ),
            "",
        ]
    (RESULTS / "README.md").write_text("\n".join(text))
    colours = dict(
        zip(
            ("PASS", "INCONCLUSIVE", "REGRESSED", "INVALID"),
            (style.COLOURS[i] for i in (2, 1, 3, 4)),
            strict=True,
        )
    )
    with rc_context(style.STYLE):
        figure = Figure(figsize=(style.WIDTH, 1.2 + 0.35 * len(bars)))
        axes = figure.subplots()
        for row, (_, shares) in enumerate(bars):
            left = 0.0
            for verdict, colour in colours.items():
                axes.barh(
                    row,
                    100 * shares.get(verdict, 0),
                    left=left,
                    color=colour,
                    label=verdict if row == 0 else None,
                )
                left += 100 * shares.get(verdict, 0)
        axes.set_yticks(range(len(bars)), [name for name, _ in bars])
        axes.invert_yaxis()
        axes.set_xlabel("decisions, %")
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
    (RESULTS / "verdicts.png").write_bytes(style.encode_png(figure))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("run", "simulate", "page"))
    parser.add_argument("study", nargs="?", choices=STUDIES)
    parser.add_argument("--decisions", type=int, default=40)
    parser.add_argument("--at-once", type=int, default=1)
    asked = parser.parse_args()
    if asked.verb == "run":
        run(asked.study, asked.decisions, asked.at_once)
    elif asked.verb == "simulate":
        simulate()
    else:
        page()
