"""The campaign: every case of the plan, one after the other, then the report. `nox -s bench` calls
this.
"""

import sys

from loadtests.arguments import arguments_of
from loadtests.campaign import campaign, command


def main() -> int:
    return command(lambda: campaign(arguments_of(sys.argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
