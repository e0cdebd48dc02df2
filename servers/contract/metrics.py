"""The metrics that every server exports under the same names, and the reasons to refuse a request.

The WSGI and ASGI middlewares in `servers/contract/metrics_middleware.py` count and refuse requests.
A framework that is neither calls `CountedRequest`, `find_refusal` and `render_metrics` itself. On a
WebSocket, each message is a request.
"""

import asyncio
import hmac
import os
import threading
import time
from collections.abc import Iterable
from functools import cache
from typing import ClassVar
from urllib.parse import parse_qs

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from servers.contract.api import MAX_BODY_BYTES, ContractError
from servers.runtime.limits import MAX_IN_FLIGHT

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
# "livesum": with several worker processes, the sum over those that are alive
REQUESTS = Counter("serveoff_requests", "responses by status", ["path", "status"])
IN_FLIGHT = Gauge(
    "serveoff_requests_in_flight",
    "requests between their arrival and the last byte of the response",
    multiprocess_mode="livesum",
)
LATENCY = Histogram(
    "serveoff_request_seconds",
    "from arrival to the last byte of the response",
    ["path"],
    buckets=SECONDS,
)
RUNNING = Gauge("serveoff_requests_running", "requests in the engine", multiprocess_mode="livesum")
QUEUE_SECONDS = Histogram("serveoff_queue_seconds", "waiting for the engine", buckets=SECONDS)
TOKENS = Counter("serveoff_tokens", "generated tokens")
LOOP_TICK_S = 0.05
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/health")


class _Families(list[Metric]):
    def collect(self) -> Iterable[Metric]:
        return self


class _Processes(Collector):
    """Sums the metrics of all worker processes. Prometheus' own collector fails on the empty file
    of a worker that has just started or was killed then (client_python, issue 1199). With 100
    workers that is common.
    """

    def collect(self) -> Iterable[Metric]:
        with os.scandir(os.environ["PROMETHEUS_MULTIPROC_DIR"]) as there:
            files = [file.path for file in there if file.name.endswith(".db") and _has_data(file)]
        return MultiProcessCollector.merge(files, accumulate=True)  # type: ignore[no-untyped-call, no-any-return]


def _has_data(file: "os.DirEntry[str]") -> bool:
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:  # its worker has just ended
        return False


def render_metrics(query: str) -> bytes:
    """Return the Prometheus text. As in Prometheus' own client, `name[]=...` in the query selects
    names: rendering vLLM's series takes 3 ms, in which no token is sent.
    """
    collector: Collector = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        collector = _Processes()
    elif names := parse_qs(query).get("name[]"):
        collector = REGISTRY.restricted_registry(
            [*names, "serveoff_requests_in_flight", "serveoff_requests_running"]
        )
    families = _Families(collector.collect())
    gauges = {
        sample.name: sample.value
        for family in families
        if family.type == "gauge"
        for sample in family.samples
    }
    families.append(
        GaugeMetricFamily(
            "serveoff_requests_waiting",
            "requests in flight that the engine has not started",
            max(
                0,
                gauges.get("serveoff_requests_in_flight", 0)
                - gauges.get("serveoff_requests_running", 0),
            ),
        )
    )
    return generate_latest(families)


class CountedRequest:
    """Counts one request, from its arrival to `end`, which the server calls after the last byte of
    the response. `status` is the response's, once known. `in_flight` counts those of this process.
    """

    in_flight: ClassVar[int] = 0
    lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: str):
        # a client must not be able to create time series
        self.path = path if path in PATHS else "other"
        self.status = 499  # nginx logs this for a client that disconnects before the response
        self.began = time.perf_counter()
        IN_FLIGHT.inc()
        self._change(1)

    def end(self) -> None:
        REQUESTS.labels(self.path, self.status).inc()
        LATENCY.labels(self.path).observe(time.perf_counter() - self.began)
        self._change(-1)
        IN_FLIGHT.dec()  # last: when none is in flight, all have been counted

    @classmethod
    def _change(cls, by: int) -> None:
        with cls.lock:
            cls.in_flight += by


@cache
def _loop_lag() -> Histogram:
    """Create it on first use: a server without an event loop has no lag, which differs from 0."""
    return Histogram(
        "serveoff_event_loop_lag_seconds",
        "how late the event loop ran a callback due every 50 ms",
        buckets=(0.001, 0.0025, *SECONDS),
    )


class LoopLag:
    """Records how late its event loop runs a callback that is due every LOOP_TICK_S. Ticks that
    were due while the loop was busy also count: otherwise a stall of ten seconds would be one late
    callback among many punctual ones. It is a timer, not a task, so it never keeps a loop alive and
    needs no cancelling.
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
        """Watch the running loop from the first call on."""
        if cls.watched is not (loop := asyncio.get_running_loop()):
            cls.watched = loop
            cls(loop)


async def wait_until_idle(patience_s: float = 10.0) -> None:
    """Wait until no request is in flight, at most `patience_s`: for servers that would cut
    responses short when asked to shut down.
    """
    deadline = time.monotonic() + patience_s
    busy: float | None = 1
    while busy and time.monotonic() < deadline:
        busy = REGISTRY.get_sample_value("serveoff_requests_in_flight")
        # also after the last request: its last bytes may still be in a buffer
        await asyncio.sleep(0.05)


def find_refusal(authorization: str, content_length: str) -> ContractError | None:
    """Return the reason to refuse a request, or None. The request must already be counted."""
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
        return body_too_large()
    if CountedRequest.in_flight > MAX_IN_FLIGHT:
        message = f"{MAX_IN_FLIGHT} requests are already in flight: try again later"
        return ContractError(429, message, None, "too_many_requests", 1)
    return None


def body_too_large() -> ContractError:
    return ContractError(
        413, f"the body is longer than {MAX_BODY_BYTES} bytes", None, "body_too_large"
    )
