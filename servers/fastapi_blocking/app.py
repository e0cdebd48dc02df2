"""ANTI-PATTERN, here to show what it costs: `async def` endpoints that block the event loop while
the engine works.

It looks right and streams well to its one client: only that nobody else is served meanwhile,
/health included. `fastapi_threadpool` is the same with the call where it belongs.
"""

import logging
import queue
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi.responses import StreamingResponse

from servers import engines
from servers.contract import api
from servers.contract.api import CompletionResponse, Outcome
from servers.frameworks.fastapi_base import completions, create_app

app = create_app("Serveoff: FastAPI, blocked event loop", engines.load_blocking)
pool = ThreadPoolExecutor(max_workers=1)


@completions(app)
async def answer(request: api.Request) -> Any:
    engine = app.state.engine
    job = engine.prepare(request)
    reply = CompletionResponse(request, engine.model)
    if request.stream:
        return StreamingResponse(
            events(job, reply), media_type=api.SSE_CONTENT_TYPE, headers=api.SSE_HEADERS
        )
    pieces: list[str] = []
    # THE MISTAKE: it is not awaited, so the event loop stands still until it returns
    outcome = engine.generate(job, pieces.append)
    return reply.complete("".join(pieces), outcome)


async def events(job: engines.Job, reply: CompletionResponse) -> AsyncIterator[str]:
    """A thread that generates and a loop over what it says, as with Transformers'
    TextIteratorStreamer.
    """
    items: queue.SimpleQueue[str | Outcome | BaseException] = queue.SimpleQueue()
    generation = pool.submit(app.state.engine.generate, job, items.put)
    generation.add_done_callback(lambda done: items.put(done.exception() or done.result()))
    item: str | Outcome | BaseException = ""
    while isinstance(item, str):
        item = items.get()  # THE MISTAKE once more: a queue of threads inside `async def`
        yield reply.event(item)
    if isinstance(item, BaseException):
        logging.getLogger("uvicorn.error").error("generation failed", exc_info=item)
