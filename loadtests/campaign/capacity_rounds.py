"""The search for capacity, in rounds. Each round has one case per server, at the load that
`analysis` requests after the previous rounds.

Every second round runs in reverse order: a drift of the machine then affects all servers equally.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from loadtests.campaign import analysis_process
from loadtests.campaign.results_folder import Rounds
from loadtests.errors import UsageError
from loadtests.progress.watch import ProgressWatch
from loadtests.schema import CapacitySearch, Case, SearchedSystem
from loadtests.workload.scenario import Tables

SATURATION_USERS = 64
SATURATION_S = 10.0
# Keys that a closed loop does not have, or that lengthen a window: throughput at saturation needs
# no minimum of requests.
NOT_AT_SATURATION = ("rate", "burstiness", "profile", "max_in_flight", "requests", "duration_max_s")


def search_scenarios(chosen: Tables, estimates: Sequence[float]) -> tuple[Tables, dict[str, str]]:
    """Returns the scenarios, plus a closed loop at saturation for each open loop without an
    estimate; and the names of the added ones, by the open loop's name. Raises UsageError.
    """
    scenarios, saturation = dict(chosen), {}
    for name, table in chosen.items():
        if table["arrivals"] == "trace":
            raise UsageError(
                f"the scenario {name!r} replays a trace, whose load is fixed: choose another"
                " scenario for --find-capacity"
            )
        if table["arrivals"] == "closed" or estimates:
            continue
        saturation[name] = f"{name}-saturation"
        kept = {key: value for key, value in table.items() if key not in NOT_AT_SATURATION}
        scenarios[saturation[name]] = kept | {
            "summary": f"{name} as a closed loop, whose throughput gives the search its first rate",
            "arrivals": "closed",
            "users": SATURATION_USERS,
            "think_s": 0.0,
            "duration_s": SATURATION_S,
        }
    return scenarios, saturation


def searched_systems(cases: Sequence[Case]) -> list[SearchedSystem]:
    """The distinct systems of these cases, in the order of the plan."""
    systems: list[SearchedSystem] = []
    for case in cases:
        system = SearchedSystem(case.server, case.options, case.engine, case.scenario)
        if system not in systems:
            systems.append(system)
    return systems


def plan_search(
    cases: list[Case], scenarios: Tables, arguments: argparse.Namespace
) -> tuple[Tables, CapacitySearch]:
    """Returns the scenarios and the settings of a search for capacity. Raises UsageError."""
    if arguments.repeat > 1:
        raise UsageError(
            "--repeat cannot be used with --find-capacity, which chooses the cases itself: leave it"
            " out"
        )
    for option, loads in (("--users", arguments.users), ("--rate", arguments.rate)):
        if len(loads) > 1:
            raise UsageError(
                f"{option} has several values, but --find-capacity chooses the loads itself: give"
                " at most one, the first load"
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


def first_round(cases: Sequence[Case], scenarios: Tables, search: CapacitySearch) -> list[Case]:
    """The cases with which the search starts: those of the plan, at saturation where no load is
    estimated. An estimated load may get a longer window than the one here.
    """
    return [
        replace(
            case,
            scenario=saturation,
            users=SATURATION_USERS,
            rate=None,
            duration_s=scenarios[saturation]["duration_s"],
        )
        if (saturation := search.saturation.get(case.scenario))
        else replace(case, duration_s=search.duration_s or scenarios[case.scenario]["duration_s"])
        for case in cases
    ]


def capacity_rounds(
    folder: Path, search: CapacitySearch, watch: ProgressWatch
) -> Iterator[list[Case]]:
    """Yields rounds of cases until no system needs another one. Each round depends on the results
    of the previous one. Raises UsageError.
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
