"""Splits a request's E2E into parts that add up, for the report's section "Why".

The client knows when a request was scheduled, when it got a slot and when its first byte was sent.
The server reports how long its own queue, the prompt and the generation took (`timings`). Nothing
reports time in the socket backlog or waiting for a free worker: it is the remainder from sent to
the first token, together with the network and the framework. Without a server's timings only three
parts are known: the client's, the time to the first token, and the stream after it. PARTS describes
each part.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.dataset import Json
from analysis.formatting import format_number
from analysis.stats import percentile, values_needed
from analysis.summary import Comparison, ServerSummary, Summary

# As in checks.load.check_own_times: a server that reports a longer time than the client waited has
# a wrong clock.
FITS_S = 0.001
# The columns of the section's last table.
IN_ENGINE = (
    "running_mean",
    "kv_useful_share",
    "kv_used_peak_share",
    "preemptions",
    "prefix_hit_share",
    "event_loop_lag_p99_s",
)
LATE = 0.1  # share of the E2E above which an event loop's lag belongs in the sentence


class Part(NamedTuple):
    """A part of a request's E2E. `label` heads a column; `what` completes the sentence "74% of the
    slowest 1% is ...". Colours are Okabe and Ito's, as in plots/.
    """

    label: str
    what: str
    colour: str
    hatch: str = ""


SERVER_PHASES = {
    "slot_s": Part(
        "cap on concurrency",
        "waiting for a slot under the scenario's cap on concurrency",
        "#000000",
    ),
    "client_s": Part(
        "load generator", "waiting in the load generator and for a connection", "#CC79A7", "xx"
    ),
    "before_s": Part(
        "before the engine",
        "waiting before the server's engine (socket backlog, free worker, framework, network)",
        "#D55E00",
        "//",
    ),
    "queue_s": Part(
        "server's queue", "waiting in the server's own queue for its engine", "#E69F00", "||"
    ),
    "prompt_s": Part("prompt", "the prompt, from the engine's start to the first token", "#56B4E9"),
    "generation_s": Part("generation", "generation, from the first token to the last", "#0072B2"),
    "after_s": Part(
        "stream beyond generation",
        "the stream beyond generation (framework, network, buffers)",
        "#009E73",
        "\\\\",
    ),
}
PARTS = SERVER_PHASES | {
    "first_s": Part(
        "to the first token",
        "waiting for the first token, which this server does not split into parts",
        "#D9D9D9",
        "//",
    ),
    "stream_s": Part("first token to end", "the stream from the first token on", "#8C8C8C"),
}
CLIENT_PHASES = ["slot_s", "client_s", "first_s", "stream_s"]


def split_latencies(latencies: pd.DataFrame) -> pd.DataFrame:
    """Splits each completed request of a case's frame in Summary.latencies: e2e_s, the PARTS in
    seconds, and in_flight (other requests when it was sent). The parts of SERVER_PHASES add up to
    e2e_s, and so do those of CLIENT_PHASES. The server's parts are nan where it gave no times, or
    longer times than the client waited.

    The two clocks are not synchronised, so only durations are known. The time from sent to first
    token minus the server's own times is the way to the engine (before) plus the delay of the first
    token. The rest of the stream minus predicted_ms is how much later the end was than the first
    token. It is negative if only the first token was held back. The engine was already generating
    then, so that delay is not a wait before the engine, and is subtracted from `before_s`.
    """
    r = latencies[np.isfinite(latencies["e2e_s"]) & latencies["ttft_s"].notna()]
    found = r[["e2e_s", "in_flight"]].copy()
    found["slot_s"] = r["slot_wait_s"].fillna(0.0)
    found["client_s"] = r["send_lag_s"] - found["slot_s"]
    found["first_s"] = r["ttft_s"] - r["send_lag_s"]
    found["stream_s"] = r["e2e_s"] - r["ttft_s"]
    # Some endpoints give the other two times without queue_ms: their queue then counts as before
    # the engine.
    queue, prompt, generation = (
        r["queue_ms"].fillna(0.0) / 1e3,
        r["prompt_ms"] / 1e3,
        r["predicted_ms"] / 1e3,
    )
    later = found["stream_s"] - generation
    before = found["first_s"] - queue - prompt + later.clip(upper=0.0)
    phases = pd.DataFrame(
        {
            "before_s": before,
            "queue_s": queue,
            "prompt_s": prompt,
            "generation_s": generation,
            "after_s": later.clip(lower=0.0),
        }
    )
    return found.join(phases.where(before >= -FITS_S))


class Bar(NamedTuple):
    """Means over some requests of each run, then over runs. `which`: these requests in words;
    `parts`: seconds by name in PARTS, which add up to `e2e_s`; `requests`: how many in all runs;
    `in_flight`: the median number of other requests in flight when one was sent.
    """

    which: str
    e2e_s: float
    parts: dict[str, float]
    requests: int
    in_flight: float

    @property
    def has_server_phases(self) -> bool:
        return "queue_s" in self.parts

    def share(self, part: str) -> float:
        return self.parts[part] / self.e2e_s


def median_bar(runs: Sequence[pd.DataFrame]) -> Bar | None:
    """The requests whose E2E lies between P45 and P55 of their run; None if a run has too few
    requests for a median.
    """

    def chosen(run: pd.DataFrame) -> pd.DataFrame:
        low, high = (percentile(run["e2e_s"].to_numpy(), p) for p in (45, 55))
        return run[run["e2e_s"].between(low, high)]

    return _bar("the median request", runs, chosen) if _least(runs) >= values_needed(50) else None


def tail_bar(runs: Sequence[pd.DataFrame]) -> Bar | None:
    """The requests whose E2E is at least P99 of their run; at least P95 if a run has too few
    requests for P99; None if a run has too few for P95.
    """
    p = next((p for p in (99, 95) if _least(runs) >= values_needed(p)), None)
    if p is None:
        return None
    return _bar(
        f"the slowest {100 - p}%",
        runs,
        lambda run: run[run["e2e_s"] >= percentile(run["e2e_s"].to_numpy(), p)],
    )


def _least(runs: Sequence[pd.DataFrame]) -> int:
    return min(map(len, runs), default=0)


def _bar(
    which: str, runs: Sequence[pd.DataFrame], choose: Callable[[pd.DataFrame], pd.DataFrame]
) -> Bar:
    chosen = [choose(run) for run in runs]
    names = (
        list(SERVER_PHASES)
        if all(run["queue_s"].notna().all() for run in chosen)
        else CLIENT_PHASES
    )
    mean = {
        name: float(np.mean([run[name].mean() for run in chosen])) for name in ["e2e_s", *names]
    }
    in_flight = float(np.mean([run["in_flight"].median() for run in chosen]))
    return Bar(which, mean.pop("e2e_s"), mean, sum(map(len, chosen)), in_flight)


def describe_wait(part: str, bar: Bar, run: Json) -> str:
    """Describes a part in words. It names a resource only if all of it is known to have been in
    use, because at least as many other requests were in flight. That is known of Gunicorn's sync
    workers and their threads, which take one request at a time (with threads, a sync worker becomes
    a gthread worker: Gunicorn's settings), and of a thread pool whose size was chosen with --set.
    On the simulated engine the request may have waited for one of the engine's slots instead.
    """
    what = PARTS[part].what
    if part == "before_s" and (own := _gunicorn(run.get("command") or [])):
        workers, threads = own
        if bar.in_flight >= workers * threads:
            return (
                f"waiting for {_one_of(workers * threads, 'worker' if threads == 1 else 'thread')}"
                " (including framework and network)"
            )
    case = run.get("case") or {}
    threads = int((case.get("options") or {}).get("threads") or 0)
    if part == "queue_s" and case.get("engine") != "simulated" and 0 < threads <= bar.in_flight:
        return f"waiting in the server's own queue for {_one_of(threads, 'thread')}"
    return what


def _gunicorn(command: list[str]) -> tuple[int, int] | None:
    """(workers, threads of each) if the command is a Gunicorn whose workers take one request at a
    time per thread, else None.
    """
    given = dict(itertools.pairwise(command))
    if "gunicorn" not in {Path(word).name for word in command} or given.get(
        "--worker-class"
    ) not in ("sync", "gthread"):
        return None
    return int(given["--workers"]) if "--workers" in given else 1, int(given.get("--threads", "1"))


def _one_of(n: int, noun: str) -> str:
    return f"the only {noun}" if n == 1 else f"one of {n} {noun}s"


class Attribution(NamedTuple):
    """The bars of one system under one traffic, without those that have too few requests."""

    system: ServerSummary
    run: Json
    bars: list[Bar]

    @property
    def sentence(self) -> str:
        """States the largest part of the tail, and its share of the median request."""
        if not self.bars:
            return "too few completed requests for an explanation."
        bar = self.bars[-1]
        most = max(bar.parts, key=bar.share)
        text = f"{bar.share(most):.0%} of {bar.which} is {describe_wait(most, bar, self.run)}"
        running = float(self.system.valid["running_mean"].mean())
        if most in ("prompt_s", "generation_s") and running > 1:
            text += f", with {format_number(running)} requests at once on average"
        lag = float(self.system.valid["event_loop_lag_p99_s"].mean())
        if (
            most in ("before_s", "after_s", "first_s", "stream_s")
            and LATE * bar.e2e_s <= lag < np.inf
        ):
            text += f", with an event loop that was up to {format_number(1e3 * lag)} ms late (P99)"
        if len(self.bars) > 1:
            other = self.bars[0]
            text += (
                f"; of {other.which} it is {other.share(most):.0%}" if most in other.parts else ""
            )
            mean = f"{format_number(1e3 * bar.e2e_s)} and {format_number(1e3 * other.e2e_s)} ms"
        else:
            mean = f"{format_number(1e3 * bar.e2e_s)} ms"
        return f"{text} (mean E2E {mean})."


def attribute_latency(summary: Summary, comparison: Comparison) -> list[Attribution]:
    """One for each system of the comparison with a valid case, in its order."""
    made = []
    for system in comparison.systems:
        if len(system.valid):
            runs = [split_latencies(summary.latencies[index]) for index in system.valid.index]
            bars = [bar for bar in (median_bar(runs), tail_bar(runs)) if bar]
            made.append(Attribution(system, summary.campaign.runs[system.valid.index[0]], bars))
    return made


def visible_parts(attributions: Sequence[Attribution]) -> list[str]:
    """The parts that any of them has. The wait for a slot exists only under a cap on
    concurrency.
    """
    bars = [bar for a in attributions for bar in a.bars]
    return [
        name
        for name in PARTS
        if any(name in bar.parts and (name != "slot_s" or bar.parts[name] > 0) for bar in bars)
    ]
