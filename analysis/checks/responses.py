"""Checks of the server's behaviour: contract, responses, rows, its own counts."""

import math

from analysis.case import CaseData, credible_usage
from analysis.checks.verdict import Check, has_known_answers


def check_contract(case: CaseData) -> Check:
    """The server passed every check of the contract before and after the load. A profiled endpoint
    is checked only for behaviour that would make numbers wrong.
    """
    name, remedy = (
        "contract",
        "run `python -m servers NAME` and `python -m servers verify URL`, and fix what fails",
    )
    if case.run.get("profile") and not case.run.get("verify_before"):
        return Check(name, None, "invalid", "profiled instead of verified", remedy)
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
    """With a known-answer model, every complete response was checked token by token and none is
    wrong.
    """
    name, remedy = (
        "answers",
        "look at the rows with answer = wrong: mixed requests, lost tokens or different sampling",
    )
    wrong = int((case.rows["answer"] == "wrong").sum())
    if wrong:
        return Check(
            name, False, "invalid", f"{wrong:,} of {len(case.rows):,} responses are wrong", remedy
        )
    if not has_known_answers(case):
        return Check(
            name, None, "invalid", "the model's responses are not known", "use the default model"
        )
    if case.rows["failed"].all():
        return Check(name, None, "invalid", "no complete response", remedy)
    unchecked = int((~case.rows["failed"] & (case.rows["answer"] != "exact")).sum())
    return Check(
        name,
        not unchecked,
        "invalid",
        f"{unchecked:,} complete responses were not checked" if unchecked else "all are right",
        remedy,
    )


def check_agreement(case: CaseData) -> Check | None:
    """Without a known-answer model: all greedy responses equal those of the campaign's first
    server. Engines may diverge at a near tie of two tokens, so a difference does not prove an
    error.
    """
    agreement = case.run.get("agreement")
    if not agreement:
        return None
    detail = f"{agreement['share']:.0%} of the responses equal those of {agreement['with']}"
    return Check(
        "agreement",
        agreement["share"] == 1,
        "warning",
        detail,
        "compare the responses; check whether sampling and precision are the same",
    )


def check_rows(case: CaseData) -> Check:
    """The requests sent, the rows and the requests that Locust counted are equal in number."""
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
    """The server's own counters rose by the number of complete responses (status 200) and tokens.
    They may also include requests that failed here (cut off when the drain ended, timed out,
    broken), which the server may have served in part or whole. A mismatch is only a warning for a
    server that Serveoff did not start: it may have other clients, or share a load balancer.
    """
    name, severity = "server's counts", "invalid" if case.run.get("command") else "warning"
    remedy = (
        "look for lost rows and other clients of this server, and in its log for a restart during"
        " the load"
    )
    served = case.run.get("served")
    if not served:
        return Check(
            name,
            None,
            severity,
            "not measured: the server has no known counters of requests and tokens",
            remedy,
        )
    whole, broken = (
        case.rows[~case.rows["failed"]],
        case.rows[case.rows["failed"] & case.rows["sent_s"].notna()],
    )
    least = {"requests": len(whole), "tokens": credible_usage(whole).sum(skipna=False)}
    more = {"requests": len(broken), "tokens": broken["max_tokens"].sum()}
    # without tokens if a response has no credible usage, without requests if it counts none
    known = [what for what in least if what in served and not math.isnan(least[what])]
    ok = all(least[what] <= served[what] <= least[what] + more[what] for what in known)
    if not known:
        detail = "not measured: the server counts tokens only, and its responses report none"
        return Check(name, None, severity, detail, remedy)
    detail = ", ".join(
        f"{what}: {served[what]:,} by the server's count, {least[what]:,.0f} by ours"
        + (f" plus at most {more[what]:,.0f} of failed requests" if more[what] else "")
        for what in known
    )
    return Check(name, ok, severity, detail, remedy)
