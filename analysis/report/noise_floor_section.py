"""The report's section "Noise floor": the load generator's own errors, which it measured before
the campaign.
"""

from collections.abc import Callable

from analysis.dataset import Json
from analysis.formatting import format_number
from analysis.stats import NAN, values_needed
from analysis.summary import Summary
from analysis.templating import View
from loadtests.schema import CLIENT_ERROR_BOUND

# The load generator's own errors: a label, and the text of one load's errors
# (schema.CalibrationFile, "closed").
ROWS: list[tuple[str, Callable[[Json], str]]] = [
    ("requests; failed", lambda e: f"{e['requests']:,}; {e['failed']:,}"),
    (
        "TTFT, measured minus true: mean, P99",
        lambda e: f"{_ms(e, 'ttft_error_mean_s')}, {_ms(e, 'ttft_error_p99_s')}",
    ),
    (
        "of that, from sent on: mean, P99",
        lambda e: (
            f"{_ms(e, 'ttft_from_sent_error_mean_s')}, {_ms(e, 'ttft_from_sent_error_p99_s')}"
        ),
    ),
    (
        "of that, a token's timestamp minus its sending time: mean, P99",
        lambda e: f"{_ms(e, 'stamp_error_mean_s')}, {_ms(e, 'stamp_error_p99_s')}",
    ),
    ("a single gap between two tokens, off by: P99", lambda e: _ms(e, "itl_error_p99_s")),
    (
        "P99 of the gaps: true, as measured",
        lambda e: f"{_ms(e, 'itl_true_p99_s')}, {_ms(e, 'itl_seen_p99_s')}",
    ),
    (
        "requests sent later than scheduled by: P50, P99",
        lambda e: f"{_ms(e, 'send_lag_p50_s')}, {_ms(e, 'send_lag_p99_s')}",
    ),
    (
        "CPU time for one event (a chunk with tokens)",
        lambda e: f"{_scaled(e, 'cpu_per_event_s', 1e6)} us",
    ),
    ("share of time ready to run without a core", lambda e: f"{_scaled(e, 'waited_share', 100)}%"),
    ("events/s during this", lambda e: _scaled(e, "events_per_s", 1)),
]


def noise_floor_view(summary: Summary, names: dict[int, str]) -> View:
    """{heads, rows, ladder, bound, cases, p99_needs} for the templates. `heads` is empty without a
    calibration. `cases` are those that ended, by their `names`, with the detail of the check
    `client error`.
    """
    calibration = summary.campaign.data.get("calibration") or {}
    loads = (
        [(f"closed loop, {calibration['users']:,} users", calibration["closed"])]
        if calibration.get("closed")
        else []
    )
    loads += (
        [(f"open loop, {calibration['rate']:g} requests/s", calibration["open"])]
        if calibration.get("open")
        else []
    )
    judged = summary.checks[summary.checks["name"] == "client error"]
    cases = [
        (names[index], detail)
        for index, detail in zip(judged["index"], judged["detail"], strict=True)
    ]
    return {
        "heads": [head for head, _ in loads],
        "rows": [(label, [text(errors) for _, errors in loads]) for label, text in ROWS],
        "ladder": describe_load_steps(calibration),
        "bound": f"{CLIENT_ERROR_BOUND:.0%}",
        "cases": cases,
        "p99_needs": values_needed(99),
    }


def describe_load_steps(calibration: Json) -> str:
    """The highest rate of events that was measured correctly, and its limit; empty if it was not
    measured.
    """
    steps = calibration.get("ladder")
    if not steps:
        return ""
    sustained = calibration["sustained_events_per_s"]
    text = (
        f"The load generator measured up to {sustained:,} events/s correctly"
        if sustained
        else "The load generator did not measure even the lowest rate of events correctly"
    )
    limit = next((step for step in steps if not step["sustained"]), None)
    if limit is None:
        return f"{text}; no higher rate was tried."
    if limit["server_kept_up"]:
        return f"{text}; {limit['asked_per_s']:,} events/s exceed its limit."
    return (
        f"{text}; the ground truth server could not send {limit['asked_per_s']:,}, so the load"
        " generator's limit is higher."
    )


def _scaled(errors: Json, name: str, scale: float) -> str:
    value = errors.get(name)
    return format_number(NAN if value is None else scale * value)


def _ms(errors: Json, name: str) -> str:
    """Milliseconds to the microsecond; more digits would be noise."""
    value = errors.get(name)
    return "–" if value is None else f"{1e3 * value:.3f} ms"
