"""Checks of what the server did: contract, responses, rows, its own counts."""

import math

from analysis.case import CaseData, credible_usage
from analysis.checks.verdict import Check, is_planted


def check_contract(case: CaseData) -> Check:
    """Every check of the contract held before the load and after it. An endpoint that was profiled
    is checked only as far as wrong numbers would follow.
    """
    name, remedy = (
        "contract",
        "run `python -m servers` with this server and fix what its verification names",
    )
    if case.run.get("profile") and not case.run.get("verify_before"):
        return Check(name, None, "invalid", "profiled, and not held to our contract", remedy)
    for key, when in (("verify_before", "before"), ("verify_after", "after")):
        checks = case.run.get(key)
        if not checks:
            return Check(name, False, "invalid", f"it was not verified {when} the load", remedy)
        bad = [c for c in checks if c["ok"] is False]
        if bad:
            return Check(
                name,
                False,
                "invalid",
                f"{when} the load: {bad[0]['name']}: {bad[0]['detail']}",
                remedy,
            )
    return Check(
        name, True, "invalid", f"{len(case.run['verify_before'])} checks before and after", remedy
    )


def check_answers(case: CaseData) -> Check:
    """With a planted rule every complete answer was checked, token by token, and none was wrong."""
    name, remedy = (
        "answers",
        "look at the rows with answer = wrong: mixed requests, lost tokens or another sampling",
    )
    wrong = int((case.rows["answer"] == "wrong").sum())
    if wrong:
        return Check(
            name, False, "invalid", f"{wrong:,} of {len(case.rows):,} answers are wrong", remedy
        )
    if not is_planted(case):
        return Check(
            name, None, "invalid", "the model has no planted rule", "use the default model"
        )
    unchecked = int((~case.rows["failed"] & (case.rows["answer"] != "exact")).sum())
    return Check(
        name,
        not unchecked,
        "invalid",
        f"{unchecked:,} complete answers were not checked" if unchecked else "all",
        remedy,
    )


def check_agreement(case: CaseData) -> Check | None:
    """Without a planted rule: the share of greedy answers that equal those of the campaign's first
    server. Engines may part ways at a near tie of two tokens, so that a difference is no proof of
    an error.
    """
    said = case.run.get("agreement")
    if not said:
        return None
    detail = f"{said['share']:.0%} of the answers equal those of {said['with']}"
    return Check(
        "agreement",
        said["share"] == 1,
        "warning",
        detail,
        "compare the answers; see whether sampling and precision are the same",
    )


def check_rows(case: CaseData) -> Check:
    """As many rows as requests were sent and as Locust counted."""
    name, remedy = (
        "rows",
        "look at load.log: a listener's exception or a killed load worker loses rows",
    )
    counts = case.run.get("counts") or {}
    numbers = {key: counts.get(key) for key in ("sent", "rows", "locust_requests")} | {
        "read": len(case.rows)
    }
    detail = ", ".join(f"{key} {value}" for key, value in numbers.items())
    known = {value for value in numbers.values() if value is not None}
    ok = False if len(known) > 1 else None if None in numbers.values() else True
    return Check(name, ok, "invalid", detail, remedy)


def check_served(case: CaseData) -> Check:
    """The server's own counters rose by as many answers (status 200) and tokens as came complete.
    Whatever failed here (cut off at the drain's end, timed out, broken) may have been answered
    there, in part or whole: by so much the server may have counted more. Only a warning for a
    server that we did not start: it may have other clients, or stand behind a balancer with others.
    """
    name, severity = "server's counts", "invalid" if case.run.get("command") else "warning"
    remedy = (
        "look for lost rows, for other clients of this server, and in its log for a start in the"
        " middle of the load"
    )
    said = case.run.get("served")
    if not said:
        return Check(
            name,
            None,
            severity,
            "not measured: no counters of requests and tokens under names that we know",
            remedy,
        )
    whole, broken = (
        case.rows[~case.rows["failed"]],
        case.rows[case.rows["failed"] & case.rows["sent_s"].notna()],
    )
    least = {"requests": len(whole), "tokens": credible_usage(whole).sum(skipna=False)}
    more = {"requests": len(broken), "tokens": broken["max_tokens"].sum()}
    # no tokens if a response came without usage that can be believed
    known = [what for what in least if not math.isnan(least[what])]
    ok = all(least[what] <= said[what] <= least[what] + more[what] for what in known)
    detail = ", ".join(
        f"{what}: {said[what]:,} by the server's count, {least[what]:,.0f} here"
        + (f" and at most {more[what]:,.0f} in what failed" if more[what] else "")
        for what in known
    )
    return Check(name, ok, severity, detail, remedy)
