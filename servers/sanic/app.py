"""Sanic on its own server, with a blocking engine in a thread pool.

Sanic is neither WSGI nor ASGI here: `Counting`, `refuse` and `exposition` replace the middleware of
the other servers.
"""

import sys

from prometheus_client import CONTENT_TYPE_LATEST
from sanic import HTTPResponse, Request, json, raw
from sanic.exceptions import SanicException

from servers import engines
from servers.contract import api, metrics
from servers.contract.api import ContractError
from servers.sanic.completions import completions
from servers.sanic.counting import Counting
from servers.sanic.errors import failed, http_error, refuse, refused

app = Counting("serveoff")
# Sanic reads bodies beyond our limit before we refuse them, so the client sees the reason
app.config.REQUEST_MAX_SIZE = 4 * api.MAX_BODY_BYTES
app.config.RESPONSE_TIMEOUT = 3600  # a request may wait long for its turn
app.config.GRACEFUL_SHUTDOWN_TIMEOUT = 10
app.config.FALLBACK_ERROR_FORMAT = "json"
app.blueprint(completions)
app.on_request(refuse)
app.error_handler.add(ContractError, refused)
app.error_handler.add(SanicException, http_error)
app.error_handler.add(Exception, failed)


@app.before_server_start
async def load(app: Counting) -> None:
    app.ctx.engine = engines.load_blocking()
    metrics.LoopLag.watch()


@app.after_server_stop
async def close(app: Counting) -> None:
    app.ctx.engine.close()


@app.get("/health")
async def health(_: Request) -> HTTPResponse:
    return json({"status": "ok"})


@app.get("/metrics")
async def exposition(request: Request) -> HTTPResponse:
    return raw(metrics.render_metrics(request.query_string), content_type=CONTENT_TYPE_LATEST)


@app.get("/v1/models")
async def models(request: Request) -> HTTPResponse:
    return json(api.models_body(request.app.ctx.engine.model))


# The `sanic` command has no option for the backlog, and its manager would stop a worker that has
# not started within 30 s.
if __name__ == "__main__":
    app.run(host=sys.argv[1], port=int(sys.argv[2]), single_process=True, backlog=2048, motd=False)
