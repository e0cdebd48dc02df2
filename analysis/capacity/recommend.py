"""Recommends a server and its number of replicas for a demand, and lists what would change that:
`python -m analysis recommend --rate 50 --slo ...`.

The capacity of a server is the highest load at which it met the SLO in the open-loop cases of one
campaign, best of a `--find-capacity` campaign. Each replica is a machine like the measured one and
gets at most its capacity less the headroom. A share of a Poisson stream is a Poisson stream, so
each of several replicas sees the traffic that one replica was measured with. Invalid cases
recommend nothing.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from analysis import slo
from analysis.capacity import search
from analysis.capacity.search import Capacity, MeasuredCase
from analysis.dataset import Campaign, InputError
from analysis.defaults import HEADROOM
from analysis.formatting import format_number, shorten
from analysis.hardware import Price
from loadtests.schema import system_label

SLO_FACTORS = ((0.5, "halved"), (2.0, "doubled"))
# Other demands are tried from rate / MOST_DEMAND to rate * MOST_DEMAND, DEMAND_STEP apart.
MOST_DEMAND, DEMAND_STEP = 4.0, 1.01


class CandidateServer(NamedTuple):
    """A server on an engine, with its cases of one scenario."""

    server: str
    engine: str
    cases: list[MeasuredCase]

    @property
    def name(self) -> str:
        return f"{self.server} ({self.engine})"

    def capacity(self, bounds: Sequence[slo.Bound]) -> Capacity:
        return search.bracket_capacity([search.judge_probe(case, bounds) for case in self.cases])


class Choice(NamedTuple):
    """A server and the replicas that the demand needs. `replicas` follows from the highest load
    that met the SLO. `fewest` is the number if the true capacity is just below the lowest load that
    missed it. `usd_per_hour` is the cost of all replicas, nan without a price. Servers that tie
    have the same `rank`.
    """

    name: str
    capacity: Capacity
    replicas: int
    fewest: int
    usd_per_hour: float
    rank: int


class Recommendation(NamedTuple):
    """`choices`, the best first. `without` names each server that cannot be recommended, and why;
    `invalid` names those of them that have no valid case. `changes` lists what would change the
    recommended server or its number of replicas; `tried` says what was varied to find that.
    """

    traffic: str
    choices: list[Choice]
    without: list[tuple[str, str]]
    invalid: list[tuple[str, str]]
    changes: list[str]
    tried: str


def count_replicas(rate: float, sustained: float, headroom: float) -> int:
    """Replicas that sustain `rate` if each sustains `sustained` and keeps the share `headroom` of
    it free.
    """
    return max(1, math.ceil(rate / (sustained * (1 - headroom)) - 1e-9))


def recommend(
    campaign: Campaign,
    rate: float,
    bounds: Sequence[slo.Bound] | None = None,
    *,
    traffic: str | None = None,
    headroom: float = HEADROOM,
    price: Price | None = None,
) -> Recommendation:
    """Recommend for a demand of `rate` requests/s. The default for `bounds` is the SLO of the
    campaign's capacity search, and for `traffic` its only open-loop scenario. Raises InputError.
    """
    traffic = _choose_traffic(campaign, traffic)
    bounds = resolve_bounds(campaign, bounds)
    cases = campaign.cases[campaign.cases["scenario"].eq(traffic) & campaign.cases["rate"].notna()]
    systems = [
        CandidateServer(
            str(server),
            str(engine),
            search.measured_cases(campaign, str(server), str(engine), traffic),
        )
        for server, engine in dict.fromkeys(zip(cases["server"], cases["engine"], strict=True))
    ]
    choices = choose_server(systems, rate, bounds, headroom, price)
    changes = [
        *_changes_by_capacity(choices),
        *_changes_by_demand(systems, rate, bounds, headroom),
        *_changes_by_slo(systems, rate, bounds, headroom),
    ]
    return Recommendation(
        traffic,
        choices,
        _list_without(campaign, systems, bounds),
        _list_invalid(campaign, systems),
        changes if choices else [],
        f"a demand from {format_number(rate / MOST_DEMAND)} to"
        f" {format_number(rate * MOST_DEMAND)} requests/s, SLO bounds"
        f" {' and '.join(words for _, words in SLO_FACTORS)}, and each capacity up to the lowest"
        " load that missed the SLO",
    )


def resolve_bounds(campaign: Campaign, bounds: Sequence[slo.Bound] | None) -> Sequence[slo.Bound]:
    if bounds is not None:
        return bounds
    if not campaign.data.get("search"):
        raise InputError(
            "this campaign did not search for capacity, so it has no SLO of its own: give one with"
            " --slo"
        )
    return slo.parse_slo(campaign.data["search"]["slo"])


def _choose_traffic(campaign: Campaign, wanted: str | None) -> str:
    known = list(map(str, campaign.cases.loc[campaign.cases["rate"].notna(), "scenario"].unique()))
    if not known:
        raise InputError(
            "this campaign has no open-loop case: run `nox -s bench -- --find-capacity"
            " --scenarios steady`"
        )
    if wanted not in known if wanted else len(known) > 1:
        raise InputError(
            f"choose one of the open-loop scenarios with --scenario: {', '.join(known)}"
        )
    return wanted or known[0]


def choose_server(
    systems: Sequence[CandidateServer],
    rate: float,
    bounds: Sequence[slo.Bound],
    headroom: float,
    price: Price | None = None,
) -> list[Choice]:
    """Rank servers by their number of replicas, the fewest first. Every replica is a machine of the
    same price, so this is also the order of cost. A server ties with the best if `fewest`, which
    its bracket leaves open, is no more than the best needs.
    """
    capacities = [(system.name, system.capacity(bounds)) for system in systems]
    return _rank_choices(capacities, rate, headroom, price)


def _rank_choices(
    capacities: Sequence[tuple[str, Capacity]],
    rate: float,
    headroom: float,
    price: Price | None = None,
) -> list[Choice]:
    found = []
    for name, known in capacities:
        if not math.isnan(known.holds):
            needed = count_replicas(rate, known.holds, headroom)
            fewest = (
                needed if math.isnan(known.fails) else count_replicas(rate, known.fails, headroom)
            )
            cost = needed * price.usd_per_hour if price else math.nan
            found.append(Choice(name, known, needed, fewest, cost, 0))
    found.sort(key=lambda choice: (choice.replicas, -choice.capacity.holds))
    return [
        choice._replace(rank=1 + sum(other.replicas < choice.fewest for other in found))
        for choice in found
    ]


def _changes_by_capacity(choices: Sequence[Choice]) -> list[str]:
    """What a more precise capacity could change. Only a server in the first place can change the
    recommendation: any other needs more replicas than the best, whatever its bracket leaves open.
    """
    return [
        f"if the true capacity of {choice.name} is close to {format_number(choice.capacity.fails)}"
        f" requests/s rather than {format_number(choice.capacity.holds)}, {choice.fewest} of it"
        f" suffice{'s' * (choice.fewest == 1)} instead of {choice.replicas}"
        for choice in choices
        if choice.rank == 1 and choice.fewest < choice.replicas
    ]


def _changes_by_demand(
    systems: Sequence[CandidateServer], rate: float, bounds: Sequence[slo.Bound], headroom: float
) -> list[str]:
    """The nearest lower and higher demand that change the recommendation."""
    capacities = [(system.name, system.capacity(bounds)) for system in systems]
    now, changes = _rank_choices(capacities, rate, headroom), []
    for direction, step in (("falls", 1 / DEMAND_STEP), ("grows", DEMAND_STEP)):
        demand = rate * step
        while now and rate / MOST_DEMAND <= demand <= rate * MOST_DEMAND:
            then = _rank_choices(capacities, demand, headroom)
            if _is_change(now, then):
                changes.append(
                    f"if the demand {direction} to {format_number(demand)} requests/s:"
                    f" {_describe_best(then)}"
                )
                break
            demand *= step
    return changes


def _changes_by_slo(
    systems: Sequence[CandidateServer], rate: float, bounds: Sequence[slo.Bound], headroom: float
) -> list[str]:
    """The same cases judged by other bounds. The search chose their loads for its own bounds, so
    the capacity that they show under others is a wide bracket.
    """
    now, changes = choose_server(systems, rate, bounds, headroom), []
    for factor, words in SLO_FACTORS:
        other = [bound._replace(seconds=bound.seconds * factor) for bound in bounds]
        then = choose_server(systems, rate, other, headroom)
        if _is_change(now, then):
            changes.append(
                f"if the SLO bounds are {words}: {_describe_best(then)}, as far as the measured"
                " loads show"
            )
    return changes


def _is_change(now: Sequence[Choice], then: Sequence[Choice]) -> bool:
    """Whether the server that is recommended now would no longer be among the best, or would need
    another number of replicas. Another server that joins or leaves a tie changes neither.
    """
    same = next((each for each in then if now and each.name == now[0].name), None)
    return bool(now) and (same is None or same.rank > 1 or same.replicas != now[0].replicas)


def _describe_best(choices: Sequence[Choice]) -> str:
    """The recommendation in a few words: "2 of alpha (vllm), beta (vllm) or gamma (vllm)"."""
    best = [choice.name for choice in choices if choice.rank == 1]
    names = " or ".join(filter(None, [", ".join(best[:-1]), *best[-1:]]))
    return f"{choices[0].replicas} of {names}" if best else "no server is known to meet them"


def _list_without(
    campaign: Campaign, systems: Sequence[CandidateServer], bounds: Sequence[slo.Bound]
) -> list[tuple[str, str]]:
    """Servers that met the SLO at no load, and why."""
    found = []
    for system in systems:
        probes = [search.judge_probe(case, bounds) for case in system.cases]
        if not any(probe.holds for probe in probes):
            missed = [format_number(probe.load) for probe in probes if probe.holds is False]
            reasons = [f"it missed the SLO at {', '.join(missed)} requests/s"] if missed else []
            reasons += [p.why for p in probes if p.holds is None and p.why]
            found.append((system.name, "; ".join(dict.fromkeys(reasons))))
    return [*found, *_list_never_measured(campaign, systems)]


def _list_invalid(campaign: Campaign, systems: Sequence[CandidateServer]) -> list[tuple[str, str]]:
    """Servers without a valid case, except those that were skipped."""
    found = [
        (system.name, shorten(system.cases[0].why))
        for system in systems
        if not any(case.valid for case in system.cases)
    ]
    found += [(name, shorten(why)) for name, why in _list_never_measured(campaign, systems)]
    return [(name, why) for name, why in found if not why.startswith("skipped: ")]


def _list_never_measured(
    campaign: Campaign, systems: Sequence[CandidateServer]
) -> list[tuple[str, str]]:
    """Servers of a capacity search that have no case of this traffic, because their search ended
    with its first case, and why.
    """
    sought = campaign.data.get("search") or {}
    measured, found = {system.name for system in systems}, []
    for each in sought.get("systems") or []:
        label = system_label(each["server"], each["options"])
        name = f"{label} ({each['engine']})"
        if name in measured:
            continue
        measured.add(name)
        first = (each["scenario"], sought["saturation"].get(each["scenario"]))
        cases = [
            case
            for scenario in filter(None, first)
            for case in search.measured_cases(campaign, label, each["engine"], scenario)
        ]
        found.append(
            (name, "; ".join(dict.fromkeys(filter(None, (c.why for c in cases)))) or "not measured")
        )
    return found


def format_recommendation(
    found: Recommendation,
    rate: float,
    bounds: Sequence[slo.Bound],
    headroom: float,
    price: Price | None,
) -> str:
    """The recommendation as text, for a terminal or a mail."""
    slo_text = " and ".join(map(str, bounds))
    demand = (
        f"{format_number(rate)} requests/s of {found.traffic} within {slo_text}, with"
        f" {headroom:.0%} headroom"
    )
    if not found.choices:
        lines = [
            f"For {demand}: nothing can be recommended. No server met this SLO at any measured"
            " load."
        ]
    else:
        best, *tied = [choice for choice in found.choices if choice.rank == 1]
        lines = [
            f"For {demand}: run {best.replicas} of {best.name}"
            + (f", for {best.usd_per_hour:,.2f} USD per hour" if price else "")
            + "."
            + (f" It ties with {', '.join(choice.name for choice in tied)}." if tied else ""),
            "",
            *(_format_choice(choice) for choice in found.choices),
            "",
            *(
                ["What would change this:", *(f"  - {change}" for change in found.changes)]
                if found.changes
                else ["Nothing that was tried changes this."]
            ),
            f"Tried: {found.tried}.",
        ]
    if found.without:
        lines += ["", "Not recommended:", *(f"  - {name}: {why}" for name, why in found.without)]
    if price and price.source:
        lines += [
            "",
            (
                f"Price: {price.usd_per_hour:g} USD per hour for {price.what}, {price.source},"
                f" {price.date}."
            ),
        ]
    lines += [
        "",
        "This holds for the measured machine, model and traffic only. Each replica is one such"
        + (" machine, at that price." if price else " machine."),
    ]
    return "\n".join(lines)


def _format_choice(choice: Choice) -> str:
    missed = (
        ""
        if math.isnan(choice.capacity.fails)
        else f" and misses the SLO at {format_number(choice.capacity.fails)}"
    )
    cost = "" if math.isnan(choice.usd_per_hour) else f"; {choice.usd_per_hour:,.2f} USD per hour"
    return (
        f"{choice.rank:3}. {choice.replicas} × {choice.name}: each sustains"
        f" {format_number(choice.capacity.holds)} requests/s{missed}{cost}"
    )
