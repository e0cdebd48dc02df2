"""How wrong the load generator itself can have been: its share in what a case reports, and the campaign's noise floor.

Two parts. What the load generator cost in the case itself is recorded in every row: how much later than scheduled it sent. What cannot
be seen in a case, the difference between when a token came and when it was stamped, was measured against a server whose times are
known before the campaign began (calibration.json).
"""

from typing import Any

import numpy as np

from analysis.observed import Observed
from analysis.statistics import needed, percentile

BOUND = 0.05  # a number that can be wrong by more than that is none
WAITED_BOUND = 0.10  # of the window, ready to run but without a core


def error_shares(o: Observed) -> dict[str, float]:
    """By how much the load generator can have changed what the case reports, as a share of it, worst first.

    P50 and P99 of TTFT and E2E: those from scheduled against those from when it was sent (a slot under a cap on concurrency is no
    delay of the client), plus the calibrated error of a stamp. P50 and P99 of ITL: the calibrated error. Percentiles that the
    sample cannot carry are left out, and so is what was not calibrated.
    """
    floor = floor_of(o)
    done = o.scheduled[~o.scheduled["failed"] & o.scheduled["first_s"].notna()]
    shares = {}
    for p in (50, 99):
        if len(done) < needed(p):
            continue
        for name in ("ttft_s", "e2e_s"):
            reported = percentile(done[name].to_numpy(), p)
            sent = percentile((done[name] - done["client_lag_s"]).to_numpy(), p)
            shares[f"{name[:-2].upper()} P{p}"] = (abs(reported - sent) + abs(floor.get("stamp_error_p99_s") or 0.0)) / reported
        if floor.get(f"itl_true_p{p}_s"):
            shares[f"ITL P{p}"] = abs(floor[f"itl_seen_p{p}_s"] / floor[f"itl_true_p{p}_s"] - 1)
    return dict(sorted(shares.items(), key=lambda pair: -pair[1]))


def floor_of(o: Observed) -> dict[str, Any]:
    """What was measured at this kind of load before the campaign; empty if nothing was."""
    calibration = o.campaign.get("calibration") or {}
    return calibration.get("closed" if o.run["case"]["users"] else "open") or {}


def events_per_s(o: Observed) -> float:
    """Chunks with tokens that arrived in the window / its length."""
    times, _ = o.tokens
    return float(np.sum(o.inside(times))) / o.length


def starved(o: Observed) -> float | None:
    """The worst load worker's share of the window in which it was ready to run and had no core; null where it is not known."""
    waited = [worker.get("waited_share") for worker in o.run.get("load_workers") or []]
    return max((share for share in waited if share is not None), default=None)


def problems(o: Observed) -> list[str]:
    """Why no number of this case can be believed to within 5%; empty if the load generator is not to blame."""
    found = [f"the load generator can have changed {name} by {share:.0%}" for name, share in error_shares(o).items() if share > BOUND][:1]
    if (share := starved(o)) is not None and share > WAITED_BOUND:
        found.append(f"a load worker waited {share:.0%} of the window for a core")
    calibration = o.campaign.get("calibration") or {}
    sustained = calibration.get("sustained_events_per_s")
    # Where the ladder ended because its server could not send more, nothing is known against more.
    limited = any(step["server_kept_up"] and not step["sustained"] for step in calibration.get("ladder") or [])
    if sustained is not None and limited and events_per_s(o) > sustained:
        found.append(f"{events_per_s(o):,.0f} events/s are more than the {sustained:,.0f} that were seen right in calibration")
    return found
