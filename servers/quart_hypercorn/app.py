"""Quart with an async engine in the same process: Flask's decorators, request and errors, with
`async def` and `await`.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from quart import Quart, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from servers import engines
from servers.contract import api
from servers.contract.api import CompletionResponse, ContractError
from servers.contract.metrics_middleware import AsgiMetrics

app = Quart(__name__)
app.asgi_app = AsgiMetrics(app.asgi_app)  # type: ignore[method-assign, assignment]
app.config["MAX_CONTENT_LENGTH"] = api.MAX_BODY_BYTES
app.config["RESPONSE_TIMEOUT"] = None  # Quart cuts a response after 60 s


@app.while_serving
async def lifespan() -> AsyncGenerator[None, None]:
    app.extensions["engine"] = engines.load_async()
    yield
    app.extensions["engine"].close()


@app.get("/health")
async def health() -> Response:
    return jsonify(status="ok")


@app.get("/v1/models")
async def models() -> Response:
    return jsonify(api.models_body(app.extensions["engine"].model))


@app.post(api.COMPLETIONS)
async def completions() -> Response:
    return await respond(api.parse_request(api.CompletionRequest, await request.get_data()))


@app.post(api.CHAT_COMPLETIONS)
async def chat_completions() -> Response:
    return await respond(api.parse_request(api.ChatCompletionRequest, await request.get_data()))


async def respond(wanted: api.Request) -> Response:
    engine = app.extensions["engine"]
    job = engine.prepare(wanted)
    reply = CompletionResponse(wanted, engine.model)
    if wanted.stream:
        return Response(
            events(engine, job, reply), content_type=api.SSE_CONTENT_TYPE, headers=api.SSE_HEADERS
        )
    *pieces, outcome = [item async for item in engine.stream(job)]
    return jsonify(reply.complete("".join(pieces), outcome))


async def events(engine: Any, job: engines.Job, reply: CompletionResponse) -> AsyncIterator[str]:
    try:
        async for item in engine.stream(job):
            yield reply.event(item)
    except Exception as error:
        app.logger.exception("generation failed")
        yield reply.event(error)


@app.errorhandler(ContractError)
async def refused(error: ContractError) -> tuple[dict[str, object], int, dict[str, str]]:
    return error.body(), error.status, error.headers


@app.errorhandler(HTTPException)
async def http_error(error: HTTPException) -> tuple[dict[str, object], int]:
    status = error.code or 500
    return api.error_body(status, error.description or error.name), status
