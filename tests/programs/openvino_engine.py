"""Runs the engine OpenVINO with six blocks of memory; prints what happened as JSON.

python -m tests.programs.openvino_engine FOLDER: the tiny model's, with SERVEOFF_CONVERTED set.
"""

import asyncio
import itertools
import json
import sys
import time
from typing import Any

from servers.contract import oracle
from servers.contract.api import ContractError
from servers.engines import Settings, openvino
from tests.helpers.heard_generation import completion, streamed

BLOCKS = 6
ROOM = BLOCKS * openvino.BLOCK_TOKENS
TINY_BYTES_PER_TOKEN = 1536
REFUSED = 7  # max_tokens of a request that the pipeline refuses


class RefusingPipeline:
    step_s = 0.0  # that each step takes longer

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def add_request(self, number: int, ids: Any, config: Any) -> Any:
        if config.max_new_tokens == REFUSED:
            raise ValueError("refused")
        return self.pipeline.add_request(number, ids, config)

    def step(self) -> None:
        time.sleep(self.step_s)
        self.pipeline.step()


async def texts(engine: Any, *requests: Any) -> list[str]:
    heard = await asyncio.gather(
        *(streamed(engine, each) for each in requests), return_exceptions=True
    )
    return [repr(one) if isinstance(one, BaseException) else one.text for one in heard]


async def items_of(engine: Any, job: Any) -> list[Any]:
    return [item async for item in engine.stream(job)]


async def act(engine: Any) -> dict[str, Any]:
    prompts = [" ".join(oracle.VOCABULARY[50 * i : 50 * i + 20]) for i in range(12)]
    full = [completion(prompt, ROOM - 20, ignore_eos=True) for prompt in prompts]
    jobs = [engine.prepare(each) for each in full]  # now, so that their clocks start in this order
    heard = await asyncio.gather(*(items_of(engine, job) for job in jobs))
    waits = [items[-1].queue_ms for items in heard]
    right = [oracle.continuation(prompt, ROOM - 20) for prompt in prompts]
    try:
        engine.prepare(completion("ba be", ROOM - 1))
        code = None
    except ContractError as error:
        code = error.code
    engine.pipeline = RefusingPipeline(engine.pipeline)
    beside = await texts(engine, *(completion(max_tokens=n) for n in (8, REFUSED, 8)))
    drawn = completion(max_tokens=12, ignore_eos=True).model_copy(update={"temperature": 2.0})
    seeded = drawn.model_copy(update={"seed": -5})
    alone = await texts(engine, seeded)
    together = await texts(engine, seeded, drawn, drawn, seeded)
    engine.pipeline.step_s = 0.02
    begun = asyncio.create_task(texts(engine, completion("ba", ROOM - 1, ignore_eos=True)))
    waiting = asyncio.create_task(texts(engine, completion("be", ROOM - 1, ignore_eos=True)))
    await asyncio.sleep(0.1)
    await asyncio.to_thread(engine.close)
    return {
        "exact": ["".join(items[:-1]) for items in heard] == right,
        "waits_in_turn": all(later > before for before, later in itertools.pairwise(waits)),
        "too_long": code,
        "beside_a_refused_one": beside,
        "seed_repeats": {*alone, together[0], together[3]} == {alone[0]},
        "without_seed": len({alone[0], together[1], together[2]}),
        "after_close": [*await begun, *await waiting, *await texts(engine, completion())],
    }


if __name__ == "__main__":
    openvino.CACHE_BYTES = ROOM * TINY_BYTES_PER_TOKEN
    settings = Settings("openvino", "m", sys.argv[1], threads=1, simulated={})
    print(json.dumps(asyncio.run(act(openvino.OpenvinoEngine(settings)))))
