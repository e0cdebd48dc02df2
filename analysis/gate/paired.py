"""The paired gate: judges whether head is slower than base (verdicts.py) by repetitions of base,
head and base again.

The unit is the repetition: d = ln head - (ln base + ln control) / 2, signed so that + is worse.
Control is base's second run; of base and control, one runs before head and one after. The gate
looks at 5, 10 and 15 repetitions, each time at alpha = 0.022 (Pocock's constant for three looks at
5%: S. J. Pocock, "Group sequential methods", Biometrika 64, 1977), with Holm's adjustment over all
metrics of all systems. Control must not differ from base, by the same test at 0.002.

Some findings need no statistics. Too many failed requests, a broken contract, a wrong response, a
lost row or a server that does not start is a fault, and makes the gate invalid. A run that was only
disturbed (the load generator was late, the load was not steady, others took the server's time) sets
its repetition aside. That repetition is replaced; too many of them also make the gate invalid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy

from analysis import formatting, slo, stats
from analysis.dataset import Campaign, InputError, Json
from analysis.formatting import format_number
from analysis.gate import verdicts
from analysis.gate.verdicts import Gate, GateRules, MetricVerdict, SystemVerdict
from analysis.metrics import METRICS
from analysis.stats import PairedResult
from analysis.summary import Summary, summarise
from loadtests.schema import system_label

LOOKS = (5, 10, 15)
ALPHA = 0.022
# Of control against base: a gate must not become invalid by chance.
CONTROL_ALPHA = 0.002
MOST_SET_ASIDE = 5  # repetitions of one system
# names of checks whose failure chance cannot explain
FAULTS = ("errors", "contract", "answers", "rows", "server's counts", "token counts")
# names of the machine's checks: their warnings are only listed, the statistics decide
NAMED = ("other processes", "steal", "swap", "GPU clocks")
SIDES = ("base", "head", "control")


def judge_campaign(campaign: Campaign, thorough: bool = True) -> Gate:
    """Judges a gate. `thorough` adds notes and sign-flip tests, which take seconds and do not
    change the verdict. Raises InputError.
    """
    gate = campaign.data.get("gate")
    if not gate:
        raise InputError(
            f"{campaign.folder} is not a gate: make one with `nox -s gate`, or judge two campaigns"
            " with --campaigns BASE HEAD"
        )
    wanted = verdicts.parse_rules(gate["metrics"], gate["tolerance"], gate["slo"])
    summary = summarise(campaign, slo.request_bounds(wanted.bounds) or None, frames=False)
    collected = [_collect(summary, system) for system in gate["systems"]]
    decide_verdicts(collected, wanted)
    for each in collected:
        if len(each.system.set_aside) > MOST_SET_ASIDE:
            _too_many_set_aside(each, summary)
        elif not each.system.look and not each.system.faults:
            aside = len(each.system.set_aside)
            why = (
                f"only {len(each.values)} of the {LOOKS[0]} repetitions that a verdict needs: raise"
                " --max-minutes" + (f" ({aside} set aside, see below)" if aside else "")
            )
            each.system.rows = [
                verdicts.undecided_metric(metric, share, why, means=each.means(metric))
                for metric, share in wanted.tolerances.items()
            ]
        if thorough:
            seen = each.first(each.system.look)
            each.system.rows = [
                (
                    row
                    if math.isnan(row.noise)
                    else row._replace(
                        p_sign_flip=stats.sign_flip_test(seen.differences(row.metric))
                    )
                )
                for row in each.system.rows
            ]
        if len(each.values) and not each.system.faults:
            each.system.rows += _shares(each.values, wanted)
    notes = _notes(summary, collected) if thorough else []
    return Gate(
        {name: gate["sides"][name] for name in ("base", "head")},
        [each.system for each in collected],
        notes,
    )


def needed_rounds(campaign: Campaign) -> list[bool]:
    """For each system, whether it needs another repetition; none does once the gate is invalid."""
    gate = judge_campaign(campaign, thorough=False)
    return [
        gate.verdict != "INVALID"
        and each.verdict == "INCONCLUSIVE"
        and each.repetitions < LOOKS[-1]
        for each in gate.systems
    ]


@dataclass
class Repetitions:
    """One system's repetitions that count: `values` has a row for each, with columns (side,
    metric). `runs`: all of its cases, with their side.
    """

    system: SystemVerdict
    values: pd.DataFrame
    runs: pd.DataFrame

    def differences(self, metric: str, control: bool = False) -> np.ndarray:
        """Differences of logarithms, head or control minus base; + is worse. They are nan or inf
        where a side has no value.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            base, head, again = (
                np.log(self.values[side, metric].to_numpy(dtype="float64")) for side in SIDES
            )
            return verdicts.sign_of(metric) * (
                again - base if control else head - (base + again) / 2
            )

    def means(self, metric: str) -> tuple[float, float]:
        """Of base and control together, and of head; nan without a repetition."""
        base = self.values[[("base", metric), ("control", metric)]].to_numpy(dtype="float64")
        head = self.values["head", metric].to_numpy(dtype="float64")
        return (float(base.mean()), float(head.mean())) if len(head) else (math.nan, math.nan)

    def first(self, look: int) -> "Repetitions":
        return Repetitions(self.system, self.values.iloc[:look], self.runs)


