"""Bounds the load generator's own error: its share of the values that a case reports, and the
campaign's noise floor.

The error has three parts. Every row records how much later than scheduled the load generator sent.
A case cannot show how much later than its arrival a token was stamped: the calibration measured
that before the campaign, against a server whose times are known (calibration.json). And while the
load generator stalled, for any reason, tokens may have arrived earlier than their stamps: TCP
merges unread data and gives it the stamp of the last segment.
"""

import numpy as np
import pandas as pd

from analysis.case import CaseData
from analysis.dataset import Json
from analysis.stats import percentile, values_needed
from loadtests.schema import CLIENT_ERROR_BOUND

WAITED_BOUND = 0.10  # share of the window in which a worker was ready to run but had no core


def error_shares(case: CaseData) -> dict[str, float]:
    """How much the load generator can have changed each reported value, as a share of it, worst
    first.

    P50 and P99 of TTFT and E2E: the difference between counting from scheduled and from sent (the
    wait for a slot under a cap on concurrency is no delay of the client), plus the calibrated error
    of a stamp. P50 and P99 of ITL: the calibrated error. TTFT and ITL also get the difference that
    it makes to leave out tokens that arrived in a stall without a stamp of their own. Percentiles
    with too small a sample are left out, and so are errors that were not calibrated.
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
    """The calibration for this kind of load, made before the campaign; empty without one."""
    calibration = case.campaign.get("calibration") or {}
    return calibration.get("closed" if case.run["case"]["users"] else "open") or {}


def relative_change(reported: np.ndarray, certain: np.ndarray, p: float) -> float:
    """The distance between the percentile of all values and that of the certain ones, as a share of
    the former; infinite if none is certain.
    """
    of_all = percentile(reported, p)
    return abs(of_all - percentile(certain, p)) / of_all if len(certain) and of_all else np.inf


def stalls(case: CaseData) -> dict[int, np.ndarray]:
    """The starts and ends of each load worker's stalls, s, in order, with shape (2, n), for the
    workers that have any. Older campaigns did not record them.
    """
    found = {
        worker["worker"]: np.array(worker.get("stalls") or [], dtype=float)
        for worker in case.run.get("load_workers") or []
    }
    return {worker: each.T for worker, each in found.items() if len(each)}


def in_stall(times: np.ndarray, stalled: np.ndarray) -> np.ndarray:
    """For each time, whether it is in one of the stalls."""
    starts, ends = stalled
    last = np.searchsorted(starts, times) - 1
    return (last >= 0) & (times <= ends[np.maximum(last, 0)])


def late_stamps(case: CaseData, requests: pd.DataFrame) -> list[np.ndarray]:
    """For each token of each of these requests, whether it may have arrived earlier than its stamp:
    it arrived in a stall, and either together with another token or without the kernel's stamps.
    """
    stalled, found = stalls(case), []
    for worker, times, lag_s in zip(
        requests["worker"], requests["token_s"], requests["read_lag_max_s"], strict=True
    ):
        same = np.diff(times) == 0
        merged = np.append(same, False) | np.append(False, same)
        found.append(
            in_stall(times, stalled[worker]) & (merged | (lag_s == 0))
            if worker in stalled
            else np.zeros(len(times), dtype=bool)
        )
    return found


def doubtful_first(case: CaseData, done: pd.DataFrame) -> np.ndarray:
    """For each of these requests, which all have a first token, whether that token may have arrived
    earlier than its stamp.
    """
    return (
        np.array([each[0] for each in late_stamps(case, done)], dtype=bool)
        if stalls(case)
        else np.zeros(len(done), dtype=bool)
    )


def certain_gaps(case: CaseData) -> np.ndarray:
    """`case.gaps` without the gaps before a token that may have arrived earlier than its stamp."""
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
    """Chunks with tokens that arrived in the window, divided by its length."""
    times, _ = case.tokens
    return float(np.sum(case.inside(times))) / case.length


def starved_share(case: CaseData) -> float | None:
    """The largest share of the window in which a load worker was ready to run and had no core; None
    if unknown.
    """
    waited = [worker.get("waited_share") for worker in case.run.get("load_workers") or []]
    return max((share for share in waited if share is not None), default=None)


def find_problems(case: CaseData) -> list[str]:
    """The reasons why the load generator may have changed this case's values by more than 5%; empty
    if there are none.
    """
    found = [
        f"the load generator may have changed {name} by {share:.0%}"
        for name, share in error_shares(case).items()
        if share > CLIENT_ERROR_BOUND
    ][:1]
    lengths = [
        end_s - start_s
        for each in stalls(case).values()
        for start_s, end_s in each.T
        if case.inside(end_s)
    ]
    if found and lengths:
        found[0] += (
            f" (it stalled {len(lengths)} time{'s' * (len(lengths) > 1)} in the window, for at most"
            f" {max(lengths):.2g} s)"
        )
    if (share := starved_share(case)) is not None and share > WAITED_BOUND:
        found.append(f"a load worker waited {share:.0%} of the window for a core")
    calibration = case.campaign.get("calibration") or {}
    sustained = calibration.get("sustained_events_per_s")
    # If the ladder ended because its server could not send more, no higher rate is known to fail.
    limited = any(
        step["server_kept_up"] and not step["sustained"] for step in calibration.get("ladder") or []
    )
    if sustained is not None and limited and events_per_s(case) > sustained:
        found.append(
            f"{events_per_s(case):,.0f} events/s exceed the {sustained:,.0f} that the calibration"
            " measured correctly"
        )
    return found
