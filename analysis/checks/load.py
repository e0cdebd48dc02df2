"""Checks of the load: arrivals, the load generator, steadiness, sample sizes."""

import math

import numpy as np

from analysis import metrics, stats
from analysis.case import CaseData
from analysis.checks import hidden_pauses, load_generator
from analysis.checks.errors import skip_after_errors
from analysis.checks.verdict import Check, check_limit
from loadtests.schema import SEND_LAG_BOUND_S, SEND_LAG_BOUND_SHARE

SLICES = 12


def check_arrivals(case: CaseData) -> Check | None:
    """Open loop: as many requests were scheduled and sent in the window as the arrival process
    planned, within 2% or one request.
    """
    planned = (case.run.get("counts") or {}).get("planned")
    if planned is None:
        return None
    found = {"scheduled": len(case.scheduled)}
    if case.scheduled["slot_s"].isna().all():  # a cap on concurrency delays sending on purpose
        found["sent"] = int(case.inside(case.rows["sent_s"]).sum())
    if skipped := skip_after_errors(case, "arrivals"):
        return skipped
    ok = planned > 0 and all(abs(n - planned) <= max(0.02 * planned, 1) for n in found.values())
    detail = (
        f"{planned:,} planned, {' and '.join(f'{n:,} {what}' for what, n in found.items())} in the"
        " window"
    )
    return Check("arrivals", ok, "invalid", detail, "use more load workers or a lower rate")


def check_load_cpu(case: CaseData) -> Check:
    """The busiest load worker computed for less than 80% of the window."""
    if skipped := skip_after_errors(case, "load generator's CPU"):
        return skipped
    share = metrics.resources.load_cpu_share(case)
    return check_limit(
        "load generator's CPU",
        share < 0.8,
        share,
        "invalid",
        f"the busiest load worker used {share:.0%} of its core",
        "use more load workers, or more cores for them",
    )


def check_send_lag(case: CaseData) -> Check:
    """P99 of sent - scheduled (under a cap on concurrency: sent - slot), without the least time
    that connecting takes, is below 1% of the median E2E or 5 ms, whichever is larger.
    """
    if skipped := skip_after_errors(case, "send lag"):
        return skipped
    lag = stats.percentile(case.latencies("client_lag_s"), 99)
    median = stats.percentile(case.latencies("e2e_s", failures=False), 50)
    bound = np.fmax(SEND_LAG_BOUND_SHARE * median, SEND_LAG_BOUND_S)
    return check_limit(
        "send lag",
        lag < bound,
        lag,
        "invalid",
        f"P99 {lag * 1e3:.1f} ms, bound {bound * 1e3:.1f} ms",
        "give the load generator a core of its own, or use more load workers",
    )


def check_client_error(case: CaseData) -> Check:
    """The load generator cannot have changed the reported values by more than 5%
    (checks/load_generator.py); else the case is client-bound.
    """
    name = "client error"
    remedy = "use more load workers, fewer streams or more cores for the load generator"
    if skipped := skip_after_errors(case, name):
        return skipped
    shares = load_generator.error_shares(case)
    if not shares:
        return Check(name, None, "invalid", "too few requests", remedy)
    found = load_generator.find_problems(case)
    if found:
        return Check(name, False, "invalid", f"client-bound: {'; '.join(found)}", remedy)
    worst, share = next(iter(shares.items()))
    calibrated = (
        "" if load_generator.noise_floor_of(case) else ", but the load generator was not calibrated"
    )
    return Check(name, True, "invalid", f"at most {share:.1%} ({worst}){calibrated}", remedy)


def check_warm_up(case: CaseData) -> Check:
    """The load was steady before the window opened, by the test of
    loadtests/generator/steady_state.py. `check_steadiness` tests the window itself.
    """
    warmup = case.run.get("warmup") or {}
    detail = f"after {warmup['took_s']:.0f} s: {warmup['why']}" if warmup else "not recorded"
    return Check(
        "warm-up",
        warmup.get("steady"),
        "warning",
        detail,
        "lengthen the scenario's warmup_max_s, or lower the load",
    )


def check_own_times(case: CaseData) -> Check:
    """The server's own times agree with the client's in the window's completed requests.

    From sent to first token cannot be shorter than queue_ms + prompt_ms. If it is more than 1 ms
    shorter in more than 1% of the requests, a clock or stamp is wrong (in 17,000 requests of three
    servers it was always at least 0.1 ms longer). From first to last token, the median must be
    within 10 ms or 2% of predicted_ms; it is shorter if something holds the stream back.

    The medians agree within 0.1 ms where an event loop sends and does not compute. An engine that
    computes in the sending process passes on its first token up to one switch interval of Python's
    lock late, 5 ms (Flask with Transformers: 3 ms), hence 10 ms. Beside 16 computing threads single
    requests are off by 2% either way and their median by 0.1%, hence 2%.
    """
    name, remedy = (
        "server's times",
        "look for a buffer between engine and client, or for a wrong clock",
    )
    r = case.scheduled[~case.scheduled["failed"]].dropna(
        subset=["first_s", "prompt_ms", "predicted_ms"]
    )
    if not len(r):
        return Check(name, None, "warning", "the server gives no timings", remedy)
    impossible = float(
        (1e3 * (r["first_s"] - r["sent_s"]) < r["queue_ms"].fillna(0) + r["prompt_ms"] - 1).mean()
    )
    longer = float((1e3 * (r["last_s"] - r["first_s"]) - r["predicted_ms"]).median())
    bound = max(10.0, 0.02 * float(r["predicted_ms"].median()))
    detail = (
        f"{impossible:.1%} of the first tokens arrived before the server had generated them; the"
        f" client's time from first to last token differs from the server's by {longer:+.1f} ms,"
        f" bound {bound:.0f} ms"
    )
    return Check(name, impossible <= 0.01 and abs(longer) <= bound, "warning", detail, remedy)


