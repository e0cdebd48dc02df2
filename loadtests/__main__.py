"""The campaign: every case of the plan, one after the other, then the report. `nox -s bench` calls
this.
"""

import sys
from collections.abc import Sequence

from loadtests.campaign.runner import run_campaign
from loadtests.cli import parse_arguments, run_command
from loadtests.config_file import expand_config
from loadtests.options import make_parser


def main() -> int:
    return run_command(lambda: run(sys.argv[1:]))


def run(command: Sequence[str]) -> int:
    """Exit code. Raises what run_command makes a sentence of."""
    expanded = expand_config(command, make_parser())
    with expanded.naming_the_file():
        return run_campaign(parse_arguments(expanded.arguments))


if __name__ == "__main__":
    sys.exit(main())
