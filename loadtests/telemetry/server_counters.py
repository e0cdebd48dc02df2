"""The server's own counters: requests and tokens between two moments."""

import math
import time
from typing import NamedTuple

from loadtests.telemetry.server_metrics import (
    KNOWN_SERVERS,
    CounterNames,
    MetricsUnavailable,
    Sample,
    fetch_metrics,
    parse_metrics,
)
from servers.profile.access import Access
from servers.runtime.limits import QUIET_S


class CounterValues(NamedTuple):
    """A server's counters since its start. `busy` is 0 when the server is idle. `requests` is None
    if the server does not count them.
    """

    by: CounterNames
    requests: float | None
    tokens: float
    busy: float


def sum_counters(samples: list[Sample]) -> CounterValues | None:
    """Sums a scrape into counters; None if no kind in KNOWN_SERVERS has these names."""
    for by in KNOWN_SERVERS:
        tokens = [sample.value for sample in samples if sample.name == by.tokens]
        if tokens:  # the counter of requests has no series before the first request
            requests = [
                sample.value
                for sample in samples
                if sample.name == by.requests
                and all(sample.labels.get(label) in values for label, values in by.complete.items())
            ]
            return CounterValues(
                by,
                sum(requests) if by.requests else None,
                sum(tokens),
                sum(sample.value for sample in samples if sample.name in by.busy),
            )
    return None


def read_when_idle(
    base_urls: str, patience_s: float = QUIET_S, access: Access | None = None
) -> CounterValues | None:
    """Reads the counters once the server is idle, when every request is counted. After `patience_s`
    returns the last values; None if the server has no metrics, or none with known names.
    """
    deadline = time.perf_counter() + patience_s
    found = None
    while (left_s := deadline - time.perf_counter()) > 0:
        try:
            found = sum_counters(parse_metrics(fetch_metrics(base_urls, left_s, access=access)))
        except MetricsUnavailable:
            return found
        if found is None or found.busy == 0:
            return found
        time.sleep(min(0.1, left_s))
    return found


def counter_delta(
    before: CounterValues | None, after: CounterValues | None
) -> dict[str, int] | None:
    """Returns {requests, tokens} between the two readings, without requests if the server does not
    count them; None if nothing is known.
    """
    if before is None or after is None or before.by != after.by:
        return None
    done = {"tokens": after.tokens - before.tokens}
    if before.requests is not None and after.requests is not None:
        done = {"requests": after.requests - before.requests, **done}
    return (
        {name: round(value) for name, value in done.items()}
        if all(map(math.isfinite, done.values()))
        else None
    )
