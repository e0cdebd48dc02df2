"""What survives? One fault after another in the middle of a load, for each server and for the
harness itself. Needs Linux; some faults need root.

    python -m tests.studies.fault_campaign [FAULT ...] [--servers a,b]

`nox -s faults` tries all of them, which takes two hours.

Each trial is a campaign of two cases as a user would run it, in a folder of its own; the fault
(faults.py) strikes in the middle of the first case. After every fault this must hold
(`broken_promises`): the campaign ends, every row reported before the fault exists, the counts
agree, the first case reports what happened, the second is not affected, no process, port or
temporary file is left, and the same command completes what failed. Each trial adds a line to
results/faults/trials.jsonl, from which README.md beside it is generated.
"""

import argparse
import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtests import schema
from servers.runtime import catalog
from tests.helpers.campaign_process import (
    Bench,
    is_complete,
    rows_when_under_load,
    runs,
    table,
    wait_for,
)
from tests.studies.fault_page import RESULTS, Trial, page
from tests.studies.faults import FAULTS, CannotHere, Fault, Scene, steal_port

HARNESS_SERVER = "fastapi_threadpool"  # under test when a fault is in the harness itself
KILLED_OFTEN = "driver-killed-at-random"
LONGEST_S = 240.0  # a campaign that takes longer hangs
LONGEST_TO_A_KILL_S = 25.0  # a case takes half as long
SCENARIO = """
[fault]
summary = "a load in whose middle something happens"
arrivals = "closed"
users = 4
endpoint = "completions"
prompt_tokens = [4, 16]
output_tokens = [4, 8]
warmup_s = 0.5
warmup_max_s = 0.5
duration_s = 4.0
drain_s = 6.0
timeout_s = 5.0
"""
OPTIONS = (
    "--engines",
    "simulated",
    "--simulated",
    "prefill_ms=20,step_ms=5",
    "--scenarios-file",
    "fault.toml",
    "--scenarios",
    "fault",
    "--repeat",
    "2",
    "--report",
    "none",
    "--workers",
    "2",
    "--out",
    "out",
)


def trial(name: str, server: str) -> Trial:
    fault, found = FAULTS[name], Trial(name, server)
    with tempfile.TemporaryDirectory(prefix="faults-") as place, ExitStack() as stack:
        folder = Path(place)
        (folder / "fault.toml").write_text(SCENARIO)
        try:
            if fault.around:
                stack.enter_context(fault.around(folder))
            bench = Bench(folder)
            command = [*fault.wrap, *bench.command("--servers", server, *OPTIONS, *fault.options)]
            with (folder / "output.txt").open("w+") as output:
                campaign = subprocess.Popen(
                    command,
                    cwd=folder,
                    env=bench.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    text=True,
                    process_group=0,
                )
                scene = Scene(folder, bench, campaign, shared_memory())
                stack.enter_context(scene.undo)
                try:
                    before = 0
                    before = rows_when_under_load(scene.out, 1)
                    fault.act(scene)
                    code: int | None = campaign.wait(LONGEST_S)
                except AssertionError as never:
                    found.broken, code = (
                        [f"{never}; its output: {(folder / 'output.txt').read_text()[-500:]}"],
                        None,
                    )
                except subprocess.TimeoutExpired:
                    code = None
                finally:
                    if campaign.poll() is None:
                        # its children end by themselves, and write into the folder until then
                        campaign.kill()
                        campaign.wait()
                        with contextlib.suppress(AssertionError):
                            wait_for(lambda: not bench.processes(), "nothing running", within_s=30)
                output.seek(0)
                text = output.read()
            found.broken += broken_promises(fault, scene, code, before, text)
            found.outcome = outcome(scene)
            scene.undo.close()
            if fault.status and code is not None:
                found.broken += not_continued(scene, command)
        except CannotHere as why:
            found.skipped = str(why)
    return found


def broken_promises(
    fault: Fault, scene: Scene, code: int | None, before: int, text: str
) -> list[str]:
    broken = []
    if code is None:
        return [f"the campaign did not end within {LONGEST_S:g} s"]
    # a fault may make the case that it hits invalid
    spoilt = code == 1 and 0 in fault.code and "no valid case of" in text
    if code not in fault.code and not spoilt:
        broken.append(f"exit code {code}")
    if "Traceback" in text:
        broken.append(f"a stack trace: {text.strip().splitlines()[-1]}")
    with contextlib.suppress(AssertionError):  # children of a killed driver end by themselves
        wait_for(lambda: not scene.bench.left_over(), "nothing left", within_s=30)
    broken += [
        f"left: {what}"
        for what in [*scene.bench.left_over(), *(shared_memory() - scene.others_memory)]
    ]
    if not fault.status:
        return broken
    cases = runs(scene.out)
    status = cases[0][1]["status"]
    if not re.match(fault.status, status, re.DOTALL):
        broken.append(f"its status is {status.splitlines()[0]!r}")
    folder, run = cases[0]
    rows = rows_of(folder)
    if len(rows) < before:
        broken.append(f"{before} rows were reported before the fault, but only {len(rows)} exist")
    if len({(row["worker"], row["request"]) for row in rows}) < len(rows):
        broken.append("a row exists twice")
    if (counts := run["counts"]) and counts["rows"] != len(rows):
        broken.append(f"{counts['rows']} rows were counted, but {len(rows)} exist")
    if (
        code in (0, 1)
        and (len(cases) < 2 or cases[1][1]["status"] != "ok")
        and fault.act is not steal_port
    ):
        broken.append(
            "the second case:"
            f" {cases[1][1]['status'].splitlines()[0] if len(cases) > 1 else 'not started'}"
        )
    return broken