def decide_verdicts(collected: Sequence[Repetitions], wanted: GateRules) -> None:
    """Takes look after look, until every metric of a system has a verdict or one has regressed.
    Fills in the system's `rows`, `look` and `faults`.
    """
    for each in collected:
        each.system.repetitions = len(each.values)
    for look in LOOKS:
        ready = [
            each.first(look)
            for each in collected
            if len(each.values) >= look
            and not each.system.faults
            and (not each.system.look or each.system.verdict == "INCONCLUSIVE")
        ]
        _look(ready, look, wanted, of=len(collected) * len(wanted.tolerances))


def _look(ready: Sequence[Repetitions], look: int, wanted: GateRules, of: int) -> None:
    """Takes one look. `of`: the number of metrics of all systems, for which Holm adjusts, whether
    or not this look includes them.
    """
    judged: list[tuple[Repetitions, str, PairedResult, PairedResult]] = []
    for each in ready:
        each.system.look, each.system.rows = look, []
        for metric, tolerance in wanted.tolerances.items():
            differences = [each.differences(metric, control) for control in (False, True)]
            if why := _unjudged(metric, each, np.concatenate(differences)):
                each.system.rows.append(
                    verdicts.undecided_metric(metric, tolerance, why, "not judged")
                )
            else:
                d, control = (stats.paired_test(values, ALPHA) for values in differences)
                judged.append((each, metric, d, control))
        if len(each.system.rows) == len(wanted.tolerances):
            each.system.faults.append(f"no metric could be judged: {each.system.rows[0].why}")
    adjusted = stats.holm_adjust([d.p for _, _, d, _ in judged], of)
    for (each, metric, d, control), p in zip(judged, adjusted, strict=True):
        means = each.means(metric)
        tolerance = verdicts.widen_tolerance(metric, wanted.tolerances[metric], means[0])
        if control.p * of < CONTROL_ALPHA and abs(control.mean) > verdicts.bound_of(
            metric, tolerance
        ):
            each.system.faults.append(
                f"equal code differed by {math.expm1(abs(control.mean)):.0%} in"
                f" {METRICS[metric].label} (control against base): find the disturbance on this"
                " machine, or use another machine"
            )
        noise = math.expm1((control.high - control.low) / 2)
        each.system.rows.append(verdicts.judge_metric(metric, tolerance, means, d, p, ALPHA, noise))
    for each in ready:
        each.system.rows.sort(key=lambda row: list(wanted.tolerances).index(row.metric))


