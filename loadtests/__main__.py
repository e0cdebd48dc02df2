"""Runs a campaign: every case of the plan, one after the other, then the report. `nox -s bench`
calls this.
"""

import sys
from collections.abc import Sequence

from loadtests.campaign.runner import run_campaign
from loadtests.cli import parse_arguments, run_command


def main() -> int:
    return run_command(lambda: run(sys.argv[1:]))


def run(command: Sequence[str]) -> int:
    """Returns the exit code. Raises the errors that run_command reports in one sentence."""
    arguments = parse_arguments(command)
    with arguments.expanded.naming_the_file():
        return run_campaign(arguments)


if __name__ == "__main__":
    sys.exit(main())
