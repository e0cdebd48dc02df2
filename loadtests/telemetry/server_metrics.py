"""The server's own view of the load: its `GET /metrics` (Prometheus text) once a second, and its
counters before and after.

Looking must not change what is seen. Writing down vLLM's 450 series takes its server 3 ms, in which
no token is sent on: one gap in a hundred would be longer for it. So all of them are asked for every
ten seconds, and every second only the FEW that make a picture over time, by the `name[]` that
Prometheus' Python client understands. A server that answers that at length (vLLM's own) is asked
every five seconds. The texts are kept as they are, and taken apart at the case's end by
`loadtests/campaign/parquet.py`: 13 us a series. What does not come is null and stops nothing.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from prometheus_client.parser import text_string_to_metric_families

from loadtests.client import http, transport
from servers.contract.api import CHAT_COMPLETIONS, COMPLETIONS
from servers.runtime.limits import SCRAPE_S

PERIOD_S = 1.0
ALL_EVERY = 10  # scrapes
LONG_PERIOD_S = 5.0
LONG_BYTES = 20_000  # some 1 ms of the server's time
MAX_BYTES = 2**20  # vLLM's 450 series are 55 KB


class MetricsUnavailable(Exception):
    """Why there are none; `for_good`: nor will there be any a second later."""

    def __init__(self, reason: str, for_good: bool = False):
        super().__init__(reason)
        self.for_good = for_good


class Sample(NamedTuple):
    name: str
    labels: Mapping[str, str]
    value: float


def fetch_metrics(base_urls: str, patience_s: float, query: str = "") -> str:
    """The answer's text, or those of several servers, one after the other, which are read as one
    that serves it all. Raises NoMetrics, after `patience_s` at the latest however slowly something
    comes.
    """
    deadline = time.perf_counter() + patience_s
    return "".join(
        _fetch(base_url, deadline, patience_s, query) for base_url in base_urls.split(",")
    )


def _fetch(base_url: str, deadline: float, patience_s: float, query: str) -> str:
    """It asks as soon as it is connected, and no connection is kept: a sync worker is blocked by
    one that is idle.
    """
    protocol = http.HttpProtocol(base_url, os.environ.get("SERVEOFF_API_KEY"))
    exchange = http.Exchange()
    parser, complete = http.ResponseParser(exchange), False
    try:
        with transport.Transport(base_url, patience_s).connect() as sock:
            sock.sendall(protocol.encode_get(f"/metrics{query}"))
            while not complete:
                sock.settimeout(transport.remaining_or_timeout(deadline))
                data, arrived_s, lag_s = transport.read_stamped(sock)
                if not data and exchange.status is None:
                    raise MetricsUnavailable("the connection was closed without an answer")
                complete = parser.feed(data, arrived_s, lag_s)
                if len(exchange.body) > MAX_BYTES:
                    raise MetricsUnavailable(f"more than {MAX_BYTES:,} bytes", for_good=True)
    except TimeoutError:
        raise MetricsUnavailable(f"no answer within {patience_s:.3g} s") from None
    except (OSError, http.ResponseError) as error:
        raise MetricsUnavailable(getattr(error, "strerror", None) or str(error)) from None
    status = exchange.status or 0
    if status != 200:
        raise MetricsUnavailable(f"http {status}", for_good=status < 500 and status != 429)
    return exchange.body.decode(errors="replace")


def parse_metrics(text: str) -> list[Sample]:
    """At least one sample. Raises NoMetrics."""
    try:
        found = [
            Sample(*sample[:3])
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]
    except ValueError:
        found = []
    if not found:
        raise MetricsUnavailable("the answer is no Prometheus text", for_good=True)
    return found


class Scraper:
    """Appends a line for each scrape to `out`: {time_s, took_s, text}, text null if none came;
    Calls `say` with each reason once.
    """

    def __init__(self, base_urls: str, out: Path, clock_zero: float, say: Callable[[str], None]):
        self.base_urls, self.out, self.clock_zero, self.say = base_urls, out, clock_zero, say
        self.said = set[str]()
        self.answers, self.all_every, self.period_s = 0, ALL_EVERY, PERIOD_S
        self.ended = False

    def run(self) -> None:
        """For a thread of its own: one scrape at a time, and whoever samples does not wait for it.
        Ends if there is nothing.
        """
        start_s = time.perf_counter()
        try:
            # unbuffered: each line is one write, and no end of the process halves it
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
                    # half of it: the disk is full, and nothing may follow that half
                    if lines.write(line) != len(line):
                        return
                    # the ticks are start_s + n * period, whatever a scrape takes; missed ones are
                    # left out
                    if not self.ended:
                        time.sleep(self.period_s - (time.perf_counter() - start_s) % self.period_s)
        except OSError as error:
            self.say(f"the server's own metrics end here: {error}")

    def ask(self) -> str | None:
        few = self.answers % self.all_every > 0
        try:
            text = fetch_metrics(self.base_urls, SCRAPE_S, FREQUENT_QUERY if few else "")
            if not self.answers:
                parse_metrics(text)  # only to see that it is none
            if few and not text.strip():
                raise MetricsUnavailable("nothing by these names", for_good=True)
        except MetricsUnavailable as error:
            # it cannot be asked for some, but it has answered in full before
            if few and error.for_good:
                self.all_every = 1
                return self.ask()
            self.ended |= error.for_good
            if str(error) not in self.said:
                self.said.add(str(error))
                self.say(
                    f"GET /metrics: {error}: the server's own metrics are null"
                    + ("" if error.for_good else " where that happens")
                )
            return None
        self.answers += 1
        if len(text) > LONG_BYTES and (few or self.all_every == 1):
            self.period_s = LONG_PERIOD_S
        return text


class CounterNames(NamedTuple):
    """Names of what a kind of server counts. `complete`: the labels of requests that were answered
    with status 200 to their end.
    """

    requests: str
    complete: Mapping[str, tuple[str, ...]]
    tokens: str
    busy: tuple[str, ...]  # gauges that are 0 when it works on nothing


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
)
OTHER_SERIES = (
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
    "serveoff_kv_positions_total",
    "serveoff_kv_positions_useful_total",
    "vllm:num_preemptions_total",
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
    ]
)