def shared_memory() -> set[str]:
    return {str(file) for file in Path("/dev/shm").glob("*")}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a case; empty if it did not get that far."""
    if (folder / "requests.parquet").exists():
        return table(folder, "requests")
    lines = folder / "requests.jsonl"
    return schema.read_lines(lines) if lines.exists() else []


def outcome(scene: Scene) -> str:
    cases = runs(scene.out) if scene.out.exists() else []
    if not cases:
        return "no case is left"
    rows = rows_of(cases[0][0])
    failed = [row for row in rows if row["error"]]
    status = cases[0][1]["status"].splitlines()[0].removesuffix("; its last log lines:")
    errors = ", ".join(sorted({re.sub(r"\d{2,}", "…", row["error"]) for row in failed}))
    worst_s = max((row["done_s"] - row["scheduled_s"] for row in rows), default=0.0)
    return (
        f"{status}; {len(failed)} of {len(rows)} requests failed{f' ({errors})' if errors else ''},"
        f" the longest took {worst_s:.1f} s"
    )


def not_continued(scene: Scene, command: Sequence[str]) -> list[str]:
    """What is wrong after running the same command again."""
    again = subprocess.run(
        command,
        cwd=scene.folder,
        env=scene.bench.environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=LONGEST_S,
    )
    unlike = [
        f"{folder.name}: {run['status'].splitlines()[0]}"
        for folder, run in runs(scene.out)
        if run["status"] != "ok"
    ]
    return (
        [f"continued, it ended with {again.returncode}: {again.stderr.strip()[-300:]}"]
        if not is_complete(again.returncode, again.stderr)
        else []
    ) + unlike


def killed_often(times: int, seed: int = 1) -> Trial:
    """Kill the driver of one campaign at random moments and continue it, again and again. Files of
    cases that ended must never change.
    """
    found, moments = Trial(KILLED_OFTEN, HARNESS_SERVER), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        folder, kept, ended = Path(place), dict[Path, bytes](), 0
        (folder / "fault.toml").write_text(SCENARIO)
        bench = Bench(folder)
        command = bench.command("--servers", HARNESS_SERVER, *OPTIONS, "--repeat", str(times))
        for number in range(1, times + 1):
            with subprocess.Popen(
                command,
                cwd=folder,
                env=bench.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ) as driver:
                time.sleep(moments.uniform(0, LONGEST_TO_A_KILL_S))
                driver.kill()
            with contextlib.suppress(AssertionError):
                wait_for(lambda: not bench.left_over(), "nothing left", within_s=30)
            found.broken += [f"kill {number} left {what}" for what in bench.left_over()]
            found.broken += [
                f"kill {number} changed {file.name}"
                for file, content in kept.items()
                if file.read_bytes() != content
            ]
            for case, run in runs(folder / "out"):
                rows_of(case) if any(case.glob("requests.*")) else None  # must be readable
                if run["status"] == "ok":
                    kept |= {file: file.read_bytes() for file in case.iterdir() if file not in kept}
            ended = sum(run["status"] == "ok" for _, run in runs(folder / "out"))
        if not ended:  # then the trial has shown nothing
            found.broken.append(
                f"no case ended within {LONGEST_TO_A_KILL_S:g} s, the longest time to a kill"
            )
        found.outcome = (
            f"killed {times} times; {ended} cases ended in between and stayed as they were"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "faults",
        nargs="*",
        metavar="FAULT",
        help=f"any of {', '.join(FAULTS)}, {KILLED_OFTEN} (default: all)",
    )
    parser.add_argument(
        "--servers",
        default="",
        help="comma-separated (default: all that can run the simulated engine)",
    )
    parser.add_argument("--kills", type=int, default=100)
    asked = parser.parse_args()
    if unknown := [name for name in asked.faults if name not in (*FAULTS, KILLED_OFTEN)]:
        parser.error(
            f"unknown fault {', '.join(unknown)}: choose from {', '.join(FAULTS)} and"
            f" {KILLED_OFTEN}"
        )
    servers = [name for name in asked.servers.split(",") if name] or [
        server.name
        for server in catalog.list_servers().values()
        if "simulated" in server.engines and not server.missing("simulated", {})
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in asked.faults or [*FAULTS, KILLED_OFTEN]:
        for server in servers if name in FAULTS and FAULTS[name].of_server else [HARNESS_SERVER]:
            found = trial(name, server) if name in FAULTS else killed_often(asked.kills)
            print(
                "\n    BROKEN: ".join(
                    [f"{name} {server}: {found.skipped or found.outcome}", *found.broken]
                ),
                flush=True,
            )
            with (RESULTS / "trials.jsonl").open("a") as handle:
                handle.write(json.dumps(asdict(found)) + "\n")
    sys.exit(page())


if __name__ == "__main__":
    main()
