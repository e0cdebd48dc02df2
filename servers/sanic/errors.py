"""Refuses requests by key, length and load, and renders errors in OpenAI's envelope."""

from sanic import HTTPResponse, Request, json
from sanic.exceptions import SanicException
from sanic.log import error_logger

from servers.contract import api, metrics
from servers.contract.api import ContractError


async def refuse(request: Request) -> HTTPResponse | None:
    if request.path in ("/health", "/metrics"):
        return None
    authorization = (
        request.headers.get("authorization", "").encode(errors="surrogateescape").decode("latin-1")
    )
    refusal = metrics.find_refusal(authorization, str(len(request.body)))
    return refused(request, refusal) if refusal else None


def refused(_: Request, error: ContractError) -> HTTPResponse:
    return json(error.body(), error.status, error.headers)


def http_error(_: Request, error: SanicException) -> HTTPResponse:
    return json(api.error_body(error.status_code, str(error)), error.status_code, error.headers)


def failed(_: Request, error: Exception) -> HTTPResponse:
    error_logger.error("generation failed", exc_info=error)
    return json(api.error_body(500, "the engine failed"), 500)
