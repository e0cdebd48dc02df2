"""AsgiMetrics leaves no body unread: under a server that queues only a few pieces of it, such as
Hypercorn, the request would stay in flight forever.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from servers.contract import metrics_middleware
from servers.contract.api import MAX_BODY_BYTES
from servers.contract.metrics import CountedRequest

QUEUE_SIZE = 10  # Hypercorn's max_app_queue_size
PIECE = b"x" * 65536
PATIENCE_S = 20


class BoundedServer:
    """The server's part of one ASGI request, as in Hypercorn: one bounded queue for the pieces of
    the body and for the disconnect after the end of the response.
    """

    def __init__(self, pieces: Iterable[bytes], headers: dict[bytes, bytes], stalls: bool = False):
        self.pieces, self.stalls = pieces, stalls
        self.scope = {
            "type": "http",
            "path": "/v1/completions",
            "headers": [*headers.items()],
            "query_string": b"",
        }
        self.queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(QUEUE_SIZE)
        self.sent: list[dict[str, Any]] = []
        self.received = 0

    async def feed(self) -> None:
        for piece in self.pieces:
            await self.queue.put({"type": "http.request", "body": piece, "more_body": True})
            self.received += len(piece)
        if not self.stalls:
            await self.queue.put({"type": "http.request", "body": b"", "more_body": False})

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            await self.queue.put({"type": "http.disconnect"})

    async def serve(self, app: Callable[..., Any]) -> None:
        reader = asyncio.ensure_future(self.feed())
        try:
            await asyncio.wait_for(
                metrics_middleware.AsgiMetrics(app)(self.scope, self.queue.get, self.send),
                PATIENCE_S,
            )
        finally:
            reader.cancel()

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def closes(self) -> bool:
        return dict(self.sent[0]["headers"]).get(b"connection") == b"close"


def long_body(stalls: bool = False) -> BoundedServer:
    """Return a body of half the allowed length, and many times the queue's."""
    pieces = [PIECE] * (MAX_BODY_BYTES // len(PIECE) // 2)
    return BoundedServer(pieces, {b"content-length": b"%d" % (MAX_BODY_BYTES // 2)}, stalls)


async def respond_at_once(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"no such path"})


@pytest.fixture(autouse=True)
def nothing_stays_in_flight() -> Iterable[None]:
    before = CountedRequest.in_flight
    yield
    assert CountedRequest.in_flight == before


def test_an_app_may_respond_without_reading_the_body() -> None:
    server = long_body()
    asyncio.run(server.serve(respond_at_once))
    assert server.status == 404 and server.received == MAX_BODY_BYTES // 2


def test_an_app_may_fail_without_reading_the_body() -> None:
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("planned")

    server = long_body()
    with pytest.raises(RuntimeError, match="planned"):
        asyncio.run(server.serve(fail))
    assert server.received == MAX_BODY_BYTES // 2


def test_the_metrics_page_may_have_a_body() -> None:
    server = long_body()
    server.scope["path"] = "/metrics"
    asyncio.run(server.serve(respond_at_once))
    assert server.status == 200


def test_a_refused_body_is_read_to_its_end_and_the_connection_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SERVEOFF_API_KEY", "secret")
    server = long_body()
    asyncio.run(server.serve(respond_at_once))
    assert server.status == 401 and server.received == MAX_BODY_BYTES // 2 and not server.closes


@pytest.mark.parametrize("header", [b"content-length", b"transfer-encoding"])
def test_a_body_that_never_ends_is_refused_within_the_bound(header: bytes) -> None:
    async def read_all(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await respond_at_once(scope, receive, send)

    value = b"chunked" if header == b"transfer-encoding" else b"%d" % 10**12
    server = BoundedServer(itertools.repeat(PIECE), {header: value})
    asyncio.run(server.serve(read_all))
    assert server.status == 413 and server.closes
    bound = metrics_middleware.MAX_DRAIN_BYTES
    assert bound <= server.received < bound + 2 * QUEUE_SIZE * len(PIECE) + MAX_BODY_BYTES


def test_a_body_that_stalls_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVEOFF_API_KEY", "secret")
    monkeypatch.setattr(metrics_middleware, "DRAIN_S", 0.2)
    server = long_body(stalls=True)
    asyncio.run(server.serve(respond_at_once))
    assert server.status == 401 and server.closes


def test_a_client_that_expects_100_continue_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading the body would request it."""
    monkeypatch.setenv("SERVEOFF_API_KEY", "secret")
    monkeypatch.setattr(metrics_middleware, "DRAIN_S", 10 * PATIENCE_S)
    server = BoundedServer([], {b"content-length": b"9", b"expect": b"100-continue"}, stalls=True)
    asyncio.run(server.serve(respond_at_once))
    assert server.status == 401 and server.closes
