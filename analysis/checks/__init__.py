"""Whether a case's numbers may be shown. A failed check of severity "invalid" means "no number",
which is not "slow".
"""

import math
from typing import Any, NamedTuple

import numpy as np

from analysis import metrics, stats
from analysis.case import Observed
from analysis.checks import hidden_pauses, load_generator
from analysis.stats import NAN

SLICES = 12
# NVML's reasons that mean the hardware held the clocks back; idle, application clocks and the power
# cap are everyday.
THROTTLING = {
    0x8: "hardware slowdown",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}


class Check(NamedTuple):
    """`ok` is None where it was not measured; `severity` is "invalid" or "warning"; `remedy` says
    what to do if not ok. `value`: the one number that was held against a limit, of which more is
    worse; nan if there is none.
    """

    name: str
    ok: bool | None
    severity: str
    detail: str
    remedy: str
    value: float = NAN


def check(o: Observed) -> list[Check]:
    """All checks that apply to a case that ended ok."""
    found = [
        contract(o),
        answers(o),
        agreement(o),
        rows(o),
        served(o),
        token_counts(o),
        errors(o),
        arrivals(o),
        load_cpu(o),
        send_lag(o),
        client_error(o),
        own_times(o),
        warm_up(o),
        steady(o),
        silent(o),
        busy(o),
        steal(o),
        swap(o),
        gpu(o),
        sample_size(o),
        cut_off(o),
    ]
    return [c for c in found if c is not None]


def reasons(checks: list[Check], severity: str = "invalid") -> list[Check]:
    return [c for c in checks if c.ok is False and c.severity == severity]


def contract(o: Observed) -> Check:
    """Every check of the contract held before the load and after it."""
    name, remedy = (
        "contract",
        "run `python -m servers` with this server and mend what its verification names",
    )
    for key, when in (("verify_before", "before"), ("verify_after", "after")):
        checks = o.run.get(key)
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
        name, True, "invalid", f"{len(o.run['verify_before'])} checks before and after", remedy
    )


def answers(o: Observed) -> Check:
    """With a planted rule every complete answer was checked, token by token, and none was wrong."""
    name, remedy = (
        "answers",
        "look at the rows with answer = wrong: mixed requests, lost tokens or another sampling",
    )
    wrong = int((o.rows["answer"] == "wrong").sum())
    if wrong:
        return Check(
            name, False, "invalid", f"{wrong:,} of {len(o.rows):,} answers are wrong", remedy
        )
    if not _planted(o):
        return Check(
            name, None, "invalid", "the model has no planted rule", "use the default model"
        )
    unchecked = int((~o.rows["failed"] & (o.rows["answer"] != "exact")).sum())
    return Check(
        name,
        not unchecked,
        "invalid",
        f"{unchecked:,} complete answers were not checked" if unchecked else "all",
        remedy,
    )


def agreement(o: Observed) -> Check | None:
    """Without a planted rule: the share of greedy answers that equal those of the campaign's first
    server. Engines may part ways at a near tie of two tokens, so that a difference is no proof of
    an error.
    """
    said = o.run.get("agreement")
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


def rows(o: Observed) -> Check:
    """As many rows as requests were sent and as Locust counted."""
    name, remedy = (
        "rows",
        "look at load.log: a listener's exception or a killed load worker loses rows",
    )
    counts = o.run.get("counts") or {}
    numbers = {key: counts.get(key) for key in ("sent", "rows", "locust_requests")} | {
        "read": len(o.rows)
    }
    detail = ", ".join(f"{key} {value}" for key, value in numbers.items())
    known = {value for value in numbers.values() if value is not None}
    ok = False if len(known) > 1 else None if None in numbers.values() else True
    return Check(name, ok, "invalid", detail, remedy)


def served(o: Observed) -> Check:
    """The server's own counters rose by as many answers (status 200) and tokens as came complete.
    Whatever failed here (cut off at the drain's end, timed out, broken) may have been answered
    there, in part or whole: by so much the server may have counted more. Only a warning for a
    server that we did not start: it may have other clients, or stand behind a balancer with others.
    """
    name, severity = "server's counts", "invalid" if o.run.get("command") else "warning"
    remedy = (
        "look for lost rows, for other clients of this server, and in its log for a start in the"
        " middle of the load"
    )
    said = o.run.get("served")
    if not said:
        return Check(
            name,
            None,
            severity,
            "not measured: no counters of requests and tokens under names that we know",
            remedy,
        )
    whole, broken = o.rows[~o.rows["failed"]], o.rows[o.rows["failed"] & o.rows["sent_s"].notna()]
    least = {"requests": len(whole), "tokens": whole["tokens"].sum(skipna=False)}
    more = {"requests": len(broken), "tokens": broken["max_tokens"].sum()}
    # no tokens if an answer came without usage
    known = [what for what in least if not math.isnan(least[what])]
    ok = all(least[what] <= said[what] <= least[what] + more[what] for what in known)
    detail = ", ".join(
        f"{what}: {said[what]:,} by the server's count, {least[what]:,.0f} here"
        + (f" and at most {more[what]:,.0f} in what failed" if more[what] else "")
        for what in known
    )
    return Check(name, ok, severity, detail, remedy)


