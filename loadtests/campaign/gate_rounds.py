"""Repetitions of a gate: of each system one run of base, one of head and one of base again, until
the analysis has its verdicts.

Head stands between two runs of base, so that a drift of the machine, as far as it is a straight
line, falls on both sides alike within each repetition. The second run of base is also the control:
equal code, measured as base and head are. Which of the two comes first changes from one repetition
to the next, as does the order of the systems.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loadtests.campaign import results_folder
from loadtests.campaign.progress import ProgressWatch
from loadtests.errors import UsageError
from loadtests.schema import Case
from servers.runtime import catalog


def gated_systems(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """What is compared: {server, engine, scenario, users, rate, duration_s, options}, in the order
    of the plan.
    """
    return [
        {
            key: value
            for key, value in case.as_dict().items()
            if key not in ("index", "repetition", "side")
        }
        for case in cases
    ]


def gate_rounds(folder: Path, gate: dict[str, Any], watch: ProgressWatch) -> Iterator[list[Case]]:
    """One repetition of each system that needs another, until none does, or there is no time for
    one more that takes as long as the one before. Raises PlanError.
    """
    done = results_folder.set_aside(folder, watch)
    before = [place for kind in ("cases", "attempts") for place in (folder / kind).glob("*-*")]
    index = max((int(place.name.split("-")[0]) for place in before), default=0)
    repetition = max((case.repetition for case in done), default=0)
    ends = time.monotonic() + 60 * gate["max_minutes"]
    took: float | None = None
    asked = _asked(folder) if done else [True] * len(gate["systems"])
    while systems := [system for system, more in zip(gate["systems"], asked, strict=True) if more]:
        if took is not None and time.monotonic() + took > ends:
            watch.say(
                f"no time for another repetition within --max-minutes {gate['max_minutes']:g}"
            )
            return
        began = time.monotonic()
        repetition += 1
        cases = repetition_of(systems, repetition, index, gate["seed"])
        index += len(cases)
        watch.plan([*done, *cases], done=len(done), more=True)
        yield cases
        done += cases
        asked = _asked(folder)
        took = time.monotonic() - began


def repetition_of(
    systems: Sequence[dict[str, Any]], repetition: int, index: int, seed: int
) -> list[Case]:
    """`index`: of the last case before."""
    first = random.Random(seed).randrange(2)
    swap = (repetition + first) % 2
    sides = ("control", "head", "base") if swap else ("base", "head", "control")
    ordered = systems[::-1] if swap else systems
    return [
        Case(number, repetition=repetition, side=side, **system)
        for number, (system, side) in enumerate(
            ((system, side) for system in ordered for side in sides), index + 1
        )
    ]


def _asked(folder: Path) -> list[bool]:
    command = [sys.executable, "-m", "analysis.next_cases", str(folder.resolve())]
    done = subprocess.run(command, cwd=catalog.ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UsageError(f"whether {folder} needs another repetition could not be found: see above")
    return list(json.loads(done.stdout))
