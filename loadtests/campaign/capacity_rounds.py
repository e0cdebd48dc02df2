"""The search for capacity: round after round, one case of each server, at the load that the
analysis of the cases so far asks for.

Which load that is, and whether a case kept the SLO, is a question of analysis (`python -m
analysis.next_cases CAMPAIGN`), which this does not import. Every second round goes the other way
round, so that a drift of the machine falls on all servers alike.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loadtests.campaign import results_folder
from loadtests.campaign.progress import ProgressWatch
from loadtests.errors import UsageError
from loadtests.schema import Case
from servers.runtime import catalog

SATURATION_USERS = 64


def search_scenarios(
    chosen: dict[str, dict[str, Any]], estimates: Sequence[float]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The scenarios, with one at saturation for each open loop whose capacity has no estimate, and
    the names of those. Raises PlanError.
    """
    found, saturation = dict(chosen), {}
    for name, table in chosen.items():
        if table["arrivals"] == "trace":
            raise UsageError(
                f"the scenario {name!r} replays a trace, whose load is what it is: --find-capacity"
                " needs another one"
            )
        if table["arrivals"] == "closed" or estimates:
            continue
        saturation[name] = f"{name}-saturation"
        kept = {
            key: value
            for key, value in table.items()
            if key not in ("rate", "burstiness", "profile", "max_in_flight")
        }
        found[saturation[name]] = kept | {
            "summary": f"{name} as a closed loop, whose throughput is where the search begins",
            "arrivals": "closed",
            "users": SATURATION_USERS,
            "think_s": 0.0,
        }
    return found, saturation


def searched_systems(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """What is searched for: {server, options, engine, scenario}, each once, in the order of the
    plan.
    """
    found: list[dict[str, Any]] = []
    for case in cases:
        system = {
            "server": case.server,
            "options": case.options,
            "engine": case.engine,
            "scenario": case.scenario,
        }
        if system not in found:
            found.append(system)
    return found


def capacity_rounds(
    folder: Path, sought: dict[str, Any], watch: ProgressWatch
) -> Iterator[list[Case]]:
    """Rounds of cases, each asked for when the one before has been run, until no system needs
    another one. Raises PlanError.
    """
    done = results_folder.set_aside(folder, watch)
    forwards = True
    while wanted := [
        (system, load)
        for system, load in zip(sought["systems"], _asked(folder), strict=True)
        if load
    ]:
        last = max(
            (
                int(place.name.split("-")[0])
                for kind in ("cases", "attempts")
                for place in (folder / kind).glob("*-*")
            ),
            default=0,
        )
        cases = [
            Case(
                index,
                system["server"],
                system["engine"],
                load["scenario"],
                1,
                load["users"],
                load["rate"],
                load["duration_s"],
                system["options"],
            )
            for index, (system, load) in enumerate(wanted if forwards else wanted[::-1], last + 1)
        ]
        watch.plan([*done, *cases], done=len(done), more=True)
        yield cases
        done += cases
        forwards = not forwards


def check_slo(text: str) -> None:
    """Raises PlanError."""
    done = subprocess.run(
        [sys.executable, "-m", "analysis.next_cases", "--slo", text],
        cwd=catalog.ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise UsageError(done.stderr.strip())


def _asked(folder: Path) -> list[dict[str, Any] | None]:
    command = [sys.executable, "-m", "analysis.next_cases", str(folder.resolve())]
    done = subprocess.run(command, cwd=catalog.ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UsageError(f"what to measure next in {folder} could not be found: see above")
    return list(json.loads(done.stdout))
