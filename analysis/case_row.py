"""Prints one case's row as JSON, with the metrics and checks of the report. The campaign shows it
as soon as the case has ended.

    python -m analysis.case_row CAMPAIGN INDEX

    {"valid": true, "why": "", "numbers": {"output_tokens_per_s": "432", "ttft_p99_s": "n=120"}}

`why`: the cause of an invalid case, on one line. `numbers`: as in the report's tables, in
Metric.display_unit; "n=..." marks a sample that is too small for that percentile. It is a command
of its own because the imports of the others take longer than the row.
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
    """Returns 0, or 2 with one sentence on stderr if the case cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.case_row", description="Print one case's row as JSON."
    )
    parser.add_argument("campaign", help="the campaign's folder")
    parser.add_argument("index", type=int, help="the case's number")
    options = parser.parse_args(arguments)
    try:
        print(json.dumps(make_row(options.campaign, options.index), allow_nan=False))
    except dataset.InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def make_row(folder: str, index: int) -> dict[str, object]:
    """The row of one case that has ended. Raises InputError."""
    campaign = dataset.read_campaign(folder)
    cases = campaign.cases[campaign.cases["index"] == index]
    if cases.empty:
        raise dataset.InputError(f"{folder} has no case {index}: give one of its cases")
    found = summary.summarise(replace(campaign, cases=cases), frames=False)
    [valid], [why] = found.table["valid"], found.table["why"]
    return {
        "valid": bool(valid),
        "why": formatting.shorten(why),
        "numbers": {name: formatting.format_cell(name, found.table) for name in NUMBERS},
    }


if __name__ == "__main__":
    sys.exit(main())
