"""FastAPI with a cache of whole responses in front of an async engine, streamed or plain.

It caches only reproducible responses: greedy ones, and sampled ones with a seed.
"""

import hashlib
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import StreamingResponse
from prometheus_client import Counter

from servers import engines
from servers.contract import api
from servers.contract.api import CompletionResponse, Outcome, Piece
from servers.fastapi_cached import store
from servers.frameworks.fastapi_base import completions, create_app

HITS = Counter("serveoff_cache_hits", "responses found in the cache")
MISSES = Counter("serveoff_cache_misses", "cacheable responses not found in the cache")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield
    await cache.close()


cache = store.from_environment()
app = create_app("Serveoff: FastAPI, response cache", engines.load_async)
app.include_router(APIRouter(lifespan=lifespan))


@completions(app)
async def respond(request: api.Request) -> Any:
    engine = app.state.engine
    job = engine.prepare(request)
    reply = CompletionResponse(request, engine.model)
    repeatable = request.temperature == 0 or request.seed is not None
    items = cached(job) if repeatable else engine.stream(job)
    if request.stream:
        return StreamingResponse(
            events(items, reply), media_type=api.SSE_CONTENT_TYPE, headers=api.SSE_HEADERS
        )
    *pieces, outcome = [item async for item in items]
    return reply.complete("".join(pieces), outcome)


async def events(items: AsyncIterator[Any], reply: CompletionResponse) -> AsyncIterator[str]:
    try:
        async for item in items:
            yield reply.event(item)
    except Exception as error:
        logging.getLogger("uvicorn.error").exception("generation failed")
        yield reply.event(error)


async def cached(job: engines.Job) -> AsyncIterator[Any]:
    """Yield the items of the engine's `stream`, from the cache if possible."""
    # everything that may change the pieces of the response
    wanted = job.request.model_dump_json(exclude={"stream", "stream_options"})
    key = hashlib.sha256(f"{job.request.continuous_usage} {wanted}".encode()).hexdigest()
    if known := await cache.get(key):
        HITS.inc()
        pieces, outcome = json.loads(known)
        with engines.Generation(job) as run:  # so the metrics count the tokens
            run.tokens = outcome["completion_tokens"]
            for text, described in pieces:
                yield Piece(text, **described) if described else text
        yield Outcome(**outcome)
        return
    MISSES.inc()
    pieces = []
    async for item in app.state.engine.stream(job):
        # cached before the end is sent: a client may repeat the request right after it
        if isinstance(item, Outcome):
            # a hit takes no time in the engine
            again = replace(item, queue_ms=0.0, prompt_ms=0.0, predicted_ms=0.0)
            await cache.put(key, json.dumps([pieces, asdict(again)]))
        else:
            pieces.append((item, vars(item) if isinstance(item, Piece) else None))
        yield item
