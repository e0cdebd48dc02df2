"""The output of `python -m analysis checks`: every check of every case, for other programs."""

import math
from pathlib import Path

from analysis import dataset
from analysis.dataset import Json
from analysis.summary import summarise


def list_checks(folder: Path | str | None = None, max_errors: float | None = None) -> list[Json]:
    """[{case, state, valid, why, checks}] in the order of the plan, the same as the report shows.

    `case` is the identity as in run.json, and `state` that of Campaign.cases. `why` is the reason
    of a case that is not `valid`. `checks` is [{name, ok, severity, detail, remedy, value}], empty
    for a case that did not end; `ok` is None where it was not measured, and `value` (Check) where
    there is none. Raises InputError.
    """
    campaign = dataset.read_campaign(folder, max_errors)
    summary = summarise(campaign)
    return [
        {
            "case": campaign.identities[case["index"]],
            "state": case["state"],
            "valid": case["valid"],
            "why": case["why"],
            "checks": [
                {
                    "name": c["name"],
                    "ok": None if c["ok"] is None else bool(c["ok"]),
                    "severity": c["severity"],
                    "detail": c["detail"],
                    "remedy": c["remedy"],
                    "value": c["value"] if math.isfinite(c["value"]) else None,
                }
                for c in summary.checks[summary.checks["index"] == case["index"]].to_dict("records")
            ],
        }
        for case in summary.table.to_dict("records")
    ]
