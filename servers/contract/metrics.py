"""What every server counts, under the same names, and the middlewares that count it: one for WSGI,
one for ASGI.

Being below the framework they see every answer as the client gets it, to its last byte, and need
nothing from `app.py`. They also answer `GET /metrics`, refuse bodies that are too long (413), what
is more than SERVEOFF_MAX_IN_FLIGHT at once (429) and, if SERVEOFF_API_KEY is set, requests without
it (401). A framework that is neither does the same with `Counted`, `refusal_of` and `exposition`.
On a WebSocket each message is a request.
"""

import asyncio
import hmac
import io
import json
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, ClassVar
from urllib.parse import parse_qs

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from servers.contract.api import MAX_BODY_BYTES, ContractError, status_of_end
from servers.runtime.limits import MAX_IN_FLIGHT

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
# "livesum": with several worker processes, the sum over those that live
REQUESTS = Counter("serveoff_requests", "answers by status", ["path", "status"])
IN_FLIGHT = Gauge(
    "serveoff_requests_in_flight",
    "requests between their arrival and the last byte of the answer",
    multiprocess_mode="livesum",
)
LATENCY = Histogram(
    "serveoff_request_seconds",
    "from arrival to the last byte of the answer",
    ["path"],
    buckets=SECONDS,
)
RUNNING = Gauge(
    "serveoff_requests_running", "requests that the engine works on", multiprocess_mode="livesum"
)
QUEUE_SECONDS = Histogram("serveoff_queue_seconds", "waiting for the engine", buckets=SECONDS)
TOKENS = Counter("serveoff_tokens", "tokens answered")
LOOP_TICK_S = 0.05
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/health")


class _Families(list[Metric]):
    def collect(self) -> Iterable[Metric]:
        return self


class _Processes(Collector):
    """All worker processes. Prometheus' own collector fails on the file of a worker that has just
    begun, or was killed then, which is still empty (client_python, issue 1199); one of 100 workers
    often has.
    """

    def collect(self) -> Iterable[Metric]:
        with os.scandir(os.environ["PROMETHEUS_MULTIPROC_DIR"]) as there:
            files = [file.path for file in there if file.name.endswith(".db") and _is_begun(file)]
        return MultiProcessCollector.merge(files, accumulate=True)  # type: ignore[no-untyped-call, no-any-return]


def _is_begun(file: "os.DirEntry[str]") -> bool:
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:  # that of a worker that has just ended
        return False


def exposition(query: str) -> bytes:
    """`name[]=...` asks for some names only, as with Prometheus' own client: vLLM's series take 3
    ms, in which no token is sent.
    """
    collector: Collector = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        collector = _Processes()
    elif names := parse_qs(query).get("name[]"):
        collector = REGISTRY.restricted_registry(
            [*names, "serveoff_requests_in_flight", "serveoff_requests_running"]
        )
    families = _Families(collector.collect())
    said = {
        sample.name: sample.value
        for family in families
        if family.type == "gauge"
        for sample in family.samples
    }
    families.append(
        GaugeMetricFamily(
            "serveoff_requests_waiting",
            "requests in flight that the engine has not begun",
            max(
                0,
                said.get("serveoff_requests_in_flight", 0)
                - said.get("serveoff_requests_running", 0),
            ),
        )
    )
    return generate_latest(families)


class Counted:
    """One request, from its arrival to the end of its answer, which `end` says. `status` is of the
    answer, as far as it is known. `in_flight`: how many there are in this process.
    """

    in_flight: ClassVar[int] = 0
    lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: str):
        # a client must not be able to make new time series
        self.path = path if path in PATHS else "other"
        self.status = 499  # what nginx logs for a client that went away before the answer
        self.began = time.perf_counter()
        IN_FLIGHT.inc()
        self._change(1)

    def end(self) -> None:
        REQUESTS.labels(self.path, self.status).inc()
        LATENCY.labels(self.path).observe(time.perf_counter() - self.began)
        self._change(-1)
        IN_FLIGHT.dec()  # last: whoever sees none in flight sees all of them counted

    @classmethod
    def _change(cls, by: int) -> None:
        with cls.lock:
            cls.in_flight += by


