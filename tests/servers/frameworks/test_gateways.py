"""Features of gateways beyond the contract: they outlive the servers behind them, choose among
them, and report their failures. Real processes; the tests start and stop the servers behind them.
"""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from servers.contract import api, oracle
from servers.runtime import ports
from servers.runtime.errors import LaunchError
from tests.helpers.started_gateway import (
    GATEWAYS,
    JSON,
    OK,
    Start,
    complete,
    each,
    error_of,
    streamed_error,
    upstream,
    wait_until,
)
from tests.helpers.started_server import MODEL, counters, wanted


def test_there_are_gateways() -> None:
    assert {"fastapi_gateway", "fastapi_gateway_aiohttp", "node_gateway"} <= set(GATEWAYS)


# --- when a server behind it fails


@each
def test_an_unavailable_one_is_a_503_and_its_return_needs_no_restart_of_the_gateway(
    name: str, gateway: Start, tmp_path: Path
) -> None:
    port = ports.find_free_port()
    with upstream(tmp_path, port=port) as running:
        url = gateway(name, running.base_url).base_url
        assert complete(url).status_code == 200
    for stream in (False, True):
        error = error_of(complete(url, stream=stream), 503)
        assert (
            error["type"] == "server_error"
            and "is unavailable" in error["message"]
            and str(port) not in error["message"]
        )
    assert httpx.get(f"{url}/health").status_code == 200
    with upstream(tmp_path, port=port):
        assert complete(url).json()["choices"][0]["text"] == oracle.continuation("baba", 5)


@each
def test_one_that_is_unavailable_at_the_start_is_named(
    name: str, gateway: Start, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{ports.find_free_port()}"
    with pytest.raises(LaunchError, match=f"{name} ended during its start"):
        gateway(name, url)
    assert url in (tmp_path / "gateway.log").read_text()


@each
def test_one_that_dies_in_the_middle_of_a_stream_causes_an_error_event(
    name: str, gateway: Start, tmp_path: Path
) -> None:
    with upstream(tmp_path) as running:
        url = gateway(name, running.base_url).base_url
        with httpx.stream(
            "POST", url + api.COMPLETIONS, json=wanted(stream=True, max_tokens=10_000), timeout=60
        ) as response:
            pieces = response.iter_text()
            assert response.status_code == 200 and "bab" in next(pieces)
            psutil.Process(running.pid).kill()
            error = streamed_error(pieces)
        assert error["type"] == "server_error" and "is unavailable" in error["message"]
    wait_until(lambda: counters(url)["serveoff_requests_in_flight"] == 0)


@each
def test_a_silent_one_is_a_504_and_in_a_stream_an_error_event(
    name: str, gateway: Start, tmp_path: Path
) -> None:
    with upstream(tmp_path, step_ms=3000) as running:
        url = gateway(name, running.base_url, READ_TIMEOUT_S="1").base_url
        error = error_of(complete(url, max_tokens=2), 504)
        assert error["type"] == "server_error" and "in time" in error["message"]
        with httpx.stream(
            "POST", url + api.COMPLETIONS, json=wanted(stream=True, max_tokens=2), timeout=60
        ) as response:
            assert (
                response.status_code == 200
                and "in time" in streamed_error(response.iter_text())["message"]
            )
        wait_until(lambda: counters(running.base_url)["serveoff_requests_in_flight"] == 0)


@each
def test_a_vanished_client_ends_the_work_behind_the_gateway(
    name: str, gateway: Start, behind: str
) -> None:
    url = gateway(name, behind).base_url
    with httpx.stream(
        "POST", url + api.COMPLETIONS, json=wanted(stream=True, max_tokens=100_000), timeout=60
    ) as response:
        pieces = response.iter_text()  # kept: deleting it would close the connection
        assert next(pieces) and counters(behind)["serveoff_requests_in_flight"] == 1
    wait_until(lambda: counters(behind)["serveoff_requests_in_flight"] == 0)


@each
def test_any_number_of_requests_is_forwarded_at_once(
    name: str, gateway: Start, tmp_path: Path
) -> None:
    """HTTP clients have their own limits, such as 100 connections: requests would wait where no
    metric of the engine sees them.
    """
    many = 120
    with upstream(tmp_path, step_ms=1000) as running, ExitStack() as stack:
        url = gateway(name, running.base_url).base_url
        for _ in range(many):
            connection = stack.enter_context(
                closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=60))
            )
            connection.request(
                "POST", api.COMPLETIONS, json.dumps(wanted(stream=True, max_tokens=1000)), JSON
            )
        wait_until(lambda: counters(running.base_url)["serveoff_requests_in_flight"] == many)