def token_counts(o: Observed) -> Check:
    """Complete answers have the tokens that were asked for, by the server's usage and by the
    chunks, whose words are counted. A server that never gives usage is judged by the chunks alone.
    """
    name, remedy = (
        "token counts",
        "the server must honour max_tokens and ignore_eos, and its usage must be right",
    )
    if not _planted(o):
        return Check(
            name, None, "invalid", "the model has no planted rule", "use the default model"
        )
    done = o.rows[~o.rows["failed"]]
    chunks = metrics.sums(done["token_n"])
    told = done["tokens"] if done["tokens"].notna().any() else chunks
    bad = int(((told != done["max_tokens"]) | (told != chunks)).sum())
    return Check(
        name,
        not bad,
        "invalid",
        f"{bad:,} of {len(done):,} answers have another number of tokens",
        remedy,
    )


def errors(o: Observed) -> Check:
    """At most 1% of the window's requests failed."""
    share = metrics.error_share(o)
    common = o.scheduled["error"].value_counts()
    detail = f"{share:.1%} failed" + (f", most often: {common.index[0]}" if len(common) else "")
    return _limit(
        "errors",
        share <= 0.01,
        share,
        "warning",
        detail,
        "lower the load, or look at the server's log",
    )


def arrivals(o: Observed) -> Check | None:
    """Open loop: as many requests were scheduled and sent in the window as the arrival process had
    planned, within 2% (or one).
    """
    planned = (o.run.get("counts") or {}).get("planned")
    if planned is None:
        return None
    found = {"scheduled": len(o.scheduled)}
    if o.scheduled["slot_s"].isna().all():  # a cap on concurrency sends later by intention
        found["sent"] = int(o.inside(o.rows["sent_s"]).sum())
    ok = planned > 0 and all(abs(n - planned) <= max(0.02 * planned, 1) for n in found.values())
    detail = (
        f"{planned:,} planned, {' and '.join(f'{n:,} {what}' for what, n in found.items())} in the"
        " window"
    )
    return Check("arrivals", ok, "invalid", detail, "use more load workers or a lower rate")


def load_cpu(o: Observed) -> Check:
    """The load generator used less than 80% of the cores that it could use."""
    share = metrics.load_cpu_share(o)
    return _limit(
        "load generator's CPU",
        share < 0.8,
        share,
        "invalid",
        f"{share:.0%} of its core(s)",
        "use more load workers, or more cores for them",
    )


def send_lag(o: Observed) -> Check:
    """P99 of sent - scheduled (under a cap on concurrency: sent - slot) is below 1% of the median
    E2E or below 5 ms, whichever is larger.
    """
    lag = stats.percentile(o.latencies("client_lag_s"), 99)
    bound = np.fmax(0.01 * stats.percentile(o.latencies("e2e_s", failures=False), 50), 0.005)
    return _limit(
        "send lag",
        lag < bound,
        lag,
        "invalid",
        f"send lag P99 {lag * 1e3:.1f} ms, bound {bound * 1e3:.1f} ms",
        "give the load generator a core of its own, or use more load workers",
    )


def client_error(o: Observed) -> Check:
    """The load generator cannot have changed what is reported by more than 5%, by
    analysis/checks/load_generator.py; else the case is client-bound.
    """
    name, remedy = (
        "client error",
        (
            "use more load workers, fewer streams or more cores for the load generator; stop what"
            " else runs"
        ),
    )
    found = load_generator.problems(o)
    if found:
        return Check(name, False, "invalid", f"client-bound: no number: {'; '.join(found)}", remedy)
    shares = load_generator.error_shares(o)
    if not shares:
        return Check(name, None, "invalid", "too few requests", remedy)
    worst, share = next(iter(shares.items()))
    calibrated = "" if load_generator.floor_of(o) else ", but the load generator was not calibrated"
    return Check(name, True, "invalid", f"at most {share:.1%} ({worst}){calibrated}", remedy)


