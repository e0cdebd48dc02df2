"""Sanic that counts its requests, as a middleware of `servers/contract/metrics.py` does below WSGI
and ASGI frameworks.
"""

from types import SimpleNamespace
from typing import Any

from sanic import Config, Request, Sanic

from servers.contract import metrics


class Counting(Sanic[Config, SimpleNamespace]):
    """None of Sanic's signals follows the last byte of an answer, or comes when its client has
    gone.
    """

    async def handle_request(self, request: Request) -> None:
        counted = metrics.CountedRequest(request.path) if request.path != "/metrics" else None
        try:
            await super().handle_request(request)
        finally:
            if counted:
                answered: Any = request.stream
                counted.status = answered.response.status if answered.response else counted.status
                counted.end()
