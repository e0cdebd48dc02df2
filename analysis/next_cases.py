"""Prints the cases that a capacity search or a gate needs next, as JSON. The campaign runs it after
every round.

    python -m analysis.next_cases CAMPAIGN
    python -m analysis.next_cases --slo BOUNDS      only check bounds for a search

It is a command of its own because importing the others' figures and notebooks takes longer than the
decision.
"""

import argparse
import json
import sys

from analysis import dataset, slo
from analysis.capacity import search
from analysis.gate import paired


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 with one sentence on stderr if the input cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.next_cases",
        description="Print the cases that are needed next, as JSON.",
    )
    parser.add_argument("campaign", nargs="?", help="the campaign's folder")
    parser.add_argument("--slo", help="bounds to check")
    options = parser.parse_args(arguments)
    try:
        if options.slo:
            slo.count_requests_needed(slo.parse_slo(options.slo))
        if options.campaign:
            campaign = dataset.read_campaign(options.campaign)
            asked = (
                paired.needed_rounds(campaign)
                if campaign.data.get("gate")
                else search.needed_cases(campaign)
            )
            print(json.dumps(asked, allow_nan=False))
    except dataset.InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
