"""What every server on Starlette here has in common, FastAPI's among them."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response


async def complete_unless_gone(request: Request, making: Coroutine[Any, Any, Any]) -> Any:
    """The plain response that `making` returns. Once the request's client has gone, `making` is
    cancelled, as Starlette does with a stream; vLLM's own server does the same with plain
    responses.
    """
    response = asyncio.ensure_future(making)
    leaving = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((response, leaving), return_when=asyncio.FIRST_COMPLETED)
        if response.done():
            return response.result()
        return Response(status_code=499)  # nobody reads it, but it is counted
    finally:
        response.cancel()
        leaving.cancel()
        await asyncio.gather(response, leaving, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    """The request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
