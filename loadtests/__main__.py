"""The campaign: every case of the plan, one after the other, then the report. `nox -s bench` calls
this.
"""

import sys

from loadtests.campaign.runner import command, run_campaign
from loadtests.cli import arguments_of


def main() -> int:
    return command(lambda: run_campaign(arguments_of(sys.argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
