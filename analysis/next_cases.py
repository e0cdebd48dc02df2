"""Which cases a search for capacity or a gate needs next, as JSON: what the driver asks after every
round.

    python -m analysis.next_cases CAMPAIGN
    python -m analysis.next_cases --slo BOUNDS      only whether a search can ask for them

A command of its own, since pictures and notebooks, which the others import, take longer than the
answer.
"""

import argparse
import json
import sys

from analysis import dataset, slo
from analysis.capacity import search
from analysis.gate import paired


def main(arguments: list[str] | None = None) -> int:
    """0; 2 if what was asked for cannot be read, with one sentence on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.next_cases", description="Which cases are needed next, as JSON."
    )
    parser.add_argument("campaign", nargs="?", help="its folder")
    parser.add_argument("--slo", help="bounds to be checked")
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
