"""How late an event loop is, counted at even moments: what is due while it is busy counts, too."""

import asyncio
import time
from typing import Any

from servers.contract import metrics, metrics_middleware

NAME = "serveoff_event_loop_lag_seconds"


def said(**labels: str) -> float:
    return (
        metrics.REGISTRY.get_sample_value(f"{NAME}_bucket" if labels else f"{NAME}_count", labels)
        or 0
    )


def asked_of(busy: Any) -> tuple[float, float, float]:
    """What an application that does `busy` when it is asked adds: all counts, those of at most 100
    ms, and the time it took, s.
    """

    async def app(*_: Any) -> None:
        await busy()

    async def serve() -> None:
        for _ in range(2):  # the second request must not count it twice
            await metrics_middleware.AsgiMetrics(app)(
                {"type": "http", "path": "/health", "headers": []}, None, None
            )

    before, began = (said(), said(le="0.1")), time.perf_counter()
    asyncio.run(serve())
    return said() - before[0], said(le="0.1") - before[1], time.perf_counter() - began


def test_an_event_loop_that_is_free() -> None:
    counts, short, took_s = asked_of(lambda: asyncio.sleep(0.5))
    assert 15 <= counts <= took_s / metrics.LOOP_TICK_S
    assert short > 0


def test_a_blocked_event_loop_is_late_for_all_that_was_due_meanwhile() -> None:
    async def block() -> None:
        time.sleep(0.6)
        await asyncio.sleep(0.01)

    counts, short, _ = asked_of(block)
    assert counts >= 20, "one callback that is late would be one"
    assert 1 <= counts - short <= counts and counts - short >= 15, (
        "those due in the first 500 ms of each block are more than 100 ms late"
    )