def warm_up(o: Observed) -> Check:
    """The load was steady before the window opened, by the test of
    loadtests/generator/steady_state.py; the window itself is tested below.
    """
    said = o.run.get("warmup") or {}
    detail = f"after {said['took_s']:.0f} s: {said['why']}" if said else "not recorded"
    return Check(
        "warm-up",
        said.get("steady"),
        "warning",
        detail,
        "lengthen the scenario's warmup_max_s, or lower the load",
    )


def own_times(o: Observed) -> Check:
    """The server's own times of the window's completed requests fit the client's.

    From sent to first token cannot be shorter than queue_ms + prompt_ms: more than 1 ms shorter in
    more than 1% of the requests means a wrong clock or stamp (in 17,000 requests of three servers
    it was never less than 0.1 ms longer). From first token to last is as long as predicted_ms, in
    the median within 10 ms or 2%: it is shorter if something holds the stream back. Medians agree
    within 0.1 ms where an event loop sends and computes nothing. An engine that computes in the
    process that sends hands on its first token up to one switch interval of Python's lock late, 5
    ms (Flask with Transformers: 3 ms), hence 10 ms. Beside 16 computing threads single requests are
    off by 2% either way and their median by 0.1%, hence 2%.
    """
    name, remedy = (
        "server's times",
        "look for what buffers the stream between engine and client, or for a wrong clock",
    )
    r = o.scheduled[~o.scheduled["failed"]].dropna(subset=["first_s", "prompt_ms", "predicted_ms"])
    if not len(r):
        return Check(name, None, "warning", "the server gives no timings", remedy)
    impossible = float(
        (1e3 * (r["first_s"] - r["sent_s"]) < r["queue_ms"].fillna(0) + r["prompt_ms"] - 1).mean()
    )
    longer = float((1e3 * (r["last_s"] - r["first_s"]) - r["predicted_ms"]).median())
    bound = max(10.0, 0.02 * float(r["predicted_ms"].median()))
    detail = (
        f"{impossible:.1%} of the first tokens came before the server had made them; first to last"
        f" token took {longer:+.1f} ms more than there, bound {bound:.0f} ms"
    )
    return Check(name, impossible <= 0.01 and abs(longer) <= bound, "warning", detail, remedy)


