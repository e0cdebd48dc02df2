"""One case's row, with the metrics and checks of the report. The campaign shows it as soon as the
case has ended.

    {"valid": true, "why": "", "numbers": {"output_tokens_per_s": "432", "ttft_p99_s": "n=120"}}

`why`: the cause of an invalid case, on one line. `numbers`: as in the report's tables, in
Metric.display_unit; "n=..." marks a sample that is too small for that percentile.
"""

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
