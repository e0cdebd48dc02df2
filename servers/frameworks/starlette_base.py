"""The part that all servers on Starlette share, including FastAPI's."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response


async def complete_unless_gone(request: Request, making: Coroutine[Any, Any, Any]) -> Any:
    """Return the plain response of `making`, or cancel `making` when the client disconnects.
    Starlette does the same with streams, and vLLM's own server with plain responses.
    """
    response = asyncio.ensure_future(making)
    leaving = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((response, leaving), return_when=asyncio.FIRST_COMPLETED)
        if response.done():
            return response.result()
        return Response(status_code=499)  # no client reads it, but the metrics count it
    finally:
        response.cancel()
        leaving.cancel()
        await asyncio.gather(response, leaving, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    """Wait until the client disconnects. The request's body must already have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
