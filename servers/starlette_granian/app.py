"""Starlette with an async engine in the same process; Granian handles sockets and HTTP in Rust
threads beside the event loop.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from servers import engines
from servers.contract import api
from servers.contract.api import CompletionResponse, ContractError
from servers.contract.metrics_middleware import AsgiMetrics
from servers.frameworks.starlette_base import complete_unless_gone


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    app.state.engine = engines.load_async()
    yield
    app.state.engine.close()


async def health(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def models(request: Request) -> Response:
    return JSONResponse(api.models_body(request.app.state.engine.model))


async def completions(request: Request) -> Response:
    return await respond(request, api.parse_request(api.CompletionRequest, await request.body()))


async def chat_completions(request: Request) -> Response:
    wanted = api.parse_request(api.ChatCompletionRequest, await request.body())
    return await respond(request, wanted)


async def respond(request: Request, wanted: api.Request) -> Response:
    engine = request.app.state.engine
    job = engine.prepare(wanted)
    reply = CompletionResponse(wanted, engine.model)
    if wanted.stream:
        return StreamingResponse(
            events(engine, job, reply), media_type=api.SSE_CONTENT_TYPE, headers=api.SSE_HEADERS
        )
    response: Response = await complete_unless_gone(request, complete(engine, job, reply))
    return response


async def complete(engine: Any, job: engines.Job, reply: CompletionResponse) -> Response:
    *pieces, outcome = [item async for item in engine.stream(job)]
    return JSONResponse(reply.complete("".join(pieces), outcome))


async def events(engine: Any, job: engines.Job, reply: CompletionResponse) -> AsyncIterator[str]:
    try:
        async for item in engine.stream(job):
            yield reply.event(item)
    except Exception as error:
        logging.getLogger(__name__).exception("generation failed")
        yield reply.event(error)


async def refused(_: Request, error: ContractError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)


async def http_error(_: Request, error: HTTPException) -> Response:
    return JSONResponse(
        api.error_body(error.status_code, error.detail), error.status_code, error.headers
    )


async def gone(_: Request, __: ClientDisconnect) -> Response:
    """Handle a disconnect before the body was complete: no client reads this response, but the
    metrics count it, and not as a failure of the server.
    """
    return JSONResponse(api.error_body(400, "the body is incomplete"), 400)


async def failed(_: Request, __: Exception) -> Response:  # the details are for the log only
    return JSONResponse(api.error_body(500, "the engine failed"), 500)


app = Starlette(
    routes=[
        Route("/health", health),
        Route("/v1/models", models),
        Route(api.COMPLETIONS, completions, methods=["POST"]),
        Route(api.CHAT_COMPLETIONS, chat_completions, methods=["POST"]),
    ],
    middleware=[Middleware(AsgiMetrics)],
    exception_handlers={
        ContractError: refused,  # type: ignore[dict-item]
        HTTPException: http_error,  # type: ignore[dict-item]
        ClientDisconnect: gone,  # type: ignore[dict-item]
        Exception: failed,
    },
    lifespan=lifespan,
)
