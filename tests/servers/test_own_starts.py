"""Each of our servers with the simulated engine in special starts: with a key and an engine that
fails, ended by SIGTERM; with several workers.
"""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from servers.contract import api, chunks, oracle
from servers.contract.conformance import select_checks, verify_server
from servers.runtime.launch import RunningServer
from tests.helpers.started_server import (
    OURS,
    SERVERS,
    address_of,
    ask,
    counters,
    counters_at_rest,
    start,
    stream_with_sigterm,
    wanted,
)

each = pytest.mark.parametrize("name", OURS)


@pytest.fixture(scope="module", params=OURS)
def guarded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server with a key, whose engine fails on the word "zuzu"."""
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as environment:  # for this server only
            environment.setenv("SERVEOFF_API_KEY", "s3cret")
            folder = tmp_path_factory.mktemp("guarded")
            started = start(request.param, "simulated", folder, fails_on="zuzu")
            running = stack.enter_context(started)
        yield running


def test_with_a_key_requests_without_it_are_refused(
    guarded: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in (None, "wrong", "s3cretX", ""):
        status, reply = ask(guarded.base_url, api.COMPLETIONS, wanted(), key)
        assert (
            status == 401
            and reply["error"]["type"] == "authentication_error"
            and "s3cret" not in str(reply)
        )
    assert ask(guarded.base_url, "/v1/models")[0] == 401
    assert ask(guarded.base_url, api.COMPLETIONS, wanted(), "s3cret")[0] == 200
    assert ask(guarded.base_url, "/health")[0] == 200, "health checks need no key"
    server = SERVERS[guarded.server]
    monkeypatch.setenv("SERVEOFF_API_KEY", "s3cret")
    checks = verify_server(
        guarded.base_url, checks=select_checks(False, server.waives, server.transports)
    )
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]


def test_an_endless_body_without_the_key_does_not_block_others(guarded: RunningServer) -> None:
    """The server closes the connection or discards the body."""
    with socket.create_connection(address_of(guarded), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: it\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(400):  # 26 MB
                connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
        assert ask(guarded.base_url, api.COMPLETIONS, wanted(), "s3cret")[0] == 200


def test_a_failing_engine_is_a_500_and_the_next_request_succeeds(guarded: RunningServer) -> None:
    def complete(**more: Any) -> tuple[int, Any]:
        return ask(guarded.base_url, api.COMPLETIONS, wanted(**more), "s3cret")

    status, reply = complete(prompt="baba zuzu")
    assert (
        status == 500
        and reply["error"]["type"] == "server_error"
        and "somebody" not in json.dumps(reply)
    )
    status, streamed = complete(prompt="baba zuzu", stream=True)
    assert status == 200 and "somebody" not in streamed and "[DONE]" not in streamed
    *tokens, end = [
        chunks.read_chunk(event.removeprefix("data: ").encode())
        for event in streamed.split("\n\n")
        if event
    ]
    assert len(tokens) == 2 and end.error == "the engine failed"
    assert complete()[1]["choices"][0]["text"] == oracle.continuation("baba", 5)
    assert (
        counters_at_rest(guarded.engine_urls)[
            'serveoff_requests_total{path="/v1/completions",status="500"}'
        ]
        == 1
    )
    logs = [log.read_text() for log in guarded.log.parent.glob("log*")]
    assert "out of memory" in "".join(logs), "the operator must be able to find the reason"


def test_sigterm_lets_the_response_in_progress_finish(guarded: RunningServer) -> None:
    """This must be the last test with `guarded`, because it ends the server."""
    stream_with_sigterm(guarded, tokens=300, at_token=1, key="s3cret")  # about a second


@each
def test_several_workers_count_together(name: str, tmp_path: Path) -> None:
    if not SERVERS[name].has_workers:
        pytest.skip(f"{name} has one process")
    with start(name, "simulated", tmp_path, workers=2) as running:
        assert len(psutil.Process(running.pid).children()) == 2
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: ask(running.base_url, api.COMPLETIONS, wanted()), range(12)))
        time.sleep(0.2)
        assert {counters(running.base_url)["serveoff_tokens_total"] for _ in range(6)} == {60}
