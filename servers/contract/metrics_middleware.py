"""WSGI and ASGI middleware that counts requests, refuses what is too much, and serves /metrics."""

import io
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from servers.contract.api import MAX_BODY_BYTES, ContractError, status_of_end
from servers.contract.metrics import (
    CountedRequest,
    LoopLag,
    body_too_large,
    find_refusal,
    render_metrics,
)


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

        answer: Iterable[bytes] = ()
        try:
            refusal = path != "/health" and find_refusal(
                environ.get("HTTP_AUTHORIZATION", ""), environ.get("CONTENT_LENGTH", "")
            )
            # no length beforehand, and Werkzeug just cuts at its limit
            if not refusal and "HTTP_TRANSFER_ENCODING" in environ:
                body = environ["wsgi.input"].read(MAX_BODY_BYTES + 1)
                environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
                refusal = len(body) > MAX_BODY_BYTES and body_too_large()
            if refusal:
                # else the closing socket resets and the client may never see why
                for _ in range(4 * MAX_BODY_BYTES // 65536):
                    if not environ["wsgi.input"].read(65536):
                        break
                headers = {
                    "Content-Type": "application/json",
                    "Connection": "close",
                } | refusal.headers
                start(f"{refusal.status} Refused", [*headers.items()])
                yield json.dumps(refusal.body()).encode()
                return
            answer = self.app(environ, start)
            yield from answer
        finally:
            if close := getattr(answer, "close", None):
                close()
            counted.end()


class AsgiMetrics:
    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(
        self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]
    ) -> None:
        if scope["type"] != "lifespan":  # in which the engine loads, and nobody waits yet
            LoopLag.watch()
        if scope["type"] == "websocket":
            await self.websocket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"] == "/metrics":
            await _send(
                send,
                200,
                {"content-type": CONTENT_TYPE_LATEST},
                render_metrics(scope.get("query_string", b"").decode("latin-1")),
            )
            return
        counted = CountedRequest(scope["path"])
        read = 0

        async def counting_send(message: dict[str, Any]) -> None:
            if read > MAX_BODY_BYTES:
                return  # what the framework makes of the exception below; ours follows
            if message["type"] == "http.response.start":
                counted.status = message["status"]
            await send(message)

        async def bounded_receive() -> Any:  # a chunked body gives no length beforehand
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY_BYTES:
                raise body_too_large()
            return message

        try:
            refusal = scope["path"] != "/health" and _refusal_of(scope)
            if refusal:
                await _refuse(counting_send, refusal)
                return
            try:
                await self.app(scope, bounded_receive, counting_send)
            except ContractError:
                if read <= MAX_BODY_BYTES:
                    raise
            if read > MAX_BODY_BYTES:
                counted.status = 413
                await _refuse(send, body_too_large())
        except Exception:
            if counted.status == 499:  # nothing was answered yet: whoever is above us answers 500
                counted.status = 500
            raise
        finally:
            counted.end()

    async def websocket(
        self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]
    ) -> None:
        if refusal := _refusal_of(scope):
            if "websocket.http.response" in (scope.get("extensions") or ()):
                await _refuse(send, refusal, "websocket.http.response")
            else:  # all that ASGI has without this extension: the server answers 403
                await send({"type": "websocket.close"})
            return
        asked: deque[CountedRequest] = deque()  # and not yet answered

        async def counting_send(message: dict[str, Any]) -> None:
            await send(message)
            if asked and (status := status_of_end(message.get("text") or "")):
                asked[0].status = status
                asked.popleft().end()

        async def bounded_receive() -> Any:
            message = await receive()
            if message["type"] == "websocket.receive":
                asked.append(CountedRequest(scope["path"]))
                if (
                    len(message.get("bytes") or (message.get("text") or "").encode())
                    > MAX_BODY_BYTES
                ):
                    asked[-1].status = 413
                    await send({"type": "websocket.close", "code": 1009})
                    return {"type": "websocket.disconnect", "code": 1009}
            return message

        try:
            await self.app(scope, bounded_receive, counting_send)
        finally:
            for counted in asked:
                counted.end()


def _refusal_of(scope: dict[str, Any]) -> ContractError | None:
    headers = dict(scope["headers"])
    return find_refusal(
        headers.get(b"authorization", b"").decode("latin-1"),
        headers.get(b"content-length", b"").decode("latin-1"),
    )


async def _refuse(
    send: Callable[..., Any], refusal: ContractError, kind: str = "http.response"
) -> None:
    await _send(
        send,
        refusal.status,
        {"content-type": "application/json"} | refusal.headers,
        json.dumps(refusal.body()).encode(),
        kind,
    )


async def _send(
    send: Callable[..., Any],
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    kind: str = "http.response",
) -> None:
    await send(
        {
            "type": f"{kind}.start",
            "status": status,
            "headers": [(n.lower().encode(), v.encode()) for n, v in headers.items()],
        }
    )
    await send({"type": f"{kind}.body", "body": body})
