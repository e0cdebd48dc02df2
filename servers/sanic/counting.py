"""A Sanic app that counts its requests, as `servers/contract/metrics_middleware.py` does for WSGI
and ASGI.
"""

from types import SimpleNamespace
from typing import Any

from sanic import Config, Request, Sanic

from servers.contract import metrics


class Counting(Sanic[Config, SimpleNamespace]):
    """Counts in `handle_request`, because Sanic has no signal after the last byte of a response or
    for a client that disconnects.
    """

    async def handle_request(self, request: Request) -> None:
        counted = metrics.CountedRequest(request.path) if request.path != "/metrics" else None
        try:
            await super().handle_request(request)
        finally:
            if counted:
                stream: Any = request.stream
                counted.status = stream.response.status if stream.response else counted.status
                counted.end()
