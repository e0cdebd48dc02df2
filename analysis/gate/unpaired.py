"""The unpaired gate: judges a campaign against an earlier one, or against a stored baseline.

A change of the machine between the two is part of the difference, so these verdicts inform: only a
paired gate (paired.py) should block. It takes Welch's 95% interval on logarithms, one look, and
Holm's adjustment over all metrics of all systems. The verdicts are those of verdicts.py.
"""

import math

import numpy as np
import pandas as pd

from analysis import stats
from analysis.dataset import InputError
from analysis.gate import compare, verdicts
from analysis.gate.verdicts import Gate, GateRules, MetricVerdict, SystemVerdict
from analysis.metrics import METRICS
from analysis.stats import PairedResult
from analysis.summary import Summary

ALPHA = 1 - stats.CONFIDENCE


def judge_summaries(base: Summary, head: Summary, wanted: GateRules, anyway: bool = False) -> Gate:
    """Judges head against base. `anyway`: even if machine, model or scenarios differ. Raises
    InputError.
    """
    differing = compare.list_differences(base, head)
    if not anyway:
        compare.refuse_unlike(differing)
    matched, only_base, only_head = compare.pair_cases(base, head)
    if not matched:
        raise InputError("the two have no case in common: measure the same servers and scenarios")
    systems = [
        SystemVerdict(name, min(len(a), len(b)), faults=_faults({"base": a, "head": b}))
        for name, a, b in matched
    ]
    found: list[tuple[SystemVerdict, str, PairedResult, tuple[float, float]]] = []
    for system, (_, a, b) in zip(systems, matched, strict=True):
        a, b = a[a["valid"]], b[b["valid"]]
        for metric, tolerance in wanted.tolerances.items() if not system.faults else ():
            if why := _unjudged(metric, a, b):
                system.rows.append(verdicts.undecided_metric(metric, tolerance, why, "not judged"))
            elif min(len(a), len(b)) < 2:
                system.rows.append(
                    verdicts.undecided_metric(
                        metric, tolerance, "one run has no interval: repeat it (--repeat 5)"
                    )
                )
            else:
                w = stats.welch_test(
                    *(verdicts.sign_of(metric) * np.log(side[metric].to_numpy()) for side in (b, a))
                )
                d = PairedResult(w.difference, w.low, w.high, w.p, w.detectable)
                found.append(
                    (system, metric, d, (float(a[metric].mean()), float(b[metric].mean())))
                )
    for (system, metric, d, means), p in zip(
        found, stats.holm_adjust([d.p for _, _, d, _ in found]), strict=True
    ):
        tolerance = verdicts.widen_tolerance(metric, wanted.tolerances[metric], means[0])
        system.rows.append(verdicts.judge_metric(metric, tolerance, means, d, p, ALPHA))
    for system, (_, a, b) in zip(systems, matched, strict=True):
        if not system.faults:
            system.rows += _shares(a, b)
    notes = [
        f"only in {side}: {name}"
        for side, names in (("base", only_base), ("head", only_head))
        for name in names
    ]
    notes += [
        f"{'UNLIKE: ' if d.unlike else ''}{d.key}: {d.a} in base, {d.b} in head" for d in differing
    ]
    notes.append(
        "measured one after the other, so a change of the machine is part of the difference: let a"
        " paired gate (--base) decide"
    )
    return Gate(
        {side: str(s.campaign.folder) for side, s in (("base", base), ("head", head))},
        systems,
        notes,
    )


def _faults(sides: dict[str, pd.DataFrame]) -> list[str]:
    return [
        f"{side}: no valid case: {'; '.join(dict.fromkeys(cases['why']))}"
        for side, cases in sides.items()
        if not cases["valid"].any()
    ]


def _unjudged(metric: str, a: pd.DataFrame, b: pd.DataFrame) -> str:
    both = pd.concat([a, b])
    if (sample := METRICS[metric].sample) and (
        why := verdicts.explain_too_few(metric, float(both[sample].min()))
    ):
        return why
    usable = np.isfinite(both[metric]) & (both[metric] > 0)
    return "" if usable.all() else "a run has no value, or requests failed in it"


def _shares(a: pd.DataFrame, b: pd.DataFrame) -> list[MetricVerdict]:
    of = [round(float(side["requests_scheduled"].sum())) for side in (a, b)]
    met = [
        round(float((side["error_share"] * side["requests_scheduled"]).sum())) for side in (a, b)
    ]
    return (
        [verdicts.judge_shares("error_share", (met[0], met[1]), (of[0], of[1]))]
        if all(of) and not any(map(math.isnan, met))
        else []
    )
