"""Sanic with a blocking engine in a thread pool: a handler sends each token itself, on Sanic's own server.

The pool's thread hands each token to the event loop with `call_soon_threadsafe`. Sanic is neither WSGI nor ASGI here: what their
middlewares do for the other servers stands in `Counting` and `refuse`.
"""

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from sanic import Config, HTTPResponse, Request, Sanic, json, raw
from sanic.exceptions import SanicException
from sanic.log import error_logger

from servers import contract, engines, metrics
from servers.contract import Answer, ContractError, Outcome


class Counting(Sanic[Config, SimpleNamespace]):
    """None of Sanic's signals follows the last byte of an answer, or comes when its client has gone."""

    async def handle_request(self, request: Request) -> None:
        counted = metrics.Counted(request.path) if request.path != "/metrics" else None
        try:
            await super().handle_request(request)
        finally:
            if counted:
                answered: Any = request.stream
                counted.status = answered.response.status if answered.response else counted.status
                counted.end()


app = Counting("serveoff")
app.config.REQUEST_MAX_SIZE = 4 * contract.MAX_BODY_BYTES  # what is too long for us is read and then refused, so that the client sees why
app.config.RESPONSE_TIMEOUT = 3600  # an answer may have to wait for its turn
app.config.GRACEFUL_SHUTDOWN_TIMEOUT = 10
app.config.FALLBACK_ERROR_FORMAT = "json"
pool = ThreadPoolExecutor(max_workers=40)  # as in fastapi_threadpool


class ClientGone(Exception):
    pass


@app.before_server_start
async def load(app: Counting) -> None:
    app.ctx.engine = engines.load_blocking()


@app.after_server_stop
async def close(app: Counting) -> None:
    app.ctx.engine.close()


@app.on_request
async def refuse(request: Request) -> HTTPResponse | None:
    if request.path in ("/health", "/metrics"):
        return None
    authorization = request.headers.get("authorization", "").encode(errors="surrogateescape").decode("latin-1")
    refusal = metrics.refusal_of(authorization, str(len(request.body)))
    return refused(request, refusal) if refusal else None


@app.get("/health")
async def health(_: Request) -> HTTPResponse:
    return json({"status": "ok"})


@app.get("/metrics")
async def exposition(request: Request) -> HTTPResponse:
    return raw(metrics.exposition(request.query_string), content_type=CONTENT_TYPE_LATEST)


@app.get("/v1/models")
async def models(request: Request) -> HTTPResponse:
    return json(contract.models_body(request.app.ctx.engine.model))


@app.post(contract.COMPLETIONS)
async def completions(request: Request) -> HTTPResponse | None:
    return await answer(request, contract.parse(contract.CompletionRequest, request.body))


@app.post(contract.CHAT_COMPLETIONS)
async def chat_completions(request: Request) -> HTTPResponse | None:
    return await answer(request, contract.parse(contract.ChatCompletionRequest, request.body))


async def answer(request: Request, wanted: contract.Request) -> HTTPResponse | None:
    engine, loop, gone = request.app.ctx.engine, asyncio.get_running_loop(), threading.Event()
    job = engine.prepare(wanted)
    reply = Answer(wanted, engine.model)

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
        generation.add_done_callback(lambda done: items.put_nowait(done.exception() or done.result()))
        response = await request.respond(content_type=contract.SSE_CONTENT_TYPE, headers=contract.SSE_HEADERS)
        item: str | Outcome | BaseException = ""
        while isinstance(item, str):
            item = await items.get()
            await response.send(reply.event(item))
        if isinstance(item, BaseException):
            error_logger.error("generation failed", exc_info=item)
        return None
    finally:  # Sanic cancels the handler when the client has gone
        gone.set()


@app.exception(ContractError)
def refused(_: Request, error: ContractError) -> HTTPResponse:
    return json(error.body(), error.status, error.headers)


@app.exception(SanicException)
def http_error(_: Request, error: SanicException) -> HTTPResponse:
    return json(contract.error_body(error.status_code, str(error)), error.status_code, error.headers)


@app.exception(Exception)
def failed(_: Request, error: Exception) -> HTTPResponse:
    error_logger.error("generation failed", exc_info=error)
    return json(contract.error_body(500, "the engine failed"), 500)


if __name__ == "__main__":  # `sanic` has no option for the backlog; Sanic's manager would end a worker that has not begun after 30 s
    app.run(host=sys.argv[1], port=int(sys.argv[2]), single_process=True, backlog=2048, motd=False)
