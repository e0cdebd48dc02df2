"""The campaign: every case of the plan, one after the other, then the report. `nox -s bench` calls
this.
"""

import sys

from loadtests.campaign.runner import campaign, command
from loadtests.cli import arguments_of


def main() -> int:
    return command(lambda: campaign(arguments_of(sys.argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
