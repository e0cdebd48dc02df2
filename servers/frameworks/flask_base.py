"""The part that all Flask servers share. Each `app.py` only calls its engine."""

from collections.abc import Callable, Iterator
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from servers.contract import api
from servers.contract.api import ClientGone, CompletionResponse, ContractError, Outcome
from servers.contract.metrics_middleware import WsgiMetrics
from servers.engines import Job


def create_app(
    name: str,
    engine: Any,
    generate: Callable[[Job, Callable[[str], Any]], Outcome],
    events: Callable[[Job, CompletionResponse], Iterator[str]],
) -> Flask:
    """Create an app with all paths of the contract. `generate` calls the engine for a plain
    response, `events` for a streamed one.
    """
    app = Flask(name)
    app.config["MAX_CONTENT_LENGTH"] = api.MAX_BODY_BYTES
    app.wsgi_app = WsgiMetrics(app.wsgi_app)  # type: ignore[method-assign]

    @app.get("/health")
    def health() -> Response:
        return jsonify(status="ok")

    @app.get("/v1/models")
    def models() -> Response:
        return jsonify(api.models_body(engine.model))

    @app.post(api.COMPLETIONS)
    def completions() -> Response:
        return respond(api.parse_request(api.CompletionRequest, request.get_data()))

    @app.post(api.CHAT_COMPLETIONS)
    def chat_completions() -> Response:
        return respond(api.parse_request(api.ChatCompletionRequest, request.get_data()))

    def respond(wanted: api.Request) -> Response:
        job = engine.prepare(wanted)
        reply = CompletionResponse(wanted, engine.model)
        if wanted.stream:
            return Response(
                events(job, reply), content_type=api.SSE_CONTENT_TYPE, headers=api.SSE_HEADERS
            )
        pieces: list[str] = []
        outcome = generate(job, pieces.append)
        return jsonify(reply.complete("".join(pieces), outcome))

    @app.errorhandler(ContractError)
    def refused(error: ContractError) -> tuple[dict[str, object], int, dict[str, str]]:
        return error.body(), error.status, error.headers

    @app.errorhandler(ClientGone)
    def gone(_: ClientGone) -> tuple[str, int]:
        return "", 499  # no client reads it, but the metrics count it

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> tuple[dict[str, object], int]:
        status = error.code or 500
        return api.error_body(status, error.description or error.name), status

    return app
