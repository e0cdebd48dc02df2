"""Checks of failed requests, of requests sent twice, and of servers that ask for a pause; and the
share of failures that a case may have.
"""

import pandas as pd

from analysis.case import CaseData
from analysis.checks.verdict import Check, format_share
from analysis.metrics.requests import error_share

MAX_ERRORS = 0.05  # share of failed requests above which a case is invalid by default
WARN_ERRORS = 0.01
WARN_RESENT = 0.01
REASONS = 3  # at most so many are listed
OVERLOAD = ("http 429", "http 503", "timeout", "cut off")  # how errors of overload start


def check_errors(case: CaseData) -> Check:
    """At most 5% of the window's requests failed (`--max-errors` sets another share); more than 1%
    is a warning. The most frequent reason comes first, with the server's own message.
    """
    name, limit = "errors", max_errors(case)
    remedy = "read the server's messages and its log"
    share, requests = failed_share(case), counted_requests(case)
    if requests.empty:
        return Check(name, None, "warning", "no requests", remedy)
    severity = "invalid" if share > limit else "warning"
    reasons = describe_reasons(requests)
    detail = f"{format_share(share)} failed: {'; '.join(reasons)}"
    if len(reasons) < 2:
        detail = reasons[0] if reasons else "none failed"
    if requests["error"].value_counts().index.astype("str").str.startswith(OVERLOAD)[:1].any():
        remedy += "; lower the load"
    if severity == "invalid":
        remedy += f"; --max-errors sets the share that may fail, here {format_share(limit)}"
    return Check(name, share <= min(limit, WARN_ERRORS), severity, detail, remedy, share)


def check_resent(case: CaseData) -> Check | None:
    """No request was sent twice. One is sent a second time if the server closed a kept-alive
    connection without a response; its latencies then include the lost attempt.
    """
    if case.rows["resent"].isna().all():
        return None  # an older campaign
    n, of = int(case.rows["resent"].eq(True).sum()), len(case.rows)
    severity = "warning" if n > WARN_RESENT * of else "note"
    detail = (
        f"{n:,} of {of:,} requests were sent twice because the server had closed their connection"
        if n
        else "none"
    )
    return Check(
        "resent requests",
        not n,
        severity,
        detail,
        "configure the server to keep idle connections open longer",
    )


def check_retry_after(case: CaseData) -> Check | None:
    """The server never asked for a pause with Retry-After."""
    asked = case.rows["retry_after_s"].dropna()
    if asked.empty:
        return None
    detail = (
        f"{len(asked):,} of {len(case.rows):,} responses asked for a pause of"
        f" {asked.median():g} s (median; at most {asked.max():g} s)"
    )
    return Check("Retry-After", False, "warning", detail, "lower the load")


def max_errors(case: CaseData) -> float:
    """The share of failed requests that a case may have, by the campaign or a command."""
    chosen = case.campaign.get("max_errors")
    return MAX_ERRORS if chosen is None else float(chosen)


def counted_requests(case: CaseData) -> pd.DataFrame:
    """The requests scheduled in the window, or all requests if the load ended before its window."""
    return case.scheduled if len(case.scheduled) else case.rows


def failed_share(case: CaseData) -> float:
    """The share of `counted_requests` that failed; nan without any."""
    return error_share(case) if len(case.scheduled) else float(case.rows["failed"].mean())


def skip_after_errors(case: CaseData, name: str) -> Check | None:
    """The result of a check of the load if errors would explain its finding, else None: a server
    that refuses at once gets more requests, and a load that fails ends early. Timeouts and requests
    cut off at the end explain nothing, since a slow client also causes them.
    """
    requests = counted_requests(case)
    late = requests["error"].astype("str").str.startswith(("timeout", "cut off"))
    refused = float((requests["failed"] & ~late).mean()) if len(requests) else 0.0
    if refused <= max_errors(case):
        return None
    detail = f"not judged because {format_share(refused)} of the requests failed"
    return Check(name, None, "invalid", detail, "see the check errors")


def describe_reasons(requests: pd.DataFrame) -> list[str]:
    """The reasons of failures, the most frequent first, each with its share of all requests and the
    server's own message.
    """
    found = []
    for reason, n in requests["error"].value_counts().items():
        texts = requests.loc[requests["error"] == reason, "error_detail"].dropna().value_counts()
        message = f": {texts.index[0]}" if len(texts) else ""
        found.append(f"{format_share(n / len(requests))} {reason}{message}")
    more = [f"and {len(found) - REASONS} other reasons"] if len(found) > REASONS else []
    return [*found[:REASONS], *more]
