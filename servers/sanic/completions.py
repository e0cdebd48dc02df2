"""The two completion paths: the handler sends each token itself.

The pool's thread hands each token to the event loop with `call_soon_threadsafe`.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sanic import Blueprint, HTTPResponse, Request, json
from sanic.log import error_logger

from servers.contract import api
from servers.contract.api import ClientGone, CompletionResponse, Outcome

completions = Blueprint("completions")
pool = ThreadPoolExecutor(max_workers=40)  # as in fastapi_threadpool


@completions.post(api.COMPLETIONS)
async def complete(request: Request) -> HTTPResponse | None:
    return await respond(request, api.parse_request(api.CompletionRequest, request.body))


@completions.post(api.CHAT_COMPLETIONS)
async def chat(request: Request) -> HTTPResponse | None:
    return await respond(request, api.parse_request(api.ChatCompletionRequest, request.body))


async def respond(request: Request, wanted: api.Request) -> HTTPResponse | None:
    engine, loop, gone = request.app.ctx.engine, asyncio.get_running_loop(), threading.Event()
    job = engine.prepare(wanted)
    reply = CompletionResponse(wanted, engine.model)

    def generate(on_token: Callable[[str], Any]) -> asyncio.Future[Outcome]:
        def unless_gone(text: str) -> None:
            if gone.is_set():
                raise ClientGone
            on_token(text)

        return loop.run_in_executor(pool, engine.generate, job, unless_gone)

    try:
        if not wanted.stream:
            pieces: list[str] = []
            outcome = await generate(pieces.append)
            return json(reply.complete("".join(pieces), outcome))
        items: asyncio.Queue[str | Outcome | BaseException] = asyncio.Queue()
        generation = generate(lambda text: loop.call_soon_threadsafe(items.put_nowait, text))
        generation.add_done_callback(
            lambda done: items.put_nowait(done.exception() or done.result())
        )
        response = await request.respond(content_type=api.SSE_CONTENT_TYPE, headers=api.SSE_HEADERS)
        item: str | Outcome | BaseException = ""
        while isinstance(item, str):
            item = await items.get()
            await response.send(reply.event(item))
        if isinstance(item, BaseException):
            error_logger.error("generation failed", exc_info=item)
        return None
    finally:  # Sanic cancels the handler when the client disconnects
        gone.set()
