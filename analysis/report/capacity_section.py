"""The report's section "Capacity": the results of a search, in words and tables."""

import math

from analysis import conclusions, slo
from analysis.capacity.search import PRECISION, CapacityResult, find_capacities
from analysis.formatting import format_number, shorten
from analysis.stats import CONFIDENCE
from analysis.summary import Summary
from analysis.templating import View


def capacity_view(summary: Summary) -> View:
    """{slo, confidence, precision, answers, short_answers, systems} for the templates. `systems` is
    empty unless the campaign was a search; `short_answers` do not give the reasons of invalid
    cases.
    """
    campaign = summary.campaign
    all_of = find_capacities(campaign) if campaign.data.get("search") else []
    text = campaign.data["search"]["slo"] if all_of else ""
    bounds = " and ".join(map(str, slo.parse_slo(text))) if text else ""
    traffics = dict.fromkeys(f.traffic for f in all_of)
    found = [[f for f in all_of if f.traffic == traffic] for traffic in traffics]
    return {
        "slo": bounds,
        "preset": text if text in slo.PRESETS else "",
        "confidence": f"{CONFIDENCE:.0%}",
        "precision": f"{PRECISION:.0%}",
        "systems": [_row(summary, f) for f in all_of],
        "answers": [_answer(summary, bounds, systems) for systems in found],
        "short_answers": [_answer(summary, bounds, systems, reasons=False) for systems in found],
    }


def _answer(
    summary: Summary, bounds: str, systems: list[CapacityResult], reasons: bool = True
) -> str:
    """The highest capacity, and the servers without a valid case, with the `reasons`."""
    missing = dict(conclusions.list_systems_without_case(summary))
    without = [
        f"{f.name} has no valid case"
        + (f": {missing[f'{f.name}, {f.traffic}']}" if reasons else "")
        for f in systems
        if f"{f.name}, {f.traffic}" in missing
    ]
    if len(without) == len(systems):
        return f"Under {systems[0].traffic}, {'; '.join(without)}."
    text = _describe_best(bounds, systems)
    return f"{text} {'; '.join(without)}." if without else text


def _describe_best(bounds: str, systems: list[CapacityResult]) -> str:
    best = systems[0]
    undecided = [
        f.name for f in systems if math.isnan(f.capacity.holds) and math.isnan(f.capacity.fails)
    ]
    if math.isnan(best.capacity.holds):
        if undecided:
            return (
                f"Under {best.traffic}, no capacity is known: no case of {', '.join(undecided)}"
                f" shows whether it meets {bounds}."
            )
        return f"Under {best.traffic}, no server met {bounds} at any load."
    text = f"Under {best.traffic}, {best.name} meets {bounds} up to {_capacity(best)}"
    if len(systems) < 2 or math.isnan(systems[1].capacity.holds):
        return f"{text}."
    second = systems[1]
    if math.isnan(second.capacity.fails):
        return (
            f"{text}; {second.name} sustains {_capacity(second)}, and since its limit was not"
            " found, the two have no order."
        )
    ratio = format_number(best.capacity.holds / second.capacity.holds)
    text += f", {ratio} times what {second.name} sustains"
    if second.capacity.fails > best.capacity.holds:
        text += "; this is a tie: the two capacities may be equal"
    return f"{text}."


def _capacity(f: CapacityResult) -> str:
    if math.isnan(f.capacity.holds):
        return (
            f"less than {format_number(f.capacity.fails)} {f.unit}"
            if not math.isnan(f.capacity.fails)
            else "unknown"
        )
    failed = "" if math.isnan(f.capacity.fails) else f" (not at {format_number(f.capacity.fails)})"
    return f"{'at least ' if not failed else ''}{format_number(f.capacity.holds)} {f.unit}{failed}"


def _seen(kept: slo.BoundResult) -> str:
    bound = kept.bound
    if bound.latency == "failed":
        return f"{kept.seen:.1%} errors"
    return (
        f"{bound.latency.removesuffix('_s').upper()} P{100 * bound.share:g}"
        f" {format_number(1000 * kept.seen)} ms"
    )


def _row(summary: Summary, f: CapacityResult) -> View:
    tokens = (
        math.nan
        if f.at_capacity is None
        else float(summary.table["output_tokens_per_s"].loc[f.at_capacity])
    )
    tried = [
        {
            "load": format_number(p.load),
            "case": p.case,
            "holds": {True: "meets", False: "misses", None: "invalid"}[p.holds],
            "seen": "; ".join(
                filter(
                    None,
                    [
                        *(
                            f"{_seen(k)}, {k.met:,} of {k.of:,} within the bound"
                            for k in p.bound_results
                            if k.of
                        ),
                        p.why,
                    ],
                )
            ),
        }
        for p in f.probes
    ]
    return {
        "server": f.server,
        "engine": f.engine,
        "traffic": f.traffic,
        "unit": f.unit,
        "capacity": _capacity(f),
        "certain": f"{format_number(f.certain.holds)} to {format_number(f.certain.fails)}",
        "broke": _broke(f) or "–",
        "tokens": format_number(tokens),
        "cases": len(f.probes),
        "ended": _ended(summary, f),
        "probes": tried,
    }


def _broke(f: CapacityResult) -> str:
    """The bounds that were missed at the lowest load that failed, with the values there."""
    probe = next((p for p in f.probes if p.holds is False and p.load == f.capacity.fails), None)
    return (
        (", ".join(_seen(k) for k in probe.bound_results if not k.holds and k.of) or probe.why)
        if probe
        else ""
    )


def _ended(summary: Summary, f: CapacityResult) -> str:
    """The reason why the capacity is not precise; empty if it is."""
    decided = {p.load for p in f.probes if p.holds is not None}
    without = next((p for p in f.probes if p.holds is None and p.load not in decided), None)
    if without:
        return f"ended at {format_number(without.load)} {f.unit}, an invalid case: {without.why}"
    if not f.probes:
        own = summary.table[
            summary.table["server"].eq(f.server) & summary.table["engine"].eq(f.engine)
        ]
        why = [shorten(text) for text in own.loc[~own["valid"], "why"]]
        return f"no case at any load: {why[0]}" if why else "no case at any load"
    return "" if f.is_precise else f"not within {PRECISION:.0%} after {len(f.probes)} cases"
