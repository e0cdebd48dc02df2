"""Responds to a campaign's requests, one JSON list per line, until its standard input ends.

    python -m analysis.session

    ["row", FOLDER, INDEX]   {"result": {"valid": true, "why": "", "numbers": {...}}}
    ["needed", FOLDER]       {"result": [...]}: the next case of each system of a capacity search,
                             or whether each system of a gate needs another repetition
    ["missing", FOLDER]      {"result": [[system, why], ...]}: the systems without a valid case
    ["slo", BOUNDS]          {"result": null} if a search for capacity can use these bounds
    ["gate", METRICS, TOLERANCE, SLO, BASELINE, RECORD, BASELINES]
                             {"result": null} if a gate can use these options; BASELINES is a folder
    unusable input           {"error": "one sentence with the remedy"}
    a bug of ours            {"error": "", "traceback": "..."}

Each response also has "ends": whether the process ends after it. One process serves the whole
campaign because its imports take longer than most requests. Between two requests it only waits. It
imports nothing that draws figures or runs notebooks.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from analysis import conclusions, dataset, formatting, slo, summary
from analysis.capacity import search
from analysis.gate import baselines, paired, verdicts

# Allocators do not give all memory back. A process that has grown beyond this ends, to free the
# memory during the next load; the campaign then starts another.
LARGEST_BYTES = 500 * 2**20
# of a case's row
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
    """The row of one case that has ended, with the metrics and checks of the report:

        {"valid": true, "why": "", "numbers": {"output_tokens_per_s": "432", "ttft_p99_s": "n=120"}}

    `why`: the cause of an invalid case, on one line. `numbers`: as in the report's tables, in
    Metric.display_unit; "n=..." marks a sample that is too small for that percentile. Raises
    InputError.
    """
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


def list_needed_cases(folder: str) -> list[Any]:
    """The next case of each system of a search, None for those whose capacity is found; or whether
    each system of a gate needs another repetition. Raises InputError.
    """
    campaign = dataset.read_campaign(folder)
    if campaign.data.get("gate"):
        return list(paired.needed_rounds(campaign))
    return list(search.needed_cases(campaign))


def check_slo(bounds: str) -> None:
    """Raises InputError if a search for capacity cannot use these bounds."""
    slo.count_requests_needed(slo.parse_slo(bounds))


def check_gate(
    metrics: str,
    tolerance: list[str],
    bounds: str,
    baseline: str | None,
    record: str | None,
    folder: str,
) -> None:
    """Raises InputError if a gate cannot be judged by these rules, against this stored baseline in
    `folder`, or recorded there under this name.
    """
    verdicts.parse_rules(metrics, tolerance, bounds)
    if baseline:
        baselines.check_name(baseline, Path(folder))
    if record:
        baselines.new_baseline_file(record, Path(folder))


def list_missing_systems(folder: str) -> list[tuple[str, str]]:
    """(system, reason) of the systems without a valid case. Raises InputError."""
    found = summary.summarise(dataset.read_campaign(folder), frames=False)
    return conclusions.list_systems_without_case(found)


REQUESTS: dict[str, Callable[..., Any]] = {
    "row": make_row,
    "needed": list_needed_cases,
    "slo": check_slo,
    "gate": check_gate,
    "missing": list_missing_systems,
}


def respond(request: list[Any]) -> dict[str, Any]:
    """The response to one request."""
    name, *arguments = request
    try:
        return {"result": REQUESTS[name](*arguments)}
    except dataset.InputError as error:
        return {"error": str(error)}
    except Exception:
        return {"error": "", "traceback": traceback.format_exc()}


def main() -> None:
    # the campaign handles Ctrl-C, and then needs no response
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    responses, sys.stdout = sys.stdout, sys.stderr
    ends = False
    while not ends and (line := sys.stdin.readline()):
        if hasattr(os, "sched_setaffinity"):  # as the campaign, which may have moved meanwhile
            os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
        response = respond(json.loads(line))
        ends = psutil.Process().memory_info().rss > LARGEST_BYTES
        print(json.dumps(response | {"ends": ends}, allow_nan=False), file=responses, flush=True)


if __name__ == "__main__":
    main()
