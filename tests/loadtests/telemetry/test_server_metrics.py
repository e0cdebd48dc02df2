"""Scrapes of servers on real sockets: good ones, and servers that hang, drip, send garbage or too
much, or have no metrics.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from loadtests import schema
from loadtests.campaign import parquet
from loadtests.telemetry import server_counters, server_metrics
from loadtests.telemetry.server_metrics import MetricsUnavailable, Scraper
from tests.helpers import faulty_server
from tests.helpers.campaign_process import Bench, is_complete, runs, table
from tests.helpers.metrics_server import (
    OURS,
    PATIENCE_S,
    Handler,
    Server,
    drips,
    endless,
    exposing,
    hangs,
    says,
)

VLLM = """vllm:num_requests_running{engine="0"} 0.0
vllm:generation_tokens_total{engine="0"} 40.0
vllm:generation_tokens_total{engine="1"} 2.0
vllm:request_success_total{engine="0",finished_reason="length"} 3.0
vllm:request_success_total{engine="1",finished_reason="stop"} 1.0
vllm:request_success_total{engine="0",finished_reason="abort"} 8.0
"""

LLAMA_CPP = """llamacpp:tokens_predicted_total 42
llamacpp:requests_processing 1
llamacpp:requests_deferred 2
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with exposing() as server:
        yield server


class Scraped:
    """Runs a scraper much faster than in a campaign."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder = folder
        for name, seconds in (("PERIOD_S", 0.05), ("LONG_PERIOD_S", 0.4), ("SCRAPE_S", 0.3)):
            monkeypatch.setattr(server_metrics, name, seconds)
        self.reports: list[str] = []
        self.scraper: Scraper

    def of(
        self, server: Server, *answers: Callable[[Handler], Any], enough: int
    ) -> list[dict[str, Any]]:
        """Returns the first lines, as soon as there are enough."""
        server.answers = list(answers)
        out = self.folder / "server_metrics.jsonl"
        self.scraper = Scraper(server.url, out, time.perf_counter(), self.reports.append)
        thread = threading.Thread(target=self.scraper.run, daemon=True)
        thread.start()
        end = time.monotonic() + PATIENCE_S
        while thread.is_alive() and len(schema.read_lines(out) if out.exists() else []) < enough:
            assert time.monotonic() < end
            time.sleep(0.01)
        self.scraper.ended = True
        thread.join(PATIENCE_S)
        return schema.read_lines(out)

    def parquet(self) -> list[dict[str, Any]]:
        parquet.to_parquet(self.folder)
        assert [path.name for path in self.folder.iterdir()] == ["server_metrics.parquet"]
        return table(self.folder, "server_metrics")


@pytest.fixture
def scraped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scraped:
    return Scraped(tmp_path, monkeypatch)


# --- scraping


def test_texts_become_rows_of_the_schema(server: Server, scraped: Scraped) -> None:
    strange = 'a{path="/x\\"y",le="+Inf"} NaN\n'
    lines = scraped.of(server, says(OURS % 3), says(strange), enough=3)
    found = scraped.parquet()
    path = scraped.folder / "server_metrics.parquet"
    assert (
        pyarrow.parquet.read_schema(path).names
        == list(schema.SERVER_METRICS_FIELDS)
        == list(found[0])
    )
    assert [row["value"] for row in found[:6]] == [5, 2, 9, 100, 77, 3]
    assert (
        json.loads(found[0]["labels"]) == {"path": "/v1/completions", "status": "200"}
        and found[5]["labels"] == "{}"
    )
    assert {row["time_s"] for row in found} == {line["time_s"] for line in lines} and all(
        row["took_s"] > 0 for row in found
    )
    assert (
        json.loads(found[6]["labels"]) == {"path": '/x"y', "le": "+Inf"}
        and found[6]["value"] != found[6]["value"]
    )
    assert scraped.reports == []


def test_most_scrapes_ask_for_a_few_series_and_some_for_all(
    server: Server, scraped: Scraped
) -> None:
    scraped.of(server, says(OURS % 3), enough=21)
    paths = [path for path, _ in server.asked]
    assert [path == "/metrics" for path in paths[:21]] == ([True] + [False] * 9) * 2 + [True]
    assert (
        "name%5B%5D=serveoff_tokens_total" in paths[1]
        and "name%5B%5D=vllm%3Anum_requests_waiting" in paths[1]
    )
    assert "name%5B%5D=serveoff_event_loop_lag_seconds_bucket" in paths[1]


@pytest.mark.parametrize("answer", [says(""), says("no such parameter", 400)])
def test_a_server_that_cannot_select_series_is_asked_for_all(
    server: Server, scraped: Scraped, answer: Callable[..., Any]
) -> None:
    """Prometheus' own client sends nothing for names if it runs in several processes."""
    lines = scraped.of(server, says(OURS % 3), answer, says(OURS % 3), enough=4)
    assert [path == "/metrics" for path, _ in server.asked[:4]] == [True, False, True, True]
    assert all(line["text"] == OURS % 3 for line in lines) and scraped.reports == []


def test_a_server_with_long_responses_is_asked_less_often(server: Server, scraped: Scraped) -> None:
    for text, period_s in (
        (OURS % 3, server_metrics.PERIOD_S),
        ("a 1\n" * 10_000, server_metrics.LONG_PERIOD_S),
    ):
        scraped.of(server, says(text), enough=2)
        assert scraped.scraper.period_s == period_s
        (scraped.folder / "server_metrics.jsonl").unlink()


