"""ANTI-PATTERN, here to show what it costs: `async def` endpoints that block the event loop while
the engine works.

It looks right and streams well to its one client, but meanwhile it serves no other request, not
even /health. `fastapi_threadpool` is the same server with the call in the right place.
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
async def respond(request: api.Request) -> Any:
    engine = app.state.engine
    job = engine.prepare(request)
    reply = CompletionResponse(request, engine.model)
    if request.stream:
        return StreamingResponse(
            events(job, reply), media_type=api.SSE_CONTENT_TYPE, headers=api.SSE_HEADERS
        )
    pieces: list[str] = []
    # THE MISTAKE: nothing is awaited, so this call blocks the event loop until it returns
    outcome = engine.generate(job, pieces.append)
    return reply.complete("".join(pieces), outcome)


async def events(job: engines.Job, reply: CompletionResponse) -> AsyncIterator[str]:
    """Loop over the tokens of a generating thread, as with Transformers' TextIteratorStreamer."""
    items: queue.SimpleQueue[str | Outcome | BaseException] = queue.SimpleQueue()
    generation = pool.submit(app.state.engine.generate, job, items.put)
    generation.add_done_callback(lambda done: items.put(done.exception() or done.result()))
    item: str | Outcome | BaseException = ""
    while isinstance(item, str):
        item = items.get()  # THE MISTAKE again: a blocking queue inside `async def`
        yield reply.event(item)
    if isinstance(item, BaseException):
        logging.getLogger("uvicorn.error").error("generation failed", exc_info=item)
