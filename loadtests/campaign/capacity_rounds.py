"""The search for capacity: round after round, one case of each server, at the load that the
analysis of the cases so far asks for.

Every second round is in reverse order, so that a drift of the machine falls on all servers alike.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from loadtests.campaign import analysis_process
from loadtests.campaign.results_folder import Rounds
from loadtests.errors import UsageError
from loadtests.progress.watch import ProgressWatch
from loadtests.schema import CapacitySearch, Case, SearchedSystem
from loadtests.workload.scenario import Tables

SATURATION_USERS = 64
# Keys of an open loop that a closed one does not have, or that make a window longer: throughput
# needs no number of requests.
NOT_AT_SATURATION = ("rate", "burstiness", "profile", "max_in_flight", "requests", "duration_max_s")


def search_scenarios(chosen: Tables, estimates: Sequence[float]) -> tuple[Tables, dict[str, str]]:
    """The scenarios, with one at saturation for each open loop whose capacity has no estimate, and
    the names of those. Raises UsageError.
    """
    scenarios, saturation = dict(chosen), {}
    for name, table in chosen.items():
        if table["arrivals"] == "trace":
            raise UsageError(
                f"the scenario {name!r} replays a trace, whose load is what it is: --find-capacity"
                " needs another one"
            )
        if table["arrivals"] == "closed" or estimates:
            continue
        saturation[name] = f"{name}-saturation"
        kept = {key: value for key, value in table.items() if key not in NOT_AT_SATURATION}
        scenarios[saturation[name]] = kept | {
            "summary": f"{name} as a closed loop, whose throughput is where the search begins",
            "arrivals": "closed",
            "users": SATURATION_USERS,
            "think_s": 0.0,
        }
    return scenarios, saturation


def searched_systems(cases: Sequence[Case]) -> list[SearchedSystem]:
    """What is searched for, each once, in the order of the plan."""
    systems: list[SearchedSystem] = []
    for case in cases:
        system = SearchedSystem(case.server, case.options, case.engine, case.scenario)
        if system not in systems:
            systems.append(system)
    return systems


def plan_search(
    cases: list[Case], scenarios: Tables, arguments: argparse.Namespace
) -> tuple[Tables, CapacitySearch]:
    """The scenarios of a search for capacity, and what it looks for. Raises UsageError."""
    for option, several in (
        ("--repeat", arguments.repeat > 1),
        ("--users", len(arguments.users) > 1),
        ("--rate", len(arguments.rate) > 1),
    ):
        if several:
            raise UsageError(
                f"{option}: --find-capacity chooses the loads itself: give one value at most, where"
                " to begin"
            )
    analysis_process.check_slo(arguments.slo)
    scenarios, saturation = search_scenarios(scenarios, arguments.rate)
    estimates = {
        case.scenario: case.users if case.users else arguments.rate[0]
        for case in cases
        if case.users or arguments.rate
    }
    return scenarios, CapacitySearch(
        slo=arguments.slo,
        duration_s=arguments.duration,
        estimates=estimates,
        saturation=saturation,
        systems=searched_systems(cases),
    )


def capacity_rounds(
    folder: Path, search: CapacitySearch, watch: ProgressWatch
) -> Iterator[list[Case]]:
    """Rounds of cases, each asked for when the one before has been run, until no system needs
    another one. Raises UsageError.
    """
    rounds = Rounds(folder, watch)
    forwards = True
    while needed := [
        (system, load)
        for system, load in zip(
            search.systems, analysis_process.find_next_loads(folder), strict=True
        )
        if load
    ]:
        yield rounds.start(
            [
                Case(
                    index,
                    system.server,
                    system.engine,
                    load.scenario,
                    1,
                    load.users,
                    load.rate,
                    load.duration_s,
                    system.options,
                )
                for index, (system, load) in enumerate(
                    needed if forwards else needed[::-1], rounds.last_index + 1
                )
            ]
        )
        forwards = not forwards
