"""Searches a server's capacity, the highest load at which it meets an SLO, with cases at one load
after another.

`needed_case` returns the case that a search needs next, given those on disk. `python -m loadtests
--find-capacity` calls it (through `python -m analysis.session`) and runs that case. The search
brackets the capacity, then bisects on a logarithmic scale, since loads differ by factors: up from
the estimate while the server meets the SLO, or down while it misses it, by ever larger factors;
then the geometric mean of the highest load that met it and the lowest that missed it, until these
are within PRECISION. More load is assumed to be worse: where chance contradicts that, the lowest
load that missed the SLO counts.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from analysis import checks, metrics, slo
from analysis.case import read_case
from analysis.checks import verdict
from analysis.dataset import Campaign, InputError, Json
from loadtests.schema import system_label

PRECISION = 0.05  # between the highest load that met the SLO and the lowest that missed it
MOST_CASES = 8  # for one server, including the one at saturation
# of the first step away from the estimate; each further step is the square of the one before
GROWTH = 1.25
OF_SATURATION = 0.8  # the estimate: at the saturation rate itself, the queue grows without end
OVERLOADED = ("steadiness", "errors")  # names of checks that fail under overload


class LoadProbe(NamedTuple):
    """A load that was tried, in requests/s or users. `holds`: whether the server met the SLO there,
    None if the case cannot decide it. `why`: the reason for None, or for an invalid case.
    `disturbed`: the reason is that others took the server's time.
    """

    load: float
    holds: bool | None
    case: int = 0
    why: str = ""
    bound_results: tuple[slo.BoundResult, ...] = ()
    disturbed: bool = False

    @property
    def is_certain(self) -> bool:
        """Whether `holds` is certain: with 95% confidence the server met all bounds, or missed one;
        or it was overloaded, which made the case invalid.
        """
        judged = [each for each in self.bound_results if each.of]
        if self.holds:
            return all(each.is_certain for each in judged)
        return bool(self.why) or any(each.is_certain for each in judged if not each.holds)


class Capacity(NamedTuple):
    """`holds`: the highest load at which the server met the SLO, nan if it met it at none. `fails`:
    the lowest load at which it missed the SLO, nan if it missed it at none.
    """

    holds: float
    fails: float

    @property
    def is_precise(self) -> bool:
        return self.fails <= self.holds * (1 + PRECISION)


def bracket_capacity(probes: Sequence[LoadProbe], certain: bool = False) -> Capacity:
    """The capacity by all probes, or only by the `certain` ones."""
    probes = [p for p in probes if not certain or p.is_certain]
    fails = min((p.load for p in probes if p.holds is False), default=math.nan)
    held = [p.load for p in probes if p.holds and not p.load >= fails]
    return Capacity(max(held, default=math.nan), fails)


def next_load(
    estimate: float, probes: Sequence[LoadProbe], most: int = MOST_CASES, whole: bool = False
) -> float | None:
    """The load to try next. None when the capacity is precise enough, when there were `most`
    probes, or when a case could not decide: a load generator at its limit cannot decide at a higher
    load either. A load at which others disturbed the server is tried once more. `whole`: the load
    is a number of users.
    """
    undecided = [p for p in probes if p.holds is None]
    if len(probes) >= most or not all(p.disturbed for p in undecided):
        return None
    repeated = [p.load for p in undecided]
    if probes and probes[-1].holds is None:
        return probes[-1].load if repeated.count(probes[-1].load) == 1 else None
    probes = [p for p in probes if p.holds is not None]
    found = bracket_capacity(probes)
    step = GROWTH ** (2 ** (len(probes) - 1)) if probes else 1.0
    if not probes:
        load = estimate
    elif math.isnan(found.fails):
        load = math.ceil(found.holds * step) if whole else found.holds * step
    elif math.isnan(found.holds):
        load = math.floor(found.fails / step) if whole else found.fails / step
    elif found.is_precise:
        return None
    else:
        load = math.sqrt(found.holds * found.fails)
    load = max(1, round(load)) if whole else float(f"{load:.4g}")
    # tried before, since there is no load between n users and n + 1
    if any(p.load == load for p in probes):
        return None
    return load


class MeasuredCase(NamedTuple):
    """A case at a load. `requests`: those of its window, with the columns that `slo.judge_bounds`
    needs, or None if the case cannot decide whether the server meets an SLO; `why` is the reason. A
    case with requests that is not `valid` was overloaded: the server misses the SLO.
    """

    load: float
    case: int
    requests: pd.DataFrame | None
    valid: bool
    why: str
    disturbed: bool = False


def measured_cases(
    campaign: Campaign, server: str, engine: str, scenario: str
) -> list[MeasuredCase]:
    """The cases of one system in the order in which they ran. `server` includes its options:
    "fastapi_vllm loop=asyncio".
    """
    found = []
    for case in _cases(campaign, server, engine, scenario).to_dict("records"):
        load = case["users"] if math.isnan(case["rate"]) else case["rate"]
        if case["state"] != "ok":
            found.append(
                MeasuredCase(load, case["index"], None, False, f"{case['state']}: {case['reason']}")
            )
            continue
        bad, latencies = _judged_window(campaign, case["index"])
        # A load whose window drifts, or fails too often, is above the capacity: that decides,
        # although the case is invalid. Where every request failed, a lower load would not help.
        nothing = bool(latencies["failed"].all())
        unknown = nothing or any(check.name not in OVERLOADED for check in bad)
        reasons = [f"{c.name}: {c.detail}" for c in bad] or ["no request in the window"] * nothing
        requests = None if unknown else latencies
        disturbed = any(check.name in checks.DISTURBING for check in bad)
        found.append(
            MeasuredCase(load, case["index"], requests, not bad, "; ".join(reasons), disturbed)
        )
    return found


def _judged_window(campaign: Campaign, index: int) -> tuple[list[verdict.Check], pd.DataFrame]:
    """(failed checks, latencies of the window's requests) of a case that ended ok. Raises
    InputError.
    """
    names = ["ttft_s", "tpot_s", "tpot_missing", "e2e_s", "failed"]
    if published := campaign.published:
        if published.latencies.empty:
            raise InputError(
                f"{campaign.folder} is published without the latencies of its requests, which only"
                " a capacity search keeps: run the campaign again with --find-capacity"
            )
        own = published.checks[published.checks["index"] == index]
        rows = own[list(verdict.Check._fields)].itertuples(index=False, name=None)
        found = [verdict.Check(*row) for row in rows]
        window = published.latencies[published.latencies["index"] == index]
        return verdict.failed_checks(found), window[names]
    case = read_case(campaign, index)
    return verdict.failed_checks(checks.run_checks(case)), case.scheduled[names]


def judge_probe(case: MeasuredCase, bounds: Sequence[slo.Bound]) -> LoadProbe:
    if case.requests is None:
        return LoadProbe(case.load, None, case.case, case.why, disturbed=case.disturbed)
    bound_results = tuple(slo.judge_bounds(case.requests, bounds))
    judged = [each for each in bound_results if each.of]  # responses of one token have no TPOT
    few = [each for each in judged if each.of < each.needed]
    if not case.valid or any(
        not each.holds and each.is_known and (each not in few or each.is_certain) for each in judged
    ):
        return LoadProbe(case.load, False, case.case, case.why, bound_results)
    if unknown := next((each for each in judged if not each.is_known), None):
        why = (
            f"{unknown.unmeasured:,} of {unknown.of:,} responses have no TPOT, since they have no"
            " credible usage or came in one chunk: give an SLO without tpot"
        )
        return LoadProbe(case.load, None, case.case, why, bound_results)
    if few or not judged:  # a percentile of too small a sample decides nothing
        reasons = [
            f"n too small: {each.of} requests for {each.bound}, which needs {each.needed}"
            for each in few
        ]
        return LoadProbe(
            case.load,
            None,
            case.case,
            "; ".join(reasons) or "no request has these latencies",
            bound_results,
        )
    return LoadProbe(case.load, True, case.case, case.why, bound_results)


def list_probes(campaign: Campaign, server: str, engine: str, scenario: str) -> list[LoadProbe]:
    """The cases of one search, judged by its SLO, in the order in which they ran."""
    bounds = slo.parse_slo(campaign.data["search"]["slo"])
    return [
        judge_probe(case, bounds) for case in measured_cases(campaign, server, engine, scenario)
    ]


def needed_case(campaign: Campaign, server: str, engine: str, scenario: str) -> Json | None:
    """The next case of this search, {scenario, users, rate, duration_s}; None when it has ended."""
    search = campaign.data["search"]
    table = campaign.data["scenarios"][scenario]
    whole = table["arrivals"] == "closed"
    estimate = search["estimates"].get(scenario)
    most = MOST_CASES
    if estimate is None:
        saturation = search["saturation"][scenario]
        cases = _cases(campaign, server, engine, saturation)
        if cases.empty:
            at_saturation = campaign.data["scenarios"][saturation]
            return {
                "scenario": saturation,
                "users": at_saturation["users"],
                "rate": None,
                "duration_s": at_saturation["duration_s"],
            }
        if (cases["state"] != "ok").all():
            return None  # it was skipped or failed at this load: the report shows the reason
        last = read_case(campaign, int(cases["index"].iloc[-1]))
        if len(last.rows) and last.rows["failed"].all():
            return None  # and would fail at any other load
        saturated = metrics.requests.requests_per_s(last)
        estimate = OF_SATURATION * saturated if saturated > 0 else table["rate"]
        most -= 1
    load = next_load(estimate, list_probes(campaign, server, engine, scenario), most, whole)
    if load is None:
        return None
    # An open loop's window must hold enough requests. For a closed loop their number is not known
    # beforehand.
    least = (
        0.0 if whole else math.ceil(slo.count_requests_needed(slo.parse_slo(search["slo"])) / load)
    )
    return {
        "scenario": scenario,
        "users": int(load) if whole else None,
        "rate": None if whole else load,
        "duration_s": max(search["duration_s"] or table["duration_s"], float(least)),
    }


def needed_cases(campaign: Campaign) -> list[Json | None]:
    """`needed_case` for each of the campaign's search.systems."""
    return [
        needed_case(
            campaign,
            system_label(system["server"], system["options"]),
            system["engine"],
            system["scenario"],
        )
        for system in campaign.data["search"]["systems"]
    ]


class CapacityResult(NamedTuple):
    """The result of one search. `traffic` is the scenario; `unit` is that of the load; `probes` are
    sorted by load.
    """

    server: str
    engine: str
    traffic: str
    unit: str
    capacity: Capacity
    probes: list[LoadProbe]

    @property
    def name(self) -> str:
        return f"{self.server} ({self.engine})"

    @property
    def certain(self) -> Capacity:
        """The capacity with 95% confidence: by the loads that certainly meet or miss the SLO."""
        return bracket_capacity(self.probes, certain=True)

    @property
    def at_capacity(self) -> int | None:
        """The index of the case at the highest load that met the SLO."""
        return next(
            (p.case for p in self.probes if p.holds and p.load == self.capacity.holds), None
        )

    @property
    def is_precise(self) -> bool:
        """Whether the capacity is known to PRECISION, or to one user."""
        return self.capacity.is_precise or (
            self.unit == "users" and self.capacity.fails - self.capacity.holds == 1
        )


def find_capacities(campaign: Campaign) -> list[CapacityResult]:
    """The result of each search: by scenario, the highest capacity first."""
    all_of = []
    for system in campaign.data["search"]["systems"]:
        server = system_label(system["server"], system["options"])
        tried = sorted(
            list_probes(campaign, server, system["engine"], system["scenario"]),
            key=lambda p: p.load,
        )
        unit = (
            "users"
            if campaign.data["scenarios"][system["scenario"]]["arrivals"] == "closed"
            else "requests/s"
        )
        all_of.append(
            CapacityResult(
                server, system["engine"], system["scenario"], unit, bracket_capacity(tried), tried
            )
        )
    return sorted(
        all_of,
        key=lambda f: (f.traffic, math.inf if math.isnan(f.capacity.holds) else -f.capacity.holds),
    )


def _cases(campaign: Campaign, server: str, engine: str, scenario: str) -> pd.DataFrame:
    cases = campaign.cases
    return cases[
        (cases["server"] == server) & (cases["engine"] == engine) & (cases["scenario"] == scenario)
    ]
