"""BentoML with an async engine: a FastAPI app, mounted in a BentoML service that has one worker
process.
"""

import logging
import os
from collections.abc import AsyncIterator
from typing import Any

# BentoML has Prometheus' client keep its counters in files, for several workers: here is one.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

import bentoml
from fastapi.responses import StreamingResponse

from servers import engines
from servers.contract import api
from servers.contract.api import CompletionResponse
from servers.frameworks.fastapi_base import completions, create_app

app = create_app("Serveoff: BentoML", engines.load_async)


@completions(app)
async def respond(request: api.Request) -> Any:
    engine = app.state.engine
    job = engine.prepare(request)
    reply = CompletionResponse(request, engine.model)
    if request.stream:
        return StreamingResponse(
            events(job, reply), media_type=api.SSE_CONTENT_TYPE, headers=api.SSE_HEADERS
        )
    *pieces, outcome = [item async for item in engine.stream(job)]
    return reply.complete("".join(pieces), outcome)


async def events(job: engines.Job, reply: CompletionResponse) -> AsyncIterator[str]:
    try:
        async for item in app.state.engine.stream(job):
            yield reply.event(item)
    except Exception as error:
        logging.getLogger("bentoml").exception("generation failed")
        yield reply.event(error)


@app.get("/metrics", include_in_schema=False)
async def metrics() -> None:
    """Never runs: AsgiMetrics responds. BentoML hands over only the paths that the app has."""


# A response may take minutes: BentoML's own limit is 60 s. Its metrics have the path of ours, and a
# time series for each path that a client makes up.
@bentoml.asgi_app(app, path="/")
@bentoml.service(
    workers=1,
    traffic={"timeout": 3600},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},  # it would have each client's paths
)
class Llm:
    pass