def _unjudged(metric: str, each: Repetitions, differences: np.ndarray) -> str:
    """The reason why a metric with these differences cannot have a verdict; empty if it can."""
    if sample := METRICS[metric].sample:
        least = min(float(each.values[side, sample].min()) for side in SIDES)
        if why := verdicts.explain_too_few(metric, least):
            return why
    if np.isnan(each.values.xs(metric, axis="columns", level=1)).all(axis=None):
        return "no run has this value"
    if not np.isfinite(differences).all():
        return "a run has no value, or requests failed in it"
    return ""


def _collect(summary: Summary, asked: Json) -> Repetitions:
    """The complete and valid repetitions of a system. Others were interrupted, have a fault, or are
    set aside with the reason.
    """
    identities = summary.campaign.identities
    same = [
        index
        for index in summary.table.index
        if all(identities[index][key] == value for key, value in asked.items())
    ]
    runs = summary.table.loc[same].assign(side=[identities[index]["side"] for index in same])
    users, rate = (math.nan if asked[key] is None else asked[key] for key in ("users", "rate"))
    name = (
        f"{system_label(asked['server'], asked['options'])} ({asked['engine']}),"
        f" {formatting.workload_title(asked['scenario'], users, rate)}"
    )
    system = SystemVerdict(name, faults=list(dict.fromkeys(_faults(summary, runs))))
    counted = []
    for _, cases in runs.groupby("repetition"):
        bad = cases[~cases["valid"] & cases["state"].eq("ok")]
        if len(bad):
            system.set_aside.append(f"{bad['side'].iloc[0]}: {bad['why'].iloc[0]}")
        elif len(cases) == len(SIDES) and cases["state"].eq("ok").all():
            counted.append(
                {
                    (case["side"], metric): case[metric]
                    for _, case in cases.iterrows()
                    for metric in METRICS
                }
            )
    values = pd.DataFrame(
        counted, columns=pd.MultiIndex.from_product([SIDES, METRICS]), dtype="float64"
    )
    return Repetitions(system, values, runs)


def _faults(summary: Summary, runs: pd.DataFrame) -> list[str]:
    broken = runs[
        runs["state"].isin(["failed", "skipped"])
        & ~runs["reason"].str.contains("interrupted by Ctrl-C", regex=False)
    ]
    checks = summary.checks[
        summary.checks["name"].isin(FAULTS)
        & summary.checks["ok"].eq(False)
        & summary.checks["severity"].eq("invalid")
    ]
    named = [
        (index, f"{name}: {detail}")
        for index, name, detail in zip(
            checks["index"], checks["name"], checks["detail"], strict=True
        )
    ]
    faults = [*zip(broken.index, broken["why"], strict=True), *named]
    side = dict(zip(runs.index, map(str, runs["side"]), strict=True))
    return [f"{side[index]}: {why}" for index, why in faults if index in side]


def _shares(values: pd.DataFrame, wanted: GateRules) -> list[MetricVerdict]:
    """The verdicts on shares of all requests, which are counted over all runs together."""
    found = []
    for metric in ("error_share", *(["slo_attainment"] if wanted.bounds else [])):
        of = {side: values[side, "requests_scheduled"] for side in SIDES}
        met = {side: round(float((values[side, metric] * of[side]).sum())) for side in SIDES}
        requests = {side: round(float(of[side].sum())) for side in SIDES}
        found.append(
            verdicts.judge_shares(
                metric,
                (met["base"] + met["control"], met["head"]),
                (requests["base"] + requests["control"], requests["head"]),
            )
        )
    return found


