"""The part that all FastAPI servers share. Each `app.py` only calls its engine."""

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware

from servers.contract import api
from servers.contract.api import ContractError, JsonObject
from servers.contract.metrics_middleware import AsgiMetrics
from servers.frameworks.starlette_base import complete_unless_gone

Endpoint = Callable[[api.Request], Coroutine[Any, Any, Any]]


def create_app(
    title: str,
    load_engine: Callable[[], Any],
    models_of: Callable[[Any], Iterable[str]] = lambda engine: [engine.model],
) -> FastAPI:
    """Create an app with /health, /v1/models, /metrics and the contract's errors. It loads
    `app.state.engine` at start-up.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.engine = load_engine()
        yield
        app.state.engine.close()

    app = FastAPI(title=title, lifespan=lifespan)
    # an option of some servers; Starlette does not compress event streams
    if os.environ.get("SERVEOFF_GZIP") == "on":
        app.add_middleware(GZipMiddleware)
    app.add_middleware(AsgiMetrics)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> JsonObject:
        return api.models_body(*models_of(app.state.engine))

    @app.exception_handler(ContractError)
    async def refused(_: Request, error: ContractError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return await refused(request, api.invalid_request(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(
            api.error_body(error.status_code, error.detail), error.status_code, error.headers
        )

    @app.exception_handler(Exception)
    # the details are for the log only
    async def failed(_: Request, __: Exception) -> JSONResponse:
        # Uvicorn closes the connection afterwards; a client that keeps connections must know.
        return JSONResponse(api.error_body(500, "the engine failed"), 500, {"Connection": "close"})

    return app


def completions(app: FastAPI) -> Callable[[Endpoint], Endpoint]:
    """Decorate the endpoint of both completion paths, each with its own model of the body. A plain
    response is cancelled when its client disconnects.
    """

    def register(endpoint: Endpoint) -> Endpoint:
        @app.post(api.COMPLETIONS)
        async def completions(wanted: api.CompletionRequest, request: Request) -> Any:
            return await respond(wanted, request)

        @app.post(api.CHAT_COMPLETIONS)
        async def chat_completions(wanted: api.ChatCompletionRequest, request: Request) -> Any:
            return await respond(wanted, request)

        async def respond(wanted: api.Request, request: Request) -> Any:
            if wanted.stream:
                return await endpoint(wanted)
            return await complete_unless_gone(request, endpoint(wanted))

        return endpoint

    return register
