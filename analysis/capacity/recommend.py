"""Which server to run at a demand, how many of them, and what would change that: `python -m
analysis recommend --rate 50 --slo ...`.

It follows from the open-loop cases of one campaign, best from those of `--find-capacity`: the
highest load at which each server kept the SLO, on a machine like the measured one. So many replicas
are needed that none gets more than its capacity less the head-room; a share of a Poisson stream is
a Poisson stream, so that what one replica was measured with is what each of several gets. Nothing
is recommended from a case without a number.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from analysis import slo
from analysis.capacity import search
from analysis.capacity.search import Capacity, MeasuredCase
from analysis.dataset import Campaign, InputError
from analysis.formatting import format_number, shorten
from analysis.hardware import Price
from loadtests.schema import system_label

HEADROOM = 0.2  # of each replica's capacity
SLO_FACTORS = ((0.5, "half as long"), (2.0, "twice as long"))
# times the demand, up to which another answer is looked for, and in which steps
MOST_DEMAND, DEMAND_STEP = 4.0, 1.01


class CandidateServer(NamedTuple):
    """A server on an engine, and its cases under the traffic in question."""

    server: str
    engine: str
    cases: list[MeasuredCase]

    @property
    def name(self) -> str:
        return f"{self.server} ({self.engine})"

    def capacity(self, bounds: Sequence[slo.Bound]) -> Capacity:
        return search.bracket_capacity([search.judge_probe(case, bounds) for case in self.cases])


class Choice(NamedTuple):
    """A server at the demand. `replicas`: by the highest load that held; `fewest`: if it carries
    all that the lowest load that did not hold leaves open. `usd_per_hour` of all replicas, nan
    without a price. `rank`: the same for those that tie.
    """

    name: str
    capacity: Capacity
    replicas: int
    fewest: int
    usd_per_hour: float
    rank: int


class Recommendation(NamedTuple):
    """`choices`: the best first. `without`: servers that cannot be recommended, and why; `invalid`:
    those of them that have no valid case. `changes`: what would change the answer.
    """

    traffic: str
    choices: list[Choice]
    without: list[tuple[str, str]]
    invalid: list[tuple[str, str]]
    changes: list[str]


def count_replicas(rate: float, sustained: float, headroom: float) -> int:
    """How many replicas sustain `rate` if each sustains `sustained` and the share `headroom` of
    that is kept free.
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
    """`rate` in requests/s. Without `bounds` a search's own; without `traffic` the only open-loop
    scenario. Raises InputError.
    """
    traffic = _traffic(campaign, traffic)
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
        *_by_capacity(choices),
        *_by_demand(systems, rate, bounds, headroom),
        *_by_slo(systems, rate, bounds, headroom),
    ]
    return Recommendation(
        traffic,
        choices,
        _without(campaign, systems, bounds),
        _invalid(campaign, systems),
        changes if choices else [],
    )


def resolve_bounds(campaign: Campaign, bounds: Sequence[slo.Bound] | None) -> Sequence[slo.Bound]:
    if bounds is not None:
        return bounds
    if not campaign.data.get("search"):
        raise InputError(
            "this campaign was no search for capacity and so has no SLO of its own: give one with"
            " --slo"
        )
    return slo.parse_slo(campaign.data["search"]["slo"])


def _traffic(campaign: Campaign, wanted: str | None) -> str:
    there = list(map(str, campaign.cases.loc[campaign.cases["rate"].notna(), "scenario"].unique()))
    if not there:
        raise InputError(
            "no case of this campaign has an open loop: run `nox -s bench -- --find-capacity"
            " --scenarios steady`"
        )
    if wanted not in there if wanted else len(there) > 1:
        raise InputError(
            f"choose one of the open-loop scenarios with --scenario: {', '.join(there)}"
        )
    return wanted or there[0]


def choose_server(
    systems: Sequence[CandidateServer],
    rate: float,
    bounds: Sequence[slo.Bound],
    headroom: float,
    price: Price | None = None,
) -> list[Choice]:
    """The fewest replicas first. All replicas are machines of one price, so that this is the order
    of cost, too. Whoever can do with as few as the best needs, by what its bracket leaves open,
    ties with it.
    """
    found = []
    for system in systems:
        known = system.capacity(bounds)
        if not math.isnan(known.holds):
            needed = count_replicas(rate, known.holds, headroom)
            fewest = (
                needed if math.isnan(known.fails) else count_replicas(rate, known.fails, headroom)
            )
            found.append(
                Choice(
                    system.name,
                    known,
                    needed,
                    fewest,
                    needed * price.usd_per_hour if price else math.nan,
                    0,
                )
            )
    found.sort(key=lambda choice: (choice.replicas, -choice.capacity.holds))
    return [
        choice._replace(rank=1 + sum(other.replicas < choice.fewest for other in found))
        for choice in found
    ]


def _by_capacity(choices: Sequence[Choice]) -> list[str]:
    """What more precision could change."""
    return [
        f"if {choice.name} holds nearly {format_number(choice.capacity.fails)} requests/s, at which"
        f" it did not, and not only {format_number(choice.capacity.holds)}, then {choice.fewest} of"
        f" it do instead of {choice.replicas}"
        for choice in choices
        if choice.fewest < choice.replicas
    ]


