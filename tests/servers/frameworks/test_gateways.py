"""Features of gateways beyond the contract: they outlive the servers behind them, choose among
them, and report their failures. Each gateway is a real process; the servers behind it are scripted.
"""

import http.client
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest

from servers.contract import api, oracle
from servers.runtime import ports
from servers.runtime.errors import LaunchError
from tests.helpers import scripted_upstream
from tests.helpers.scripted_upstream import Upstream, serve_upstream
from tests.helpers.started_gateway import (
    AUTHORIZED,
    GATEWAYS,
    KEY,
    complete,
    each,
    error_of,
    run_gateway,
    stream,
    streamed_error,
    wait_until,
)
from tests.helpers.started_server import counters, make_headers, wanted


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with serve_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module", params=GATEWAYS)
def url(
    request: pytest.FixtureRequest, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A gateway in front of `upstream`, for all tests that need no other settings."""
    folder = tmp_path_factory.mktemp(request.param)
    with run_gateway(
        request.param, folder, upstream.url, READ_TIMEOUT_S="2", API_KEY=KEY
    ) as running:
        yield running.base_url


def test_there_are_gateways() -> None:
    assert {"fastapi_gateway", "fastapi_gateway_aiohttp", "node_gateway"} <= set(GATEWAYS)


# --- when a server behind it fails


def test_an_unavailable_one_is_a_503_and_its_return_needs_no_restart_of_the_gateway(
    url: str, upstream: Upstream
) -> None:
    upstream.play = scripted_upstream.complete
    assert complete(url).status_code == 200
    upstream.stop_serving()
    for streamed in (False, True):
        error = error_of(complete(url, stream=streamed), 503)
        assert (
            error["type"] == "server_error"
            and "is unavailable" in error["message"]
            and str(upstream.port) not in error["message"]
        )
    assert httpx.get(f"{url}/health").status_code == 200
    upstream.serve()
    assert complete(url).json()["choices"][0]["text"] == oracle.continuation("baba", 5)


@each
def test_one_that_is_unavailable_at_the_start_is_named(name: str, tmp_path: Path) -> None:
    upstream = f"http://127.0.0.1:{ports.find_free_port()}"
    with (
        pytest.raises(LaunchError, match=f"{name} ended during its start"),
        run_gateway(name, tmp_path, upstream),
    ):
        pass
    assert upstream in (tmp_path / "gateway.log").read_text()


def test_one_that_dies_in_the_middle_of_a_stream_causes_an_error_event(
    url: str, upstream: Upstream
) -> None:
    upstream.play = scripted_upstream.die
    with stream(url) as response:
        pieces = response.iter_text()
        assert response.status_code == 200 and "bab" in next(pieces)
        error = streamed_error(pieces)
    assert error["type"] == "server_error" and "is unavailable" in error["message"]
    wait_until(lambda: counters(url)["serveoff_requests_in_flight"] == 0)
    upstream.serve()


def test_a_silent_one_is_a_504_and_in_a_stream_an_error_event(url: str, upstream: Upstream) -> None:
    upstream.play = scripted_upstream.keep_silent
    error = error_of(complete(url), 504)
    assert error["type"] == "server_error" and "in time" in error["message"]
    with stream(url) as response:
        assert (
            response.status_code == 200
            and "in time" in streamed_error(response.iter_text())["message"]
        )
    wait_until(lambda: upstream.in_flight == 0)


def test_a_vanished_client_ends_the_work_behind_the_gateway(url: str, upstream: Upstream) -> None:
    upstream.play = scripted_upstream.stream_endlessly
    with stream(url) as response:
        pieces = response.iter_text()  # kept: deleting it would close the connection
        assert next(pieces) and upstream.in_flight == 1
    wait_until(lambda: upstream.in_flight == 0)


def test_any_number_of_requests_is_forwarded_at_once(url: str, upstream: Upstream) -> None:
    """HTTP clients have their own limits, such as 100 connections: requests would wait where no
    metric of the engine sees them.
    """
    upstream.play = scripted_upstream.stream_endlessly
    many = 120
    with ExitStack() as stack:
        for _ in range(many):
            connection = stack.enter_context(
                closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=60))
            )
            connection.request(
                "POST", api.COMPLETIONS, json.dumps(wanted(stream=True)), make_headers(KEY)
            )
        wait_until(lambda: upstream.in_flight == many)
    wait_until(lambda: upstream.in_flight == 0)


def test_its_errors_are_openais_in_any_form_of_the_upstream(url: str, upstream: Upstream) -> None:
    theirs = {
        "message": "max_tokens=9 is too much",
        "type": "BadRequestError",
        "param": "max_tokens",
        "code": 400,
    }
    upstream.play = scripted_upstream.respond(400, json.dumps({"error": theirs}).encode())
    for streamed in (False, True):
        assert error_of(complete(url, stream=streamed), 400) == theirs | {
            "type": "invalid_request_error",
            "code": None,
        }
    for body in (b"<html>Bad Gateway</html>", b'{"detail": "no"}', b"[1]", b'{"error": "no"}'):
        upstream.play = scripted_upstream.respond(502, body)
        error = error_of(complete(url), 502)
        assert error["type"] == "server_error" and "status 502" in error["message"]


def test_only_fields_of_the_contract_are_forwarded_and_no_nulls(
    url: str, upstream: Upstream
) -> None:
    body = b'{"choices": []}'
    upstream.play = scripted_upstream.respond(200, body)
    response = complete(
        url, seed=None, top_k=-1, user="me", n=None, stream_options={"include_usage": True}
    )
    assert response.status_code == 200 and response.content == body
    passed, key = upstream.asked[-1]
    assert (
        key == AUTHORIZED["Authorization"]
        and passed.items() >= wanted().items()
        and None not in passed.values()
    )
    assert not {"top_k", "user", "stream_options"} & passed.keys(), (
        "vLLM refuses stream_options in a request for a plain response"
    )


# --- routing


@each
def test_requests_go_to_the_servers_with_their_model_which_take_turns(
    name: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        behind = [
            stack.enter_context(serve_upstream(model)) for model in ("alone", "shared", "shared")
        ]
        running = run_gateway(name, tmp_path, *(each.url for each in behind))
        url = stack.enter_context(running).base_url
        assert [entry["id"] for entry in httpx.get(f"{url}/v1/models").json()["data"]] == [
            "alone",
            "shared",
        ]
        for model in ("alone", *["shared"] * 4):
            response = complete(url, model=model)
            assert response.status_code == 200 and response.json()["model"] == model
        assert [len(each.asked) for each in behind] == [1, 2, 2]
        error = error_of(complete(url, model="nowhere"), 404)
        assert (
            error["code"] == "model_not_found"
            and "nowhere" in error["message"]
            and "alone, shared" in error["message"]
        )
