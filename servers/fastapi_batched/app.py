"""FastAPI in front of a batching queue: requests wait until the batch is full or its first request
has waited long enough, then run together.

The queue's thread (servers/engines/batching.py) hands each token to the event loop with
`call_soon_threadsafe`.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

from servers import engines
from servers.contract import api
from servers.contract.api import CompletionResponse, Outcome
from servers.engines.batching import BatchQueue
from servers.frameworks.fastapi_base import completions, create_app


def load() -> BatchQueue:
    options = (int(os.environ[f"SERVEOFF_{name}"]) for name in ("BATCH", "BATCH_WAIT_MS", "QUEUE"))
    return BatchQueue(engines.load_batch(), *options)


app = create_app("Serveoff: FastAPI, batching queue", load)
Items = asyncio.Queue[str | Outcome | BaseException]


@completions(app)
async def respond(request: api.Request) -> Any:
    queue: BatchQueue = app.state.engine
    job = queue.prepare(request)
    reply = CompletionResponse(request, queue.model)
    loop = asyncio.get_running_loop()
    items = Items()
    row = queue.submit(job, lambda item: loop.call_soon_threadsafe(items.put_nowait, item))
    # Starlette cancels a stream when its client disconnects, perhaps before it starts; the
    # background task runs in any case
    if request.stream:
        return StreamingResponse(
            events(items, reply),
            media_type=api.SSE_CONTENT_TYPE,
            headers=api.SSE_HEADERS,
            background=BackgroundTask(queue.cancel, row),
        )
    pieces: list[str] = []
    try:
        while isinstance(item := await items.get(), str):
            pieces.append(item)
    finally:  # cancelled when the client disconnects
        queue.cancel(row)
    if isinstance(item, BaseException):
        raise item
    return reply.complete("".join(pieces), item)


async def events(items: Items, reply: CompletionResponse) -> AsyncIterator[str]:
    item: str | Outcome | BaseException = ""
    while isinstance(item, str):
        item = await items.get()
        yield reply.event(item)
    if isinstance(item, BaseException):
        logging.getLogger("uvicorn.error").error("generation failed", exc_info=item)