def test_scrapes_run_one_at_a_time_on_new_connections_with_the_key(
    server: Server, scraped: Scraped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVEOFF_API_KEY", "secret")
    lines = scraped.of(server, hangs, says(OURS % 3), enough=3)
    assert [line["text"] is None for line in lines[:3]] == [True, False, False] and lines[0][
        "took_s"
    ] >= 0.3
    assert lines[1]["time_s"] >= lines[0]["time_s"] + lines[0]["took_s"]
    for _, headers in server.asked:
        assert headers["Connection"] == "close" and headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (hangs, "no response within 0.3 s"),
        (drips, "no response within 0.3 s"),
        (says("", 503), "http 503"),
        (says("", 429), "http 429"),
    ],
)
def test_a_failure_that_may_pass_is_null_and_retried(
    server: Server, scraped: Scraped, answer: Callable[..., Any], why: str
) -> None:
    lines = scraped.of(server, says(OURS % 3), answer, answer, says(OURS % 4), enough=4)
    assert [line["text"] is None for line in lines[:4]] == [False, True, True, False]
    assert scraped.reports == [
        f"GET /metrics: {why}: the server's own metrics are null where that happens"
    ]
    nulls = [row for row in scraped.parquet() if row["name"] is None]
    assert [row["time_s"] for row in nulls] == [line["time_s"] for line in lines[1:3]] and nulls[0][
        "took_s"
    ] == lines[1]["took_s"]
    assert all(row["labels"] is None and row["value"] is None for row in nulls)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (says("no such page", 404), "http 404"),
        (says("<!DOCTYPE html>"), "the response is not Prometheus text"),
        (says(""), "the response is not Prometheus text"),
        (endless, "more than 1,048,576 bytes"),
    ],
)
def test_a_server_without_metrics_is_asked_once(
    server: Server, scraped: Scraped, answer: Callable[..., Any], why: str
) -> None:
    [line] = scraped.of(server, answer, enough=99)
    assert line["text"] is None and len(server.asked) == 1
    assert scraped.reports == [f"GET /metrics: {why}: the server's own metrics are null"]
    [row] = scraped.parquet()
    assert row == {
        "time_s": line["time_s"],
        "took_s": line["took_s"],
        "name": None,
        "labels": None,
        "value": None,
    }


def test_garbage_later_is_null(server: Server, scraped: Scraped) -> None:
    scraped.of(server, says(OURS % 3), says("{}"), says(OURS % 3), enough=3)
    assert [row["name"] for row in scraped.parquet()][6:8] == [None, "serveoff_requests_total"]


# --- counting


def test_counters_of_known_servers() -> None:
    ours, theirs = (
        server_counters.sum_counters(server_metrics.parse_metrics(text))
        for text in (OURS % 3, VLLM)
    )
    assert ours and theirs
    assert (ours.requests, ours.tokens, ours.busy) == (7, 77, 3) and (
        theirs.requests,
        theirs.tokens,
        theirs.busy,
    ) == (4, 42, 0)
    assert (
        server_counters.sum_counters(server_metrics.parse_metrics("http_requests_total 4\n"))
        is None
    )
    assert server_counters.counter_delta(ours, ours._replace(requests=17.0, tokens=80.0)) == {
        "requests": 10,
        "tokens": 3,
    }
    llama_cpp = server_counters.sum_counters(server_metrics.parse_metrics(LLAMA_CPP))
    assert llama_cpp and (llama_cpp.requests, llama_cpp.busy) == (None, 3)
    after = llama_cpp._replace(tokens=50.0)
    assert server_counters.counter_delta(llama_cpp, after) == {"tokens": 8}
    for after in (None, theirs, ours._replace(tokens=float("nan"))):
        assert server_counters.counter_delta(ours, after) is None
    assert server_counters.counter_delta(None, ours) is None


def test_counters_are_read_once_nothing_is_in_flight(server: Server) -> None:
    server.answers = [says(OURS % 1), says(OURS % 1), says((OURS % 0).replace("77", "90"))]
    found = server_counters.read_when_idle(server.url, PATIENCE_S)
    assert found and found.tokens == 90 and len(server.asked) == 3


def test_counters_of_several_servers_are_added(server: Server) -> None:
    with exposing() as other:
        server.answers, other.answers = [says(OURS % 0)], [says((OURS % 0).replace("77", "90"))]
        found = server_counters.read_when_idle(f"{server.url},{other.url}", PATIENCE_S)
        assert found and found.tokens == 77 + 90 and found.requests == 14
        other.answers = [hangs]
        with pytest.raises(MetricsUnavailable, match="no response within"):
            server_metrics.fetch_metrics(f"{server.url},{other.url}", 0.3)


def test_reading_counters_has_a_time_limit(server: Server) -> None:
    for answers, tokens in (
        ([says(OURS % 1)], 77),
        ([says(OURS % 1), hangs], 77),
        ([hangs], None),
        ([says("", 404)], None),
    ):
        server.answers = list(answers)
        began = time.monotonic()
        found = server_counters.read_when_idle(server.url, 0.4)
        assert (
            time.monotonic() - began < PATIENCE_S / 2
            and (found.tokens if found else None) == tokens
        )
    with pytest.raises(MetricsUnavailable, match="refused"):
        server_metrics.fetch_metrics("http://127.0.0.1:1", 1.0)


def test_a_target_without_metrics_is_measured(bench: Bench) -> None:
    with faulty_server.running("no_metrics") as url:
        done = bench.run(
            "--target", url, "--scenarios", "quick", "--report", "none", "--out", "target"
        )
    assert is_complete(done.returncode, done.stderr), done.stdout + done.stderr
    [(folder, run)] = runs(bench.folder / "target")
    assert run["status"] == "ok" and run["served"] is None and run["counts"]["rows"] > 10
    assert [note for note in run["notes"] if "/metrics" in note] == [
        "telemetry: GET /metrics: http 404: the server's own metrics are null"
    ]
    assert [row["name"] for row in table(folder, "server_metrics")] == [None]
