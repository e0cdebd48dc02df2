"""FastAPI with a blocking engine in a thread pool: the event loop stays free, and at most `threads`
(40) requests run at once.

The pool's thread hands each token to the event loop with `call_soon_threadsafe`.
"""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi.responses import StreamingResponse

from servers import engines
from servers.contract import api
from servers.contract.api import ClientGone, CompletionResponse, Outcome
from servers.frameworks.fastapi_base import completions, create_app

app = create_app("Serveoff: FastAPI, thread pool", engines.load_blocking)
pool = ThreadPoolExecutor(int(os.environ.get("SERVEOFF_THREADS", "40")))


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
    gone = threading.Event()
    try:
        outcome = await generate(job, pieces.append, gone)
    finally:  # cancelled when the client disconnects
        gone.set()
    return reply.complete("".join(pieces), outcome)


def generate(
    job: engines.Job, emit: Callable[[str], Any], gone: threading.Event
) -> asyncio.Future[Outcome]:
    def on_token(text: str) -> None:
        if gone.is_set():
            raise ClientGone
        emit(text)

    loop = asyncio.get_running_loop()
    return loop.run_in_executor(pool, app.state.engine.generate, job, on_token)


async def events(job: engines.Job, reply: CompletionResponse) -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[str | Outcome | BaseException] = asyncio.Queue()
    gone = threading.Event()

    def emit(text: str) -> None:
        loop.call_soon_threadsafe(items.put_nowait, text)

    generation = generate(job, emit, gone)
    generation.add_done_callback(lambda done: items.put_nowait(done.exception() or done.result()))
    try:
        item: str | Outcome | BaseException = ""
        while isinstance(item, str):
            item = await items.get()
            yield reply.event(item)
        if isinstance(item, BaseException):
            logging.getLogger("uvicorn.error").error("generation failed", exc_info=item)
    finally:  # Starlette cancels the stream when the client disconnects
        gone.set()
