"""The lag of an event loop at regular ticks, including the ticks that are due while it is busy."""

import asyncio
import time
from typing import Any

from servers.contract import metrics, metrics_middleware

NAME = "serveoff_event_loop_lag_seconds"


def count(**labels: str) -> float:
    return (
        metrics.REGISTRY.get_sample_value(f"{NAME}_bucket" if labels else f"{NAME}_count", labels)
        or 0
    )


def counts_during(busy: Any) -> tuple[float, float, float]:
    """Send requests to an application that runs `busy` for each. Return the added counts, those of
    at most 100 ms, and the elapsed time in s.
    """

    async def app(*_: Any) -> None:
        await busy()

    async def serve() -> None:
        for _ in range(2):  # the second request must not count it twice
            await metrics_middleware.AsgiMetrics(app)(
                {"type": "http", "path": "/health", "headers": []}, None, None
            )

    before, began = (count(), count(le="0.1")), time.perf_counter()
    asyncio.run(serve())
    return count() - before[0], count(le="0.1") - before[1], time.perf_counter() - began


def test_an_idle_event_loop() -> None:
    counts, short, took_s = counts_during(lambda: asyncio.sleep(0.5))
    assert 15 <= counts <= took_s / metrics.LOOP_TICK_S
    assert short > 0


def test_a_blocked_event_loop_is_late_for_every_tick_that_was_due() -> None:
    async def block() -> None:
        time.sleep(0.6)
        await asyncio.sleep(0.01)

    counts, short, _ = counts_during(block)
    assert counts >= 20, "a single late callback would count once"
    assert 1 <= counts - short <= counts and counts - short >= 15, (
        "ticks due in the first 500 ms of each block are more than 100 ms late"
    )
