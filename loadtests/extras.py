"""Prints the extras of pyproject.toml that a command needs besides those of every measurement: the
packages of its servers and engines, and notebooks. The noxfile installs them before the command.

    python -m loadtests.extras loadtests --servers tornado --engines simulated
    python -m loadtests.extras loadtests.gate --base main
    python -m loadtests.extras loadtests.claims engines

The arguments are parsed by the command's own parser. A command that prints its help or its plan, or
refuses its arguments, needs no extras; the command itself then prints the reason.
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Callable
from functools import partial

from loadtests import cli, gate
from loadtests.accuracy import starvation
from loadtests.campaign.runner import plan_campaign
from loadtests.campaign.targets import Targets
from loadtests.claims.__main__ import choose_campaigns
from loadtests.errors import UsageError
from loadtests.workload.traces import TraceError
from servers.runtime.catalog import CORE, CatalogError
from servers.runtime.errors import LaunchError

# For each campaign of a command: its arguments, and a function that finds its targets.
Campaigns = list[tuple[argparse.Namespace, Callable[[], Targets | None]]]


def read_bench(command: list[str]) -> Campaigns:
    return [(cli.parse_arguments(command), lambda: None)]


def read_gate(command: list[str]) -> Campaigns:
    own, others = gate.parse_gate_arguments(command)
    if own.campaigns:
        return []
    arguments = gate.read_campaign_arguments(own, others)
    return [(arguments, partial(gate.find_targets, own, arguments))]


def read_claims(command: list[str]) -> Campaigns:
    campaigns, _ = choose_campaigns(command)
    return [campaign for each in campaigns.values() for campaign in read_bench(each)]


COMMANDS: dict[str, Callable[[list[str]], Campaigns]] = {
    "loadtests": read_bench,
    "loadtests.gate": read_gate,
    "loadtests.claims": read_claims,
    "loadtests.accuracy": lambda _: read_bench([*starvation.CAMPAIGN]),
    "loadtests.gpu_selftest": lambda _: read_bench(["--servers", CORE, "--report=none"]),
}


def list_extras(module: str, command: list[str]) -> set[str]:
    """The extras that `python -m MODULE COMMAND` needs. Raises SystemExit and the command's own
    errors.
    """
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        campaigns = COMMANDS[module](command)
    found = set()
    for arguments, find_targets in campaigns:
        if arguments.plan:
            continue
        plan = plan_campaign(arguments, find_targets())
        for case in plan.cases:
            for target in plan.targets.values():
                server = target.find_server(case.server)
                found |= server.needed_extras(case.engine, case.options)
        if arguments.report == "full":
            found.add("notebooks")
    return found


def main() -> int:
    try:
        print(*sorted(list_extras(sys.argv[1], sys.argv[2:])))
    except (SystemExit, UsageError, TraceError, CatalogError, LaunchError, OSError):
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