def steady(o: Observed) -> Check:
    """The straight line through the tokens/s of the window's 12 slices changes by at most 10% of
    the mean over the window, or not significantly (t-test of the slope, 1%). Likewise, by 20%
    (0.1%), the mean TTFT and the mean E2E of the requests scheduled in each: in an open loop a
    server that cannot keep up has an even throughput and a growing queue. The test of these is
    stricter because queues also wander by chance, slices beside each other being alike. Above 20%
    there is no number, below it is a warning: the mean is then at most 10% off either end. Error
    rates: tests/studies/steadiness.py.

    Where the plan varies the demand, nothing is meant to be steady and nothing is tested.
    """
    name, remedy = (
        "steadiness",
        (
            "lengthen the warm-up or the window; if it never settles, the load is above what the"
            " server carries"
        ),
    )
    scenario = o.campaign["scenarios"].get(o.run["case"]["scenario"], {})
    if scenario.get("arrivals") == "trace" or "profile" in scenario:
        return Check(
            name, None, "invalid", "not tested: the scenario's demand varies by plan", remedy
        )
    times, numbers = o.tokens
    if not o.length > 0 or not o.inside(times).any():
        return Check(name, None, "invalid", "no tokens in the window", remedy)
    edges = np.linspace(*o.window, SLICES + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    tests = [
        (
            "tokens/s",
            stats.trend(
                middles, np.histogram(times, SLICES, o.window, weights=numbers)[0], o.length
            ),
            0.10,
            0.01,
        )
    ]
    done = o.scheduled[~o.scheduled["failed"]]
    counts = np.histogram(done["scheduled_s"], bins=edges)[0]
    some = counts > 0  # where requests are few, slices may have none
    for label, column in (("TTFT", "ttft_s"), ("E2E", "e2e_s")):
        if some.sum() >= SLICES / 2:
            means = (
                np.histogram(done["scheduled_s"], bins=edges, weights=done[column])[0][some]
                / counts[some]
            )
            tests.append((label, stats.trend(middles[some], means, o.length), 0.20, 0.001))
    changes = [
        abs(found.change)
        for _, found, share, p in tests
        if abs(found.change) > share and found.p < p
    ]
    detail = ", ".join(
        f"{label} {found.change:+.1%} (p = {found.p:.2g})" for label, found, _, _ in tests
    )
    severity = "invalid" if max(changes, default=1.0) > 0.20 else "warning"
    return Check(name, not changes, severity, f"change over the window: {detail}", remedy)


def silent(o: Observed) -> Check | None:
    """Closed loop: no silence during which an open loop would have gathered three times as many
    waiting requests (analysis/checks/hidden_pauses.py).
    """
    if not o.run["case"]["users"]:
        return None
    name, remedy = (
        "silence",
        "measure with an open loop, too: --scenarios steady, with a --rate below this throughput",
    )
    found = hidden_pauses.longest(o)
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


def busy(o: Observed) -> Check:
    """Processes other than server and load generator used at most 15% of the machine's cores in the
    window.
    """
    cores = _cores(o)
    other = (o.slope("cpu_busy_s") - o.slope("server_cpu_s") - o.slope("load_cpu_s")) / (
        cores or NAN
    )
    return _limit(
        "other processes",
        other <= 0.15,
        other,
        "warning",
        f"other processes used {other:.0%} of {cores or '?'} cores",
        "stop what else runs on this machine",
    )


def steal(o: Observed) -> Check:
    """The hypervisor took at most 2% of the machine's cores in the window."""
    share = o.slope("cpu_steal_s") / (_cores(o) or NAN)
    return _limit(
        "steal",
        share <= 0.02,
        share,
        "warning",
        f"the hypervisor took {share:.1%}",
        "use a machine of your own",
    )


def swap(o: Observed) -> Check:
    """Swap in use did not grow in the window."""
    used = o.samples("swap_used_bytes")
    grown = (
        float(used["swap_used_bytes"].iloc[-1] - used["swap_used_bytes"].iloc[0])
        if len(used) > 1
        else NAN
    )
    return _limit(
        "swap",
        grown <= 0,
        grown,
        "warning",
        f"swap grew by {grown / 2**20:.0f} MiB",
        "use fewer workers or a smaller model",
    )


def gpu(o: Observed) -> Check | None:
    """No GPU was throttled in the window, and the SM clock's P5 to P95 span at most 10% of its
    median.
    """
    name, remedy = "GPU clocks", "cool the GPU, lock its clocks, and let nothing else run on it"
    details = []
    for column in o.gpu_columns("throttle_reasons"):
        bits = int(
            np.bitwise_or.reduce(o.samples(column)[column].astype("int64").to_numpy(), initial=0)
        )
        details += [
            f"{column.split('_')[0]} throttled: {text}"
            for bit, text in THROTTLING.items()
            if bits & bit
        ]
    for column in o.gpu_columns("sm_clock_mhz"):
        clocks = o.samples(column)[column].to_numpy()
        low, middle, high = (stats.percentile(clocks, p) for p in (5, 50, 95))
        if high - low > 0.1 * middle:
            details.append(f"{column.split('_')[0]} clock {low:.0f} to {high:.0f} MHz")
    if not o.gpu_columns("sm_clock_mhz"):
        return None
    return Check(name, not details, "warning", "; ".join(details) or "no throttling", remedy)


def sample_size(o: Observed) -> Check:
    """A P99 exists at 95% confidence in 299 requests or more."""
    n, needed = len(o.scheduled), stats.needed(99)
    return Check(
        "P99 sample",
        n >= needed,
        "warning",
        f"{n:,} requests in the window, P99 needs {needed}",
        "use a longer window",
    )


def cut_off(o: Observed) -> Check:
    """Nothing was still unanswered when the drain ended."""
    n = (o.run.get("counts") or {}).get("cut_off")
    return Check(
        "unanswered",
        None if n is None else n == 0,
        "warning",
        f"{n} cut off at the end of the drain",
        "lower the load",
    )


def _limit(name: str, ok: Any, value: float, severity: str, detail: str, remedy: str) -> Check:
    if math.isnan(value):
        return Check(name, None, severity, "not measured", remedy)
    return Check(name, bool(ok), severity, detail, remedy, float(value))


def _planted(o: Observed) -> bool:
    """Whether every right answer is known; the simulated engine's always are."""
    return (
        bool((o.campaign.get("model") or {}).get("planted"))
        or o.run["case"]["engine"] == "simulated"
    )


def _cores(o: Observed) -> int | None:
    """The machine's cores: as the manifest says."""
    cpu = (o.campaign.get("manifest") or {}).get("cpu")
    cores = cpu.get("cores") if isinstance(cpu, dict) else None
    return int(cores) if cores else None
