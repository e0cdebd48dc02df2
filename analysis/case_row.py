"""One case's row as JSON, with the metrics and the checks of the report: what the driver prints as
soon as a case has ended.

    python -m analysis.case_row CAMPAIGN INDEX

    {"valid": true, "why": "", "numbers": {"output_tokens_per_s": "432", "ttft_p99_s": "n=120"}}

`why`: the cause of an invalid case, on one line. `numbers`: as the report's tables print them, in
Metric.display_unit; "n=..." is too small a sample for that percentile. A command of its own, since
the others import what takes longer than the row.
"""

import argparse
import json
import sys
from dataclasses import replace

from analysis import dataset, formatting, summary

NUMBERS = (
    "output_tokens_per_s",
    "requests_per_s",
    "ttft_p50_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "e2e_p50_s",
    "e2e_p95_s",
    "e2e_p99_s",
    "error_share",
)


def main(arguments: list[str] | None = None) -> int:
    """0; 2 if the case cannot be read, with one sentence on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.case_row", description="One case's row, as JSON."
    )
    parser.add_argument("campaign", help="its folder")
    parser.add_argument("index", type=int, help="the case's number")
    options = parser.parse_args(arguments)
    try:
        print(json.dumps(make_row(options.campaign, options.index), allow_nan=False))
    except dataset.InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def make_row(folder: str, index: int) -> dict[str, object]:
    """The row of one case, which has ended. Raises InputError."""
    campaign = dataset.read_campaign(folder)
    cases = campaign.cases[campaign.cases["index"] == index]
    if cases.empty:
        raise dataset.InputError(f"{folder} has no case {index}: name one of its cases")
    found = summary.summarise(replace(campaign, cases=cases), frames=False)
    [valid], [why] = found.table["valid"], found.table["why"]
    return {
        "valid": bool(valid),
        "why": formatting.shorten(why),
        "numbers": {name: formatting.format_cell(name, found.table) for name in NUMBERS},
    }


if __name__ == "__main__":
    sys.exit(main())