def _by_demand(
    systems: Sequence[CandidateServer], rate: float, bounds: Sequence[slo.Bound], headroom: float
) -> list[str]:
    """The nearest demands below and above at which another server is best, or the best needs
    another number of replicas.
    """
    changes = []
    for direction, step in (("falls", 1 / DEMAND_STEP), ("grows", DEMAND_STEP)):
        now, demand = _best(systems, rate, bounds, headroom), rate
        while now and rate / MOST_DEMAND <= demand * step <= rate * MOST_DEMAND:
            demand *= step
            then = _best(systems, demand, bounds, headroom)
            if then != now:
                changes.append(
                    f"if the demand {direction} to {format_number(demand)} requests/s:"
                    f" {_describe_best(then)}"
                )
                break
        else:
            furthest = rate * MOST_DEMAND if step > 1 else rate / MOST_DEMAND
            changes.append(
                f"if the demand {direction}, even to {format_number(furthest)} requests/s: nothing"
            )
    return changes


def _by_slo(
    systems: Sequence[CandidateServer], rate: float, bounds: Sequence[slo.Bound], headroom: float
) -> list[str]:
    """The same cases under other bounds. Their loads were chosen for these, so what is found there
    is a range.
    """
    now, changes = _best(systems, rate, bounds, headroom), []
    for factor, words in SLO_FACTORS:
        then = _best(
            systems,
            rate,
            [bound._replace(seconds=bound.seconds * factor) for bound in bounds],
            headroom,
        )
        changes.append(
            f"with bounds {words}: {'the same' if then == now else _describe_best(then)}, as far as"
            " the measured loads show"
        )
    return changes


def _best(
    systems: Sequence[CandidateServer], rate: float, bounds: Sequence[slo.Bound], headroom: float
) -> tuple[tuple[str, ...], int] | None:
    """(those in rank 1, replicas of the first)."""
    choices = choose_server(systems, rate, bounds, headroom)
    return (
        (tuple(choice.name for choice in choices if choice.rank == 1), choices[0].replicas)
        if choices
        else None
    )


def _describe_best(best: tuple[tuple[str, ...], int] | None) -> str:
    return f"{best[1]} of {' or '.join(best[0])}" if best else "no server was seen to keep them"


def _without(
    campaign: Campaign, systems: Sequence[CandidateServer], bounds: Sequence[slo.Bound]
) -> list[tuple[str, str]]:
    found = []
    for system in systems:
        probes = [search.judge_probe(case, bounds) for case in system.cases]
        if not any(probe.holds for probe in probes):
            failed = [format_number(probe.load) for probe in probes if probe.holds is False]
            kept = [f"it kept the SLO at none of {', '.join(failed)} requests/s"] if failed else []
            found.append(
                (
                    system.name,
                    "; ".join(
                        dict.fromkeys(
                            [*kept, *(p.why for p in probes if p.holds is None and p.why)]
                        )
                    ),
                )
            )
    return [*found, *_never_measured(campaign, systems)]


def _invalid(campaign: Campaign, systems: Sequence[CandidateServer]) -> list[tuple[str, str]]:
    """Those without a valid case, but for those that were skipped."""
    found = [
        (system.name, shorten(system.cases[0].why))
        for system in systems
        if not any(case.valid for case in system.cases)
    ]
    found += [(name, shorten(why)) for name, why in _never_measured(campaign, systems)]
    return [(name, why) for name, why in found if not why.startswith("skipped: ")]


def _never_measured(
    campaign: Campaign, systems: Sequence[CandidateServer]
) -> list[tuple[str, str]]:
    """Systems of a search that has no case of them under the traffic in question, and why: their
    search ended where it began.
    """
    sought = campaign.data.get("search") or {}
    there, found = {system.name for system in systems}, []
    for each in sought.get("systems") or []:
        label = system_label(each["server"], each["options"])
        name = f"{label} ({each['engine']})"
        if name in there:
            continue
        there.add(name)
        begun = (each["scenario"], sought["saturation"].get(each["scenario"]))
        cases = [
            case
            for scenario in filter(None, begun)
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
    """The recommendation in words, for a terminal or a mail."""
    within = " and ".join(map(str, bounds))
    asked = (
        f"{format_number(rate)} requests/s of {found.traffic} within {within}, {headroom:.0%} of"
        " each replica kept free"
    )
    if not found.choices:
        lines = [
            f"For {asked}: nothing can be recommended. No server met this SLO at any"
            " load that was measured."
        ]
    else:
        best = [choice for choice in found.choices if choice.rank == 1]
        lines = [
            f"For {asked}: run {best[0].replicas} of {best[0].name}"
            + (f", for {best[0].usd_per_hour:,.2f} USD an hour" if price else "")
            + "."
            + (
                f" It is a tie with {', '.join(choice.name for choice in best[1:])}."
                if len(best) > 1
                else ""
            )
        ]
        lines += ["", *(_line(choice) for choice in found.choices)]
    if found.changes:
        lines += ["", "What would change this:", *(f"  - {change}" for change in found.changes)]
    if price and price.source:
        lines += [
            "",
            (
                f"Price: {price.usd_per_hour:g} USD an hour for {price.what}, {price.source},"
                f" {price.date}."
            ),
        ]
    lines += [
        "",
        "Not known:",
        "  - any machine, model or traffic but the measured ones; each replica is such a machine"
        + (", if it can be had at that price" if price else ""),
        *(f"  - {name}: {why}" for name, why in found.without),
    ]
    return "\n".join(lines)


def _line(choice: Choice) -> str:
    failed = (
        "" if math.isnan(choice.capacity.fails) else f", not {format_number(choice.capacity.fails)}"
    )
    cost = "" if math.isnan(choice.usd_per_hour) else f", {choice.usd_per_hour:,.2f} USD an hour"
    return (
        f"{choice.rank:3}. {choice.replicas} × {choice.name}: each holds"
        f" {format_number(choice.capacity.holds)} requests/s{failed}{cost}"
    )
