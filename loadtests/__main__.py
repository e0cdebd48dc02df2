"""The campaign: every case of the plan, one after the other, then the report. `nox -s bench` calls
this.
"""

import sys

from loadtests.campaign.runner import run_campaign
from loadtests.cli import parse_arguments, run_command


def main() -> int:
    return run_command(lambda: run_campaign(parse_arguments(sys.argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