@cache
def _loop_lag() -> Histogram:
    """Made when it is first needed: a server without an event loop has none, which is not 0."""
    return Histogram(
        "serveoff_event_loop_lag_seconds",
        "how late the event loop ran what was due, each 50 ms",
        buckets=(0.001, 0.0025, *SECONDS),
    )


class LoopLag:
    """Records how late its event loop runs a callback that is due each LOOP_TICK_S. What was due
    while the loop was busy counts, too: else ten seconds in which nothing ran would be one late
    callback among many that were not. A timer, and no task: it keeps no loop from ending, and
    nothing has to be cancelled.
    """

    watched: ClassVar[asyncio.AbstractEventLoop | None] = None

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop, self.lag = loop, _loop_lag()
        self.due = time.perf_counter() + LOOP_TICK_S
        loop.call_later(LOOP_TICK_S, self.tick)

    def tick(self) -> None:
        now = time.perf_counter()
        while self.due <= now:
            self.lag.observe(now - self.due)
            self.due += LOOP_TICK_S
        # uvloop's timers count whole milliseconds and may come early
        self.loop.call_later(max(0.001, self.due - now), self.tick)

    @classmethod
    def watch(cls) -> None:
        """The running loop, from the first call on."""
        if cls.watched is not (loop := asyncio.get_running_loop()):
            cls.watched = loop
            cls(loop)


async def idle(patience_s: float = 10.0) -> None:
    """Waits until no request is in flight: for servers that would cut the answers under way when
    they are told to end.
    """
    deadline = time.monotonic() + patience_s
    busy: float | None = 1
    while busy and time.monotonic() < deadline:
        busy = REGISTRY.get_sample_value("serveoff_requests_in_flight")
        # also after the last of them: its last bytes may still be in a buffer
        await asyncio.sleep(0.05)


def refusal_of(authorization: str, content_length: str) -> ContractError | None:
    """Of a request that is counted already."""
    key = os.environ.get("SERVEOFF_API_KEY")
    if key and not hmac.compare_digest(authorization.encode("latin-1"), f"Bearer {key}".encode()):
        return ContractError(
            401,
            "missing or wrong API key: send it as 'Authorization: Bearer KEY'",
            None,
            "invalid_api_key",
        )
    if (
        content_length.isascii()
        and content_length.isdigit()
        and int(content_length) > MAX_BODY_BYTES
    ):
        return too_large()
    if Counted.in_flight > MAX_IN_FLIGHT:
        message = f"{MAX_IN_FLIGHT} requests are in flight, and no more may be: try again later"
        return ContractError(429, message, None, "too_many_requests", 1)
    return None


def too_large() -> ContractError:
    return ContractError(
        413, f"the body is longer than {MAX_BODY_BYTES} bytes", None, "body_too_large"
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
            yield exposition(environ.get("QUERY_STRING", ""))
            return
        counted = Counted(path)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            counted.status = int(status[:3])
            return start_response(status, headers, exc_info)

        answer: Iterable[bytes] = ()
        try:
            refusal = path != "/health" and refusal_of(
                environ.get("HTTP_AUTHORIZATION", ""), environ.get("CONTENT_LENGTH", "")
            )
            # no length beforehand, and Werkzeug just cuts at its limit
            if not refusal and "HTTP_TRANSFER_ENCODING" in environ:
                body = environ["wsgi.input"].read(MAX_BODY_BYTES + 1)
                environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
                refusal = len(body) > MAX_BODY_BYTES and too_large()
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
                exposition(scope.get("query_string", b"").decode("latin-1")),
            )
            return
        counted = Counted(scope["path"])
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
                raise too_large()
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
                await _refuse(send, too_large())
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
        asked: deque[Counted] = deque()  # and not yet answered

        async def counting_send(message: dict[str, Any]) -> None:
            await send(message)
            if asked and (status := status_of_end(message.get("text") or "")):
                asked[0].status = status
                asked.popleft().end()

        async def bounded_receive() -> Any:
            message = await receive()
            if message["type"] == "websocket.receive":
                asked.append(Counted(scope["path"]))
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
    return refusal_of(
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
