"""FastAPI with an async engine in the same process: one coroutine serves a request, from the socket
to the engine's scheduler.
"""

import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

from servers import engines
from servers.contract import api
from servers.contract.api import CompletionResponse
from servers.frameworks.fastapi_base import completions, create_app

app = create_app("Serveoff: FastAPI, an async engine", engines.load_async)


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
        logging.getLogger("uvicorn.error").exception("generation failed")
        yield reply.event(error)
