"""How wrong the load generator itself can have been: its share in what a case reports, and the
campaign's noise floor.

Three parts. What the load generator cost in the case itself is recorded in every row: how much
later than scheduled it sent. What cannot be seen in a case, the difference between when a token
came and when it was stamped, was measured against a server whose times are known before the
campaign began (calibration.json). And where the load generator stood still in the case, for
whatever reason, what came meanwhile may have come sooner than its stamp says: TCP merges what is
not read, and gives it the last one's stamp.
"""

import numpy as np
import pandas as pd

from analysis.case import CaseData
from analysis.dataset import Json
from analysis.stats import percentile, values_needed

BOUND = 0.05  # a number that can be wrong by more than that is none
WAITED_BOUND = 0.10  # of the window, ready to run but without a core


def error_shares(case: CaseData) -> dict[str, float]:
    """By how much the load generator can have changed what the case reports, as a share of it,
    worst first.

    P50 and P99 of TTFT and E2E: those from scheduled against those from when it was sent (a slot
    under a cap on concurrency is no delay of the client), plus the calibrated error of a stamp. P50
    and P99 of ITL: the calibrated error. TTFT and ITL: plus the difference that it makes to leave
    out what came while the load generator stood still and has no stamp of its own. Percentiles that
    the sample cannot carry are left out, and so is what was not calibrated.
    """
    floor = noise_floor_of(case)
    done = case.scheduled[~case.scheduled["failed"] & case.scheduled["first_s"].notna()]
    shares: dict[str, float] = {}
    doubtful, sure_gaps = doubtful_first(case, done), certain_gaps(case)
    for p in (50, 99):
        if len(done) < values_needed(p):
            continue
        for name in ("ttft_s", "e2e_s"):
            reported = percentile(done[name].to_numpy(), p)
            sent = percentile((done[name] - done["client_lag_s"]).to_numpy(), p)
            shares[f"{name[:-2].upper()} P{p}"] = (
                abs(reported - sent) + abs(floor.get("stamp_error_p99_s") or 0.0)
            ) / reported
        if doubtful.any():
            shares[f"TTFT P{p}"] += relative_change(
                done["ttft_s"].to_numpy(), done["ttft_s"][~doubtful].to_numpy(), p
            )
        if floor.get(f"itl_true_p{p}_s"):
            shares[f"ITL P{p}"] = abs(floor[f"itl_seen_p{p}_s"] / floor[f"itl_true_p{p}_s"] - 1)
        if len(sure_gaps) < len(case.gaps):
            shares[f"ITL P{p}"] = shares.get(f"ITL P{p}", 0.0) + relative_change(
                case.gaps, sure_gaps, p
            )
    return dict(sorted(shares.items(), key=lambda pair: -pair[1]))


def noise_floor_of(case: CaseData) -> Json:
    """What was measured at this kind of load before the campaign; empty if nothing was."""
    calibration = case.campaign.get("calibration") or {}
    return calibration.get("closed" if case.run["case"]["users"] else "open") or {}


def relative_change(reported: np.ndarray, certain: np.ndarray, p: float) -> float:
    """How far the percentile of all lies from that of the certain ones, as a share of it; infinite
    if nothing is certain.
    """
    of_all = percentile(reported, p)
    return abs(of_all - percentile(certain, p)) / of_all if len(certain) and of_all else np.inf


def stalls(case: CaseData) -> dict[int, np.ndarray]:
    """Of each load worker that stood still in the case: starts and ends, s, in order; shape (2, n).
    Unknown in older campaigns.
    """
    found = {
        worker["worker"]: np.array(worker.get("stalls") or [], dtype=float)
        for worker in case.run.get("load_workers") or []
    }
    return {worker: each.T for worker, each in found.items() if len(each)}


def in_stall(times: np.ndarray, stood: np.ndarray) -> np.ndarray:
    """Of each time, whether it is in one of the stalls."""
    starts, ends = stood
    last = np.searchsorted(starts, times) - 1
    return (last >= 0) & (times <= ends[np.maximum(last, 0)])


def late_stamps(case: CaseData, requests: pd.DataFrame) -> list[np.ndarray]:
    """Of each token of each of these requests, whether it may have come sooner than its stamp says:
    it came in a stall, and together with another one, or there are no stamps of the kernel's.
    """
    stood, found = stalls(case), []
    for worker, times, lag_s in zip(
        requests["worker"], requests["token_s"], requests["read_lag_max_s"], strict=True
    ):
        same = np.diff(times) == 0
        merged = np.append(same, False) | np.append(False, same)
        found.append(
            in_stall(times, stood[worker]) & (merged | (lag_s == 0))
            if worker in stood
            else np.zeros(len(times), dtype=bool)
        )
    return found


def doubtful_first(case: CaseData, done: pd.DataFrame) -> np.ndarray:
    """Of each of these requests, which have a first token, whether that one may have come
    sooner.
    """
    return (
        np.array([each[0] for each in late_stamps(case, done)], dtype=bool)
        if stalls(case)
        else np.zeros(len(done), dtype=bool)
    )


def certain_gaps(case: CaseData) -> np.ndarray:
    """`case.gaps` without those before a token that may have come sooner."""
    if not stalls(case) or case.scheduled.empty:
        return case.gaps
    late = late_stamps(case, case.scheduled)
    return np.concatenate(
        [
            np.diff(times)[~each[1:]]
            for times, each in zip(case.scheduled["token_s"], late, strict=True)
        ]
    )


def events_per_s(case: CaseData) -> float:
    """Chunks with tokens that arrived in the window / its length."""
    times, _ = case.tokens
    return float(np.sum(case.inside(times))) / case.length


def starved_share(case: CaseData) -> float | None:
    """The worst load worker's share of the window in which it was ready to run and had no core;
    null where it is not known.
    """
    waited = [worker.get("waited_share") for worker in case.run.get("load_workers") or []]
    return max((share for share in waited if share is not None), default=None)


def find_problems(case: CaseData) -> list[str]:
    """Why no number of this case can be believed to within 5%; empty if the load generator is not
    to blame.
    """
    found = [
        f"the load generator can have changed {name} by {share:.0%}"
        for name, share in error_shares(case).items()
        if share > BOUND
    ][:1]
    lengths = [
        end_s - start_s
        for each in stalls(case).values()
        for start_s, end_s in each.T
        if case.inside(end_s)
    ]
    if found and lengths:
        found[0] += (
            f" (in the window it stood still {len(lengths)} time{'s' * (len(lengths) > 1)}, for"
            f" {max(lengths):.2g} s at most)"
        )
    if (share := starved_share(case)) is not None and share > WAITED_BOUND:
        found.append(f"a load worker waited {share:.0%} of the window for a core")
    calibration = case.campaign.get("calibration") or {}
    sustained = calibration.get("sustained_events_per_s")
    # Where the ladder ended because its server could not send more, nothing is known against more.
    limited = any(
        step["server_kept_up"] and not step["sustained"] for step in calibration.get("ladder") or []
    )
    if sustained is not None and limited and events_per_s(case) > sustained:
        found.append(
            f"{events_per_s(case):,.0f} events/s are more than the {sustained:,.0f} that were seen"
            " right in calibration"
        )
    return found
