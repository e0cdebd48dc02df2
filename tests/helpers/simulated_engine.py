"""The simulated engine with chosen times, called as blocking and async servers call it."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from servers.contract.api import ChatCompletionRequest, CompletionRequest
from servers.engines import Settings, simulated
from tests.helpers.heard_generation import Heard, blocking, streamed

QUICK = {"prefill_ms": 4, "step_ms": 2}


def settings(**times: Any) -> Settings:
    return Settings("simulated", "m", "", 1, times)


def hear(
    kind: str, *requests: CompletionRequest | ChatCompletionRequest, **times: Any
) -> list[Heard]:
    """Generate all requests at once on one simulated engine, submitted in this order. `kind` is
    "blocking" (in threads) or "async".
    """
    if kind == "async":

        async def all_of_them() -> list[Heard]:
            engine = simulated.SimulatedAsyncEngine(settings(**times))
            return await asyncio.gather(*(streamed(engine, request) for request in requests))

        return asyncio.run(all_of_them())
    engine = simulated.SimulatedBlockingEngine(settings(**times))
    with ThreadPoolExecutor(len(requests)) as pool:
        waiting = []
        for request in requests:
            waiting.append(pool.submit(blocking, engine, request))
            time.sleep(0.005)  # without a pause threads start in any order
        return [one.result() for one in waiting]


both = pytest.mark.parametrize("kind", ["blocking", "async"])
