"""Checks of failed requests, of requests that were sent twice, and of servers that ask for a pause;
and how many failures a case may have.
"""

import pandas as pd

from analysis.case import CaseData
from analysis.checks.verdict import Check, format_share
from analysis.metrics.requests import error_share

MAX_ERRORS = 0.05  # share of failed requests above which a case is invalid, unless it is chosen
WARN_ERRORS = 0.01
WARN_RESENT = 0.01
REASONS = 3  # how many are named
OVERLOAD = ("http 429", "http 503", "timeout", "cut off")  # how errors of overload begin


def check_errors(case: CaseData) -> Check:
    """At most 5% of the window's requests failed (`--max-errors`), without a warning 1%. The most
    frequent reason comes first, with the server's own words.
    """
    name, limit = "errors", max_errors(case)
    remedy = "the server's own words and its log say why it failed"
    share, requests = failed_share(case), counted_requests(case)
    if requests.empty:
        return Check(name, None, "warning", "no request", remedy)
    severity = "invalid" if share > limit else "warning"
    detail = f"{format_share(share)} failed"
    if share:
        detail += f": {describe_reasons(requests)}"
        if str(requests["error"].value_counts().index[0]).startswith(OVERLOAD):
            remedy += "; lower the load"
    if severity == "invalid":
        remedy += f"; --max-errors sets how many may fail, here {format_share(limit)}"
    return Check(name, share <= min(limit, WARN_ERRORS), severity, detail, remedy, share)


def check_resent(case: CaseData) -> Check | None:
    """Requests that were sent a second time, since the server had closed a kept-alive connection
    without a response: the lost attempt is in their latencies.
    """
    if case.rows["resent"].isna().all():
        return None  # an older campaign
    n, of = int(case.rows["resent"].eq(True).sum()), len(case.rows)
    severity = "warning" if n > WARN_RESENT * of else "note"
    detail = (
        f"{n:,} of {of:,} requests were sent twice, since the server had closed their connection"
        if n
        else "none"
    )
    return Check(
        "resent requests",
        not n,
        severity,
        detail,
        "let the server keep idle connections open for longer",
    )


def check_retry_after(case: CaseData) -> Check | None:
    """The server asked for a pause by Retry-After."""
    asked = case.rows["retry_after_s"].dropna()
    if asked.empty:
        return None
    detail = (
        f"with {len(asked):,} of {len(case.rows):,} responses the server asked for a pause of"
        f" {asked.median():g} s (median; {asked.max():g} s at most)"
    )
    return Check("Retry-After", False, "warning", detail, "lower the load to what the server takes")


def max_errors(case: CaseData) -> float:
    """The share of failed requests that a case may have, as the campaign or a command says."""
    chosen = case.campaign.get("max_errors")
    return MAX_ERRORS if chosen is None else float(chosen)


def counted_requests(case: CaseData) -> pd.DataFrame:
    """Requests scheduled in the window, or all of them where a load ended before its window."""
    return case.scheduled if len(case.scheduled) else case.rows


def failed_share(case: CaseData) -> float:
    """The share of those that failed; nan without any."""
    return error_share(case) if len(case.scheduled) else float(case.rows["failed"].mean())


def skip_after_errors(case: CaseData, name: str) -> Check | None:
    """The result of a check of the load where errors explain what it would find: a server that
    refuses at once is asked more often, and a load that fails ends early. None if too few requests
    failed for that. A time-out or what was cut off explains nothing: a late client has these, too.
    """
    requests = counted_requests(case)
    late = requests["error"].astype("str").str.startswith(("timeout", "cut off"))
    refused = float((requests["failed"] & ~late).mean()) if len(requests) else 0.0
    if refused <= max_errors(case):
        return None
    detail = f"not judged, since {format_share(refused)} of the requests failed"
    return Check(name, None, "invalid", detail, "see the check errors")


def describe_reasons(requests: pd.DataFrame) -> str:
    """The reasons of failures, the most frequent first, each with its share of all requests and the
    server's own words.
    """
    found = []
    for reason, n in requests["error"].value_counts().items():
        words = requests.loc[requests["error"] == reason, "error_detail"].dropna().value_counts()
        said = f": {words.index[0]}" if len(words) else ""
        found.append(f"{format_share(n / len(requests))} {reason}{said}")
    more = f"; and {len(found) - REASONS} other reasons" if len(found) > REASONS else ""
    return "; ".join(found[:REASONS]) + more
