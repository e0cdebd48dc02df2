"""Writes a campaign's conclusions: the best server, and the servers without a valid case, with the
reasons.

Only servers with a valid result are ranked, and a server without a competitor has not won.
"""

import math
from collections.abc import Iterator

import pandas as pd

from analysis import stats
from analysis.formatting import format_estimate, format_number, unit_of
from analysis.metrics import METRICS
from analysis.summary import SYSTEM, Comparison, ServerSummary, Summary
from loadtests.schema import system_label

MOST_TIES = 4  # servers that a sentence names


def describe_result(comparison: Comparison, reasons: bool = True) -> str:
    """Returns one or two sentences: the best server under this traffic by the comparison's metric,
    its lead, and the servers without a valid case, with the reasons unless these stand nearby. A
    single server has not won.
    """
    metric, title = comparison.metric, comparison.title
    label = METRICS[metric].label
    ranked = [s for s in comparison.systems if s.rank]
    known = [s for s in ranked if not math.isinf(s.estimate.mean)]
    missing = _describe_missing(comparison, reasons)
    if not ranked:
        if len(comparison.systems) == 1:
            return f"Under {title}, {missing}."
        if comparison.has_number:
            return f"Under {title}, no server can be ranked: {missing}."
        causes = "; ".join(f"{s.name}: {s.cause}" for s in comparison.systems)
        why = f": {causes}" if reasons else ""
        return f"Under {title}, no server has a valid case{why}."
    if not known:
        text = f"Under {title}, no server has a finite {label}: too many requests failed."
        return f"{text} Not ranked: {missing}." if missing else text
    best = known[0]
    runs = "one run" if best.estimate.runs == 1 else f"{best.estimate.runs} runs"
    number = f"{format_estimate(metric, best.valid)} {unit_of(metric)} ({runs})"
    if len(known) == 1:
        text = f"Under {title}, {best.name} has an {label} of {number}"
        none = [f"too many requests of {s.name} failed" for s in ranked[1:]]
        others = "; ".join(filter(None, [*none, missing]))
        return (
            f"{text}, and there is nothing to compare it with: {others}." if others else f"{text}."
        )
    what = (
        "sustained the highest output throughput"
        if metric == "output_tokens_per_s"
        else f"had the lowest {label}"
    )
    text = f"Under {title}, {best.name} {what}: {number}"
    point, low, high = stats.mean_ratio(best.valid[metric], known[1].valid[metric])
    by = f"{format_number(point)} times that of {known[1].name}" + (
        "" if math.isnan(low) else f" (95% interval {low:.2f} to {high:.2f})"
    )
    tied = [s for s in known if s.rank == 1]
    if len(tied) > 1:
        others = ", ".join(s.name for s in tied[1 : 1 + MOST_TIES])
        if more := len(tied[1 + MOST_TIES :]):
            others += f" and {more} more"
        text += f". It is a tie with {others}: {_describe_tie(tied)}; its value is {by}."
    else:
        text += f", {by}."
        if min(s.estimate.runs for s in known[:2]) == 1:
            text += " One run has no interval: repeat it before relying on a small difference."
    return f"{text} Not ranked: {missing}." if missing else text


def _describe_tie(tied: list[ServerSummary]) -> str:
    if all(s.estimate.runs > 1 for s in tied):
        return "the intervals overlap"
    return "two starts of one server may differ as much, so repeat the runs"


def _describe_missing(comparison: Comparison, reasons: bool) -> str:
    """Names the systems that cannot be ranked, with the `reasons` of those without a valid case;
    empty if all can be.
    """
    none = [s for s in comparison.systems if not s.rank]
    return "; ".join(
        f"{s.name} has no valid case" + (f": {s.cause}" if reasons else "")
        if s.valid.empty
        else f"{s.name} has too few requests for an {METRICS[comparison.metric].label}"
        for s in none
    )


def list_systems_without_case(summary: Summary) -> list[tuple[str, str]]:
    """(system and scenario, reason) of the systems without a valid case at any load, in the order
    of the plan. Skipped systems are listed only if no other system has a valid case.
    """
    found = []
    for cases in _cases_by_system(summary):
        first = cases.iloc[0]
        system = ServerSummary(first["server"], first["engine"], cases, stats.estimate_mean([]))
        skipped = cases["state"].eq("skipped").all() and summary.table["valid"].any()
        if system.valid.empty and not skipped:
            found.append((f"{system.name}, {first['scenario']}", system.cause))
    return found


def _cases_by_system(summary: Summary) -> Iterator[pd.DataFrame]:
    """The cases of each system under each scenario. For a capacity search, the cases at the loads
    that it tried, or those at saturation if it tried none.
    """
    table, search = summary.table, summary.campaign.data.get("search")
    if not search:
        for _, cases in table.groupby([*SYSTEM, "scenario"], sort=False):
            yield cases
        return
    for each in search["systems"]:
        own = table[
            table["server"].eq(system_label(each["server"], each["options"]))
            & table["engine"].eq(each["engine"])
        ]
        for scenario in (each["scenario"], search["saturation"].get(each["scenario"])):
            if len(cases := own[own["scenario"].eq(scenario)]):
                yield cases
                break