class Foreign(BaseHTTPRequestHandler):
    """An upstream with its own form of errors; it records the last request."""

    protocol_version = "HTTP/1.1"
    asked: tuple[Any, str | None] = (None, None)
    response: tuple[int, bytes] = (200, b"")

    def do_GET(self) -> None:
        self.respond(200, json.dumps(api.models_body(MODEL)).encode())

    def do_POST(self) -> None:
        Foreign.asked = (
            json.loads(self.rfile.read(int(self.headers["Content-Length"]))),
            self.headers["Authorization"],
        )
        self.respond(*Foreign.response)

    def respond(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def foreign() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@each
def test_its_errors_are_openais_in_any_form_of_the_upstream(
    name: str, gateway: Start, foreign: str
) -> None:
    url = gateway(name, foreign).base_url
    theirs = {
        "message": "max_tokens=9 is too much",
        "type": "BadRequestError",
        "param": "max_tokens",
        "code": 400,
    }
    Foreign.response = 400, json.dumps({"error": theirs}).encode()
    for stream in (False, True):
        assert error_of(complete(url, stream=stream), 400) == theirs | {
            "type": "invalid_request_error",
            "code": None,
        }
    for body in (b"<html>Bad Gateway</html>", b'{"detail": "no"}', b"[1]", b'{"error": "no"}'):
        Foreign.response = 502, body
        error = error_of(complete(url), 502)
        assert error["type"] == "server_error" and "status 502" in error["message"]


@each
def test_only_fields_of_the_contract_are_forwarded_and_no_nulls(
    name: str, gateway: Start, foreign: str
) -> None:
    url = gateway(name, foreign, API_KEY="s3cret").base_url
    Foreign.response = 200, b'{"choices": []}'
    asked = wanted(seed=None, top_k=-1, user="me", n=None, stream_options={"include_usage": True})
    response = httpx.post(
        url + api.COMPLETIONS, json=asked, headers={"Authorization": "Bearer s3cret"}
    )
    assert response.status_code == 200 and response.content == Foreign.response[1]
    passed, key = Foreign.asked
    assert (
        key == "Bearer s3cret"
        and passed.items() >= wanted().items()
        and None not in passed.values()
    )
    assert not {"top_k", "user", "stream_options"} & passed.keys(), (
        "vLLM refuses stream_options in a request for a plain response"
    )


# --- routing


@each
def test_requests_go_to_the_servers_with_their_model_which_take_turns(
    name: str, gateway: Start, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        urls = [
            stack.enter_context(upstream(tmp_path, model)).base_url
            for model in ("alone", "shared", "shared")
        ]
        url = gateway(name, *urls).base_url
        assert [entry["id"] for entry in httpx.get(f"{url}/v1/models").json()["data"]] == [
            "alone",
            "shared",
        ]
        for model in ("alone", *["shared"] * 4):
            response = complete(url, model=model)
            assert response.status_code == 200 and response.json()["model"] == model
        wait_until(lambda: sum(counters(each).get(OK, 0) for each in urls) == 5)
        assert [counters(each)[OK] for each in urls] == [1, 2, 2]
        error = error_of(complete(url, model="nowhere"), 404)
        assert (
            error["code"] == "model_not_found"
            and "nowhere" in error["message"]
            and "alone, shared" in error["message"]
        )
