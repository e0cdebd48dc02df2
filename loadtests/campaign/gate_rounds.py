"""Repetitions of a gate, until `analysis` has its verdicts. Each repetition runs base, head and
base again for each system.

Head runs between two runs of base, so a linear drift of the machine affects base and head equally
within a repetition. The second run of base is also the control: the code of base, measured like
head. Its place and that of the first run, and the order of the systems, are reversed from one
repetition to the next.
"""

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from loadtests.campaign import analysis_process
from loadtests.campaign.results_folder import Rounds
from loadtests.progress.watch import ProgressWatch
from loadtests.schema import Case, GatedSystem, PairedGate

FEWEST = 5  # repetitions of a verdict: the first of LOOKS in analysis/gate/paired.py


def gated_systems(cases: Sequence[Case]) -> list[GatedSystem]:
    """The systems that are compared, in the order of the plan."""
    return [
        GatedSystem(
            case.server,
            case.engine,
            case.scenario,
            case.users,
            case.rate,
            case.duration_s,
            case.options,
        )
        for case in cases
    ]


def gate_rounds(folder: Path, gate: PairedGate, watch: ProgressWatch) -> Iterator[list[Case]]:
    """Yields one repetition of each system that needs another. Ends when none does, or when another
    repetition as long as the last one would exceed the time limit. Raises UsageError.
    """
    rounds = Rounds(folder, watch)
    repetition = max((case.repetition for case in rounds.done), default=0)
    ends_s = time.monotonic() + 60 * gate.max_minutes
    took_s: float | None = None
    needed = (
        analysis_process.find_unjudged_systems(folder)
        if rounds.done
        else [True] * len(gate.systems)
    )
    while systems := [system for system, more in zip(gate.systems, needed, strict=True) if more]:
        if took_s is not None and time.monotonic() + took_s > ends_s:
            watch.say(f"no time for another repetition within --max-minutes {gate.max_minutes:g}")
            return
        began_s = time.monotonic()
        repetition += 1
        yield rounds.start(repetition_of(systems, repetition, rounds.last_index, gate.seed))
        needed = analysis_process.find_unjudged_systems(folder)
        took_s = time.monotonic() - began_s
        missing = FEWEST - repetition
        if repetition == 1 and time.monotonic() + missing * took_s > ends_s:
            minutes = math.ceil(FEWEST * took_s / 60)
            watch.say(
                f"a verdict needs {FEWEST} repetitions, about {minutes} min, and --max-minutes"
                f" {gate.max_minutes:g} ends before: give --max-minutes {minutes + 1}; the"
                " gate goes on, and will show its numbers without a verdict"
            )


def repetition_of(
    systems: Sequence[GatedSystem], repetition: int, last_index: int, seed: int
) -> list[Case]:
    """The cases of one repetition, in order. `last_index`: of the last case before them."""
    first = random.Random(seed).randrange(2)
    swap = (repetition + first) % 2
    sides = ("control", "head", "base") if swap else ("base", "head", "control")
    ordered = systems[::-1] if swap else systems
    return [
        Case(index, repetition=repetition, side=side, **asdict(system))
        for index, (system, side) in enumerate(
            ((system, side) for system in ordered for side in sides), last_index + 1
        )
    ]
