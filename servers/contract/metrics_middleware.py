"""WSGI and ASGI middleware that counts requests, refuses some, and serves /metrics.

The middleware is below the framework, so it sees each response up to its last byte and needs
nothing from `app.py`. It refuses bodies that are too long (413), requests beyond
SERVEOFF_MAX_IN_FLIGHT (429) and, if SERVEOFF_API_KEY is set, requests without that key (401).
"""

import asyncio
import contextlib
import io
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from servers.contract.api import MAX_BODY_BYTES, ContractError
from servers.contract.chunks import status_of_end
from servers.contract.metrics import (
    CountedRequest,
    LoopLag,
    body_too_large,
    find_refusal,
    render_metrics,
)
from servers.runtime.limits import DRAIN_S

MAX_DRAIN_BYTES = 4 * MAX_BODY_BYTES
Message = dict[str, Any]  # ASGI's scope, or one of its events
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class WsgiMetrics:
    def __init__(self, app: Callable[..., Iterable[bytes]]):
        self.app = app

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterator[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
            yield render_metrics(environ.get("QUERY_STRING", ""))
            return
        counted = CountedRequest(path)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            counted.status = int(status[:3])
            return start_response(status, headers, exc_info)

        response: Iterable[bytes] = ()
        try:
            refusal = path != "/health" and find_refusal(
                environ.get("HTTP_AUTHORIZATION", ""), environ.get("CONTENT_LENGTH", "")
            )
            # a chunked body gives no length in advance, and Werkzeug silently cuts it at its limit
            if not refusal and "HTTP_TRANSFER_ENCODING" in environ:
                body = environ["wsgi.input"].read(MAX_BODY_BYTES + 1)
                environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
                refusal = len(body) > MAX_BODY_BYTES and body_too_large()
            if refusal:
                # otherwise closing the socket resets it, and the client may never see the reason
                for _ in range(MAX_DRAIN_BYTES // 65536):
                    if not environ["wsgi.input"].read(65536):
                        break
                headers = {
                    "Content-Type": "application/json",
                    "Connection": "close",
                } | refusal.headers
                start(f"{refusal.status} Refused", [*headers.items()])
                yield json.dumps(refusal.body()).encode()
                return
            response = self.app(environ, start)
            yield from response
        finally:
            if close := getattr(response, "close", None):
                close()
            counted.end()


class AsgiMetrics:
    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":  # then the engine loads, and no client waits yet
            LoopLag.watch()
        if scope["type"] == "websocket":
            await self.websocket(scope, receive, send)
        elif scope["type"] == "http":
            await self.http(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def http(self, scope: Message, receive: Receive, send: Send) -> None:
        body = _RequestBody(scope, receive)

        async def send_and_drain(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                await body.drain()
                async with body.discarded():
                    await send(message)
            else:
                await send(message)

        if scope["path"] == "/metrics":
            text = render_metrics(scope.get("query_string", b"").decode("latin-1"))
            await _send(send_and_drain, 200, {"content-type": CONTENT_TYPE_LATEST}, text)
            return
        counted = CountedRequest(scope["path"])

        async def counting_send(message: Message) -> None:
            if body.is_too_long:
                return  # the framework's response to the exception of `receive`; ours follows
            if message["type"] == "http.response.start":
                counted.status = message["status"]
            await send_and_drain(message)

        async def refuse(refusal: ContractError) -> None:
            counted.status = refusal.status
            # Drain first: a server that closes while the client still sends resets the connection,
            # and the client may never see the reason.
            await body.drain()
            if not body.ended:
                refusal.headers["Connection"] = "close"
            await _refuse(send_and_drain, refusal)

        try:
            if scope["path"] != "/health" and (refusal := _refusal_of(scope)):
                await refuse(refusal)
                return
            try:
                await self.app(scope, body.receive, counting_send)
            except ContractError:
                if not body.is_too_long:
                    raise
            if body.is_too_long:
                await refuse(body_too_large())
        except Exception:
            if counted.status == 499:  # no response has started: the server itself sends a 500
                counted.status = 500
            await body.drain()
            raise
        finally:
            counted.end()

    async def websocket(self, scope: Message, receive: Receive, send: Send) -> None:
        if refusal := _refusal_of(scope):
            if "websocket.http.response" in (scope.get("extensions") or ()):
                await _refuse(send, refusal, "websocket.http.response")
            else:  # without this extension ASGI can only close: the server responds with 403
                await send({"type": "websocket.close"})
            return
        pending: deque[CountedRequest] = deque()

        async def counting_send(message: Message) -> None:
            await send(message)
            if pending and (status := status_of_end(message.get("text") or "")):
                pending[0].status = status
                pending.popleft().end()

        async def bounded_receive() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive":
                pending.append(CountedRequest(scope["path"]))
                if (
                    len(message.get("bytes") or (message.get("text") or "").encode())
                    > MAX_BODY_BYTES
                ):
                    pending[-1].status = 413
                    await send({"type": "websocket.close", "code": 1009})
                    return {"type": "websocket.disconnect", "code": 1009}
            return message

        try:
            await self.app(scope, bounded_receive, counting_send)
        finally:
            for counted in pending:
                counted.end()


class _RequestBody:
    """An HTTP request's body. The app reads it through `receive`, which raises ContractError (413)
    beyond MAX_BODY_BYTES; `drain` discards the rest.

    A body must not be left unread. A server may queue a limited number of its pieces (Hypercorn:
    10). Once that queue is full, the last `send` of a response waits forever, and the request stays
    in flight.
    """

    def __init__(self, scope: Message, receive: Receive):
        headers = dict(scope["headers"])
        self._receive = receive
        self._read = 0
        # A client that expects "100 Continue" sends its body only after it, and `receive` makes
        # the server send it.
        self._awaited = headers.get(b"expect", b"").lower() == b"100-continue"
        self.ended = (
            headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers
        )

    @property
    def is_too_long(self) -> bool:
        return self._read > MAX_BODY_BYTES

    async def receive(self) -> Message:
        message = await self._next()
        if self.is_too_long:  # a chunked body gives no length in advance
            raise body_too_large()
        return message

    async def _next(self) -> Message:
        self._awaited = False
        message = await self._receive()
        self._read += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            self.ended = True
        return message

    async def drain(self) -> None:
        """Discard the rest of the body, up to MAX_DRAIN_BYTES and for at most DRAIN_S."""
        if self.ended or self._awaited:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while not self.ended and self._read < MAX_DRAIN_BYTES:
                    await self._next()

    @contextlib.asynccontextmanager
    async def discarded(self) -> AsyncIterator[None]:
        """Discard arriving pieces while the last message of a response is being sent."""
        if self.ended or self._awaited:
            yield
            return
        discarding = asyncio.ensure_future(self._discard())
        try:
            yield
        finally:
            discarding.cancel()
            await asyncio.gather(discarding, return_exceptions=True)

    async def _discard(self) -> None:
        while not self.ended:
            await self._next()


def _refusal_of(scope: Message) -> ContractError | None:
    headers = dict(scope["headers"])
    return find_refusal(
        headers.get(b"authorization", b"").decode("latin-1"),
        headers.get(b"content-length", b"").decode("latin-1"),
    )


async def _refuse(send: Send, refusal: ContractError, kind: str = "http.response") -> None:
    await _send(
        send,
        refusal.status,
        {"content-type": "application/json"} | refusal.headers,
        json.dumps(refusal.body()).encode(),
        kind,
    )


async def _send(
    send: Send, status: int, headers: Mapping[str, str], body: bytes, kind: str = "http.response"
) -> None:
    await send(
        {
            "type": f"{kind}.start",
            "status": status,
            "headers": [(n.lower().encode(), v.encode()) for n, v in headers.items()],
        }
    )
    await send({"type": f"{kind}.body", "body": body})
