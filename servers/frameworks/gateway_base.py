"""The part that the FastAPI gateways share. Each `app.py` only calls the upstreams and forwards
their streams.

Settings, besides SERVEOFF_UPSTREAM (base URLs, comma-separated) and SERVEOFF_API_KEY (required of
clients, and sent to the upstreams):

    SERVEOFF_RATE_LIMIT          limit per client address, such as 100/minute (default: none)
    SERVEOFF_CORS_ORIGINS        origins that may read responses, comma-separated (default: none)
    SERVEOFF_CONNECT_TIMEOUT_S, SERVEOFF_READ_TIMEOUT_S   see servers/runtime/limits.py
"""

import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

import limits
from fastapi import APIRouter, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from slowapi import Limiter
from slowapi.errors import RateLimitExceeded
from slowapi.util import get_remote_address

from servers.contract import api, chunks
from servers.contract.api import ChatCompletionRequest, CompletionRequest, ContractError
from servers.frameworks.fastapi_base import create_app
from servers.frameworks.starlette_base import complete_unless_gone


def split_words(name: str) -> list[str]:
    return [word.strip() for word in os.environ.get(name, "").split(",") if word.strip()]


UPSTREAMS = split_words("SERVEOFF_UPSTREAM")
RATE_LIMIT = os.environ.get("SERVEOFF_RATE_LIMIT", "")
KEEP_ALIVE_S = 4.0  # Uvicorn closes an idle connection after 5 s; reusing it just then would fail
# "identity" because the gateway forwards bytes without decoding them
HEADERS = {
    "Content-Type": "application/json",
    "Accept-Encoding": "identity",
    **api.authorization_header(),
}


def upstream_gone(url: str, error: Exception) -> ContractError:
    # the details are for the log only
    logging.getLogger("uvicorn.error").error("%s: %r", url, error)
    return ContractError(
        503, "the server behind this gateway is unavailable: try again later", code="upstream_gone"
    )


def upstream_silent(url: str, error: Exception) -> ContractError:
    logging.getLogger("uvicorn.error").error("%s: %r", url, error)
    return ContractError(
        504, "the server behind this gateway did not respond in time", code="upstream_timeout"
    )


def error_event(error: ContractError) -> str:
    """Return an error event for the middle of a stream. The leading empty line ends an event that
    arrived only in part.
    """
    return f"\n\ndata: {json.dumps(error.body())}\n\n"


def forward_plain(status: int, body: bytes, retry_after: str = "") -> Response:
    """Return a 200 unchanged. Raises ContractError for any other status: OpenAI's envelope, which
    not every upstream uses, and the upstream's Retry-After.
    """
    if status == 200:
        return Response(body, media_type="application/json")
    try:
        error = json.loads(body)["error"]
        message, param, code = str(error["message"]), error.get("param"), error.get("code")
    except (ValueError, LookupError, TypeError, AttributeError):
        message, param, code = (
            f"the server behind this gateway responded with status {status}",
            None,
            None,
        )
    retry_after_s = int(retry_after) if retry_after.isascii() and retry_after.isdigit() else None
    raise ContractError(
        status, message, param, code if isinstance(code, str) else None, retry_after_s
    )


class Upstreams:
    """The upstream URLs by model. `create_app` treats it as the engine."""

    def __init__(self) -> None:
        self.by_model: dict[str, deque[str]] = {}

    def add(self, url: str, listed: Any) -> None:
        """Add an upstream. `listed`: its response to GET /v1/models."""
        for model in listed["data"]:
            self.by_model.setdefault(model["id"], deque()).append(url)

    def choose(self, model: str) -> str:
        """Return the URL of an upstream with that model; they take turns. Raises ContractError."""
        if model not in self.by_model:
            raise ContractError(
                404,
                f"model: {model!r} does not exist; available models: {', '.join(self.by_model)}",
                "model",
                "model_not_found",
            )
        self.by_model[model].rotate(-1)
        return self.by_model[model][-1]

    def close(self) -> None:
        pass


class GenerateRequest(CompletionRequest):
    model: str = ""  # empty: the first available


def create_gateway(
    title: str,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    forward: Callable[[str, str, bool], Coroutine[Any, Any, Response]],
) -> FastAPI:
    """Create a gateway. `lifespan` opens the client and adds the upstreams to `app.state.engine`;
    `forward(url, body, stream)` forwards one request.
    """
    if not UPSTREAMS:
        raise SystemExit(
            "SERVEOFF_UPSTREAM is not set: start this server with `python -m servers NAME`"
        )
    app = create_app(title, Upstreams, lambda upstreams: upstreams.by_model)
    app.include_router(APIRouter(lifespan=lifespan))
    # added last, so it is outermost: a preflight request has no key
    if origins := split_words("SERVEOFF_CORS_ORIGINS"):
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization"],
        )
    limiter = Limiter(get_remote_address, enabled=bool(RATE_LIMIT))
    rate = RATE_LIMIT or "1/second"  # a placeholder: the limiter is then disabled
    # raises for an invalid rate; slowapi would only log it and limit nothing
    limits.parse_many(rate)
    limited = limiter.shared_limit(rate, scope="generation")

    async def forward_known(request: Request, path: str, wanted: api.Request) -> Response:
        """Forward only the fields of the contract, without nulls: every upstream understands
        those.
        """
        # before the body is encoded: an unknown name need not be valid Unicode
        url = app.state.engine.choose(wanted.model) + path
        if wanted.stream:
            return await forward(url, wanted.model_dump_json(exclude_none=True), True)
        body = wanted.model_dump_json(exclude_none=True, exclude={"stream_options"})
        response: Response = await complete_unless_gone(request, forward(url, body, False))
        return response

    @app.post(api.COMPLETIONS)
    @limited
    async def completions(request: Request, wanted: CompletionRequest) -> Response:
        return await forward_known(request, request.scope["path"], wanted)

    @app.post(api.CHAT_COMPLETIONS)
    @limited
    async def chat_completions(request: Request, wanted: ChatCompletionRequest) -> Response:
        return await forward_known(request, request.scope["path"], wanted)

    @app.post("/generate")
    @limited
    async def generate(request: Request, wanted: GenerateRequest) -> dict[str, str]:
        model = wanted.model or next(iter(request.app.state.engine.by_model))
        response = await forward_known(
            request, api.COMPLETIONS, wanted.model_copy(update={"model": model, "stream": False})
        )
        return {"text": chunks.read_chunk(bytes(response.body)).text}

    @app.exception_handler(RateLimitExceeded)
    async def too_many(request: Request, error: RateLimitExceeded) -> JSONResponse:
        limit, key = request.state.view_rate_limit
        wait_s = math.ceil(limiter.limiter.get_window_stats(limit, *key).reset_time - time.time())
        refused = ContractError(
            429,
            f"the rate limit is {error.detail}: try again later",
            code="rate_limit_exceeded",
            retry_after_s=max(1, wait_s),
        )
        return JSONResponse(refused.body(), refused.status, refused.headers)

    return app
