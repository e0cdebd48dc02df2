"""Scrapes the server's own metrics: `GET /metrics` (Prometheus text) once per second.

The scrape must not change the measurement. vLLM's server takes 3 ms to write its 450 series and
sends no token meanwhile: one gap in a hundred would be longer. So a scrape asks for all series
every ten seconds, and every second only for the few in FREQUENT_QUERY, with the `name[]` that
Prometheus' Python client understands. A server that ignores the names and responds at length, as
vLLM's own does, is asked every five seconds. The texts are stored as they are;
`loadtests/campaign/parquet.py` parses them after the case, in 13 us per series. A failed scrape is
null and stops nothing.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from prometheus_client.parser import text_string_to_metric_families

from loadtests.client import http, transport
from servers.contract.chunks import CHAT_COMPLETIONS, COMPLETIONS
from servers.profile.access import Access, read_access
from servers.runtime.limits import SCRAPE_S

METRICS_OF = "SERVEOFF_METRICS_OF"  # the base URLs, for the sampling process
PERIOD_S = 1.0
ALL_EVERY = 10  # scrapes
LONG_PERIOD_S = 5.0
LONG_BYTES = 20_000  # about 1 ms of the server's time
MAX_BYTES = 2**20  # vLLM's 450 series are 55 KB


class MetricsUnavailable(Exception):
    """A scrape failed, with the reason. With `for_good`, later scrapes would fail as well."""

    def __init__(self, reason: str, for_good: bool = False):
        super().__init__(reason)
        self.for_good = for_good


class Sample(NamedTuple):
    name: str
    labels: Mapping[str, str]
    value: float


def fetch_metrics(
    base_urls: str, patience_s: float, query: str = "", access: Access | None = None
) -> str:
    """Fetches the metrics of one server, or of several as if they were one. Raises
    MetricsUnavailable, after at most `patience_s`, however slowly the bytes arrive.
    """
    deadline = time.perf_counter() + patience_s
    access = access or read_access()
    return "".join(
        _fetch(base_url, f"/metrics{query}", deadline, patience_s, access, MAX_BYTES)
        for base_url in base_urls.split(",")
    )


def fetch_url(base_url: str, path: str, patience_s: float, access: Access, most_bytes: int) -> str:
    """Fetches any text of at most `most_bytes`. Raises MetricsUnavailable, after at most
    `patience_s`.
    """
    deadline = time.perf_counter() + patience_s
    return _fetch(base_url, path, deadline, patience_s, access, most_bytes)


def _fetch(
    base_url: str, path: str, deadline: float, patience_s: float, access: Access, most_bytes: int
) -> str:
    """Fetches one text. It sends as soon as it is connected and keeps no connection: an idle one
    would block a sync worker.
    """
    protocol = http.HttpProtocol(base_url, access)
    exchange = http.Exchange()
    parser, complete = http.ResponseParser(exchange), False
    try:
        with transport.Transport(base_url, patience_s, access).connect() as sock:
            sock.sendall(protocol.encode_get(path))
            while not complete:
                sock.settimeout(transport.remaining_or_timeout(deadline))
                data, arrived_s, lag_s = transport.read_stamped(sock)
                if not data and exchange.status is None:
                    raise MetricsUnavailable("the connection was closed without a response")
                complete = parser.feed(data, arrived_s, lag_s)
                if len(exchange.body) > most_bytes:
                    raise MetricsUnavailable(f"more than {most_bytes:,} bytes", for_good=True)
    except TimeoutError:
        raise MetricsUnavailable(f"no response within {patience_s:.3g} s") from None
    except UnicodeError:
        raise MetricsUnavailable("it has no valid host name") from None
    except (OSError, http.ResponseError) as error:
        raise MetricsUnavailable(getattr(error, "strerror", None) or str(error)) from None
    status = exchange.status or 0
    if status != 200:
        raise MetricsUnavailable(f"http {status}", for_good=status < 500 and status != 429)
    return exchange.body.decode(errors="replace")


def parse_metrics(text: str) -> list[Sample]:
    """Parses at least one sample. Raises MetricsUnavailable."""
    try:
        found = [
            Sample(*sample[:3])
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]
    except ValueError:
        found = []
    if not found:
        raise MetricsUnavailable("the response is not Prometheus text", for_good=True)
    return found


class Scraper:
    """Appends a line for each scrape to `out`: {time_s, took_s, text}; text is null if the scrape
    failed. Calls `report` once for each reason.
    """

    def __init__(
        self,
        base_urls: str,
        out: Path,
        clock_zero: float,
        report: Callable[[str], None],
        access: Access | None = None,
    ):
        self.base_urls, self.out, self.clock_zero, self.report = base_urls, out, clock_zero, report
        self.access = access or read_access()
        self.reported = set[str]()
        self.responses, self.all_every, self.period_s = 0, ALL_EVERY, PERIOD_S
        self.ended = False

    def run(self) -> None:
        """Scrapes in its own thread, one scrape at a time, so the sampling does not wait for it.
        Ends if the server has no metrics.
        """
        start_s = time.perf_counter()
        try:
            # unbuffered: each line is one write, so the end of the process cannot halve it
            with self.out.open("ab", buffering=0) as lines:
                while not self.ended:
                    asked_s = time.perf_counter()
                    text = self.ask()
                    took_s = time.perf_counter() - asked_s
                    row = {
                        "time_s": round(asked_s - self.clock_zero, 6),
                        "took_s": round(took_s, 6),
                        "text": text,
                    }
                    line = json.dumps(row).encode() + b"\n"
                    # a partial write means a full disk; no line may follow a broken one
                    if lines.write(line) != len(line):
                        return
                    # ticks are at start_s + n * period, independent of a scrape's time; missed
                    # ticks are skipped
                    if not self.ended:
                        time.sleep(self.period_s - (time.perf_counter() - start_s) % self.period_s)
        except OSError as error:
            self.report(f"the server's own metrics end here: {error}")

    def ask(self) -> str | None:
        few = self.responses % self.all_every > 0
        try:
            text = fetch_metrics(
                self.base_urls, SCRAPE_S, FREQUENT_QUERY if few else "", self.access
            )
            if not self.responses:
                parse_metrics(text)  # raises if the text is not Prometheus'
            if few and not text.strip():
                raise MetricsUnavailable("no series with these names", for_good=True)
        except MetricsUnavailable as error:
            # the server cannot select series, but it has sent all of them before
            if few and error.for_good:
                self.all_every = 1
                return self.ask()
            self.ended |= error.for_good
            if str(error) not in self.reported:
                self.reported.add(str(error))
                self.report(
                    f"GET /metrics: {error}: the server's own metrics are null"
                    + ("" if error.for_good else " where that happens")
                )
            return None
        self.responses += 1
        if len(text) > LONG_BYTES and (few or self.all_every == 1):
            self.period_s = LONG_PERIOD_S
        return text


class CounterNames(NamedTuple):
    """The names of a kind of server's counters. `complete` are the labels of requests whose
    response had status 200 and was complete. `requests` is empty if it does not count them.
    """

    requests: str
    complete: Mapping[str, tuple[str, ...]]
    tokens: str
    busy: tuple[str, ...]  # gauges that are 0 when the server is idle


KNOWN_SERVERS = (
    CounterNames(
        "serveoff_requests_total",
        {"path": (COMPLETIONS, CHAT_COMPLETIONS), "status": ("200",)},
        "serveoff_tokens_total",
        ("serveoff_requests_in_flight", "serveoff_requests_running"),
    ),
    CounterNames(
        "vllm:request_success_total",
        {"finished_reason": ("stop", "length", "repetition")},
        "vllm:generation_tokens_total",
        ("vllm:num_requests_running", "vllm:num_requests_waiting"),
    ),
    CounterNames(
        "",
        {},
        "llamacpp:tokens_predicted_total",
        ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
    ),
)
OTHER_SERIES = (
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
    "serveoff_kv_positions_total",
    "serveoff_kv_positions_useful_total",
    "vllm:num_preemptions_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:iteration_tokens_total_count",
    "serveoff_cache_hits_total",
    "serveoff_cache_misses_total",
    "serveoff_event_loop_lag_seconds_bucket",
)
FREQUENT_QUERY = "?" + urlencode(
    [
        ("name[]", name)
        for names in (*((by.requests, by.tokens, *by.busy) for by in KNOWN_SERVERS), OTHER_SERIES)
        for name in names
        if name
    ]
)