def _too_many_set_aside(each: Repetitions, summary: Summary) -> None:
    """The gate is invalid, whatever the reasons. One exception: if head is certainly unsteady more
    often than base, it no longer sustains this load and has regressed.
    """
    unsteady = set(
        summary.checks.loc[
            summary.checks["name"].eq("steadiness") & summary.checks["ok"].eq(False), "index"
        ]
    )
    bad = {
        kind: [
            index in unsteady
            for index in each.runs.index[each.runs["side"].eq("head") == (kind == "head")]
        ]
        for kind in ("base", "head")
    }
    table = [[sum(bad[kind]), len(bad[kind]) - sum(bad[kind])] for kind in ("head", "base")]
    p = float(scipy.stats.fisher_exact(table, alternative="greater").pvalue)
    if p < ALPHA:
        shares = sum(bad["base"]) / len(bad["base"]), sum(bad["head"]) / len(bad["head"])
        each.system.rows = [
            MetricVerdict(
                "unsteady runs",
                *shares,
                shares[1] - shares[0],
                math.nan,
                math.nan,
                0.0,
                "REGRESSED",
                "head gets slower and slower under a load that base sustains",
                p,
            )
        ]
    else:
        each.system.faults.append(
            f"{len(each.system.set_aside)} repetitions had to be set aside, more than"
            f" {MOST_SET_ASIDE}: " + "; ".join(dict.fromkeys(each.system.set_aside))
        )


def _different_models(summary: Summary) -> list[str]:
    targets = summary.campaign.data.get("targets") or {}
    models = {side: targets[side]["model"] for side in ("base", "head") if side in targets}
    if len(set(models.values())) < 2:
        return []
    served = " and ".join(f"{side} serves {model}" for side, model in models.items())
    return [f"{served}: the verdict also compares the models"]


def _notes(summary: Summary, collected: Sequence[Repetitions]) -> list[str]:
    """Notes on different models, the machine and the warm-up. They do not change a verdict."""
    notes = _different_models(summary)
    for name in NAMED:
        bad = summary.checks[summary.checks["name"].eq(name) & summary.checks["ok"].eq(False)]
        if len(bad):
            # without a value, show the last
            worst = bad.sort_values("value", kind="stable").iloc[-1]
            which = "last" if math.isnan(worst["value"]) else "most"
            notes.append(
                f"{name}: in {len(bad)} of {len(summary.table)} runs, {which} in case"
                f" {worst['index']}: {worst['detail']}"
            )
    for each in collected:
        own = each.runs.loc[
            each.runs["side"].ne("head") & each.runs["valid"], "output_tokens_per_s"
        ].to_numpy()
        if len(own) >= 2 * LOOKS[0] and own.any():
            drift = stats.trend_test(np.arange(len(own)), own, len(own))
            if abs(drift.change) > 0.05 and drift.p < 0.01:
                notes.append(
                    f"{each.system.name}: the machine drifted: base's throughput changed by"
                    f" {drift.change:+.0%} from its first run to its last"
                )
        notes += _outside(summary, each)
    return notes


def _outside(summary: Summary, each: Repetitions) -> list[str]:
    """A note on head's warm-up, which lies outside the window and is not judged."""
    took = pd.Series(
        {index: _warm_up(summary, int(str(index))) for index in each.runs.index}, dtype="float64"
    ).dropna()
    is_head = each.runs["side"].eq("head")
    head, base = (took[is_head[took.index] == side] for side in (True, False))
    if min(len(head), len(base)) < LOOKS[0]:
        return []
    ratio, low, _ = stats.mean_ratio(head, base)
    if not (low > 1 and ratio > 1.25):
        return []
    return [
        f"{each.system.name}: head's median E2E in the warm-up is {format_number(head.mean())}"
        f" times that in the window (base: {format_number(base.mean())} times); this is outside"
        " the window and not judged"
    ]


def _warm_up(summary: Summary, index: int) -> float:
    """The median E2E of the requests before the window, as a multiple of the window's; nan without
    either.
    """
    r = summary.campaign.requests(index, ("scheduled_s", "first_s", "done_s", "error"))
    opened_s = float(summary.table["window_start_s"][index])
    early = r[r["error"].isna() & r["first_s"].notna() & (r["scheduled_s"] < opened_s)]
    took_s = float((early["done_s"] - early["scheduled_s"]).median())
    return took_s / float(summary.table["e2e_p50_s"][index])
