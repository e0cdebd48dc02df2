"""Flask with a blocking engine, one request at a time in each sync worker.

A view returns a generator to stream, and the engine calls back for each token: a second
thread and a queue turn the one into the other, as Transformers' documentation does it for its iterator streamers.
"""

import queue
import threading
from collections.abc import Iterator
from concurrent import futures

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from servers import contract, engines
from servers.contract import Answer, ContractError, Outcome
from servers.metrics import WsgiMetrics

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = contract.MAX_BODY_BYTES
app.wsgi_app = WsgiMetrics(app.wsgi_app)  # type: ignore[method-assign]
engine = engines.load_blocking()
pool = futures.ThreadPoolExecutor(max_workers=1)  # a sync worker has one request at a time


class ClientGone(Exception):
    pass


@app.get("/health")
def health() -> Response:
    return jsonify(status="ok")


@app.get("/v1/models")
def models() -> Response:
    return jsonify(contract.models_body(engine.model))


@app.post(contract.COMPLETIONS)
def completions() -> Response:
    return answer(contract.parse(contract.CompletionRequest, request.get_data()))


@app.post(contract.CHAT_COMPLETIONS)
def chat_completions() -> Response:
    return answer(contract.parse(contract.ChatCompletionRequest, request.get_data()))


def answer(wanted: contract.Request) -> Response:
    job = engine.prepare(wanted)
    reply = Answer(wanted, engine.model)
    if wanted.stream:
        return Response(events(job, reply), content_type=contract.SSE_CONTENT_TYPE, headers=contract.SSE_HEADERS)
    pieces: list[str] = []
    outcome = engine.generate(job, pieces.append)
    return jsonify(reply.complete("".join(pieces), outcome))


def events(job: engines.Job, reply: Answer) -> Iterator[str]:
    items: queue.SimpleQueue[str | Outcome | BaseException] = queue.SimpleQueue()
    gone = threading.Event()

    def on_token(text: str) -> None:
        if gone.is_set():
            raise ClientGone
        items.put(text)

    generation = pool.submit(engine.generate, job, on_token)
    generation.add_done_callback(lambda done: items.put(done.exception() or done.result()))
    try:
        item: str | Outcome | BaseException = ""
        while isinstance(item, str):
            item = items.get()
            yield reply.event(item)
        if isinstance(item, BaseException):
            app.logger.error("generation failed", exc_info=item)
    finally:  # Gunicorn closes the iterator when a write fails: the client has gone
        gone.set()
        futures.wait([generation])


@app.errorhandler(ContractError)
def refused(error: ContractError) -> tuple[dict[str, object], int, dict[str, str]]:
    return error.body(), error.status, error.headers


@app.errorhandler(HTTPException)
def http_error(error: HTTPException) -> tuple[dict[str, object], int]:
    status = error.code or 500
    return contract.error_body(status, error.description or error.name), status