def check_steadiness(case: CaseData) -> Check:
    """A line fitted to the tokens/s of the window's 12 slices changes over the window by at most
    10% of the mean, or not significantly (t-test of the slope at 1%). The same holds, at 20% and
    0.1%, for the mean TTFT and E2E of the requests scheduled in each slice: in an open loop, a
    server that cannot keep up has a constant throughput and a growing queue. Their test is stricter
    because queues also wander by chance, which makes neighbouring slices alike.

    A change of more than 20% makes the case invalid. A smaller one is a warning: the mean is then
    at most 10% off either end. Error rates: tests/studies/steadiness.py.

    Where the scenario varies the demand, steadiness is not expected and not tested.
    """
    name, remedy = (
        "steadiness",
        (
            "lengthen the warm-up or the window; if it never settles, the load is above what the"
            " server sustains"
        ),
    )
    scenario = case.campaign["scenarios"].get(case.run["case"]["scenario"], {})
    if scenario.get("arrivals") == "trace" or "profile" in scenario:
        return Check(name, None, "invalid", "not tested: the scenario varies the demand", remedy)
    if skipped := skip_after_errors(case, name):
        return skipped
    times, numbers = case.completed_tokens
    if not case.length > 0 or not case.inside(times).any():
        return Check(name, None, "invalid", "no tokens in the window", remedy)
    edges = np.linspace(*case.window, SLICES + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    tests = [
        (
            "tokens/s",
            stats.trend_test(
                middles, np.histogram(times, SLICES, case.window, weights=numbers)[0], case.length
            ),
            0.10,
            0.01,
        )
    ]
    done = case.scheduled[~case.scheduled["failed"]]
    counts = np.histogram(done["scheduled_s"], bins=edges)[0]
    some = counts > 0  # with few requests, a slice may have none
    for label, column in (("TTFT", "ttft_s"), ("E2E", "e2e_s")):
        if some.sum() >= SLICES / 2:
            means = (
                np.histogram(done["scheduled_s"], bins=edges, weights=done[column])[0][some]
                / counts[some]
            )
            tests.append((label, stats.trend_test(middles[some], means, case.length), 0.20, 0.001))
    changes = [
        abs(found.change)
        for _, found, share, p in tests
        if abs(found.change) > share and found.p < p
    ]
    detail = ", ".join(
        f"{label} {found.change:+.1%} (p = {found.p:.2g})" for label, found, _, _ in tests
    )
    severity = "invalid" if max(changes, default=1.0) > 0.20 else "warning"
    return Check(
        name,
        not changes,
        severity,
        f"trend over the window, relative to its mean: {detail}",
        remedy,
    )


def check_hidden_pauses(case: CaseData) -> Check | None:
    """Closed loop: there is no silence during which an open loop would have gathered three times as
    many waiting requests (checks/hidden_pauses.py).
    """
    if not case.run["case"]["users"]:
        return None
    name, remedy = (
        "silence",
        "also measure an open loop: --scenarios steady, with a --rate below this throughput",
    )
    found = hidden_pauses.find_longest_pause(case)
    if found is None:
        return Check(name, None, "warning", "not measured", remedy)
    detail = (
        f"nothing arrived for {found.length_s:.{1 if found.length_s >= 1 else 3}f} s while"
        f" {found.waiting} requests waited"
    )
    if found.hides:
        detail += (
            f", {found.at_s:.0f} s after the window opened: users of a closed loop wait with the"
            " server, so only these requests show it; an open loop at this throughput would have"
            f" had about {found.would_wait:,.0f} waiting"
        )
    return Check(name, not found.hides, "warning", detail, remedy)


def check_sample_size(case: CaseData) -> Check:
    """The window has the 299 requests that a P99 needs (stats.py). Otherwise the remedy states the
    length that would have had them at the same rate, and a tenth more.
    """
    n, needed = len(case.scheduled), stats.values_needed(99)
    longer = f": --duration {math.ceil(1.1 * case.length * needed / n)}" if n else ""
    return Check(
        "P99 sample",
        n >= needed,
        "warning",
        f"{n:,} requests in the window, P99 needs {needed}",
        f"use a longer window{longer}",
        needed / n if n else math.inf,
    )


def check_cut_off(case: CaseData) -> Check:
    """No request was still in flight when the drain ended."""
    n = (case.run.get("counts") or {}).get("cut_off")
    return Check(
        "unanswered",
        None if n is None else n == 0,
        "warning",
        f"{n} cut off at the end of the drain",
        "lower the load",
    )
