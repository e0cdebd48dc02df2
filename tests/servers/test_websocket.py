"""Every server that streams over WebSockets, with the simulated engine: tests beyond the
conformance checks.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wsproto.events import CloseConnection, Ping, Pong, TextMessage

from servers.contract import api, chunks, metrics, metrics_middleware, oracle
from servers.contract.conformance_client import CheckFailed, ConformanceClient, WebSocket
from servers.runtime import launch
from servers.runtime.launch import RunningServer
from tests.helpers.started_server import (
    MODEL,
    SERVERS,
    counters,
    counters_at_rest,
    start,
    started,
    wanted,
)

NAMES = [
    name
    for name, server in SERVERS.items()
    if "websocket" in server.transports and "simulated" in server.engines
]


@pytest.fixture(scope="module", params=NAMES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with started(request.param, "simulated", tmp_path_factory) as running:
        yield running


@pytest.fixture
def talk(server: RunningServer) -> Iterator[WebSocket]:
    with ConformanceClient(server.base_url, MODEL, True).websocket(api.COMPLETIONS) as talk:
        yield talk


def say(talk: WebSocket, **more: Any) -> None:
    talk.socket.sendall(talk.protocol.send(TextMessage(json.dumps(wanted(**more)))))


def text_of(payloads: list[tuple[float, bytes]]) -> str:
    return "".join(chunks.read_chunk(payload).text for _, payload in payloads)


def settled(base_url: str, status: int) -> float:
    found = counters_at_rest(base_url)
    assert found["serveoff_requests_in_flight"] == found["serveoff_requests_running"] == 0
    return found.get(f'serveoff_requests_total{{path="/v1/completions",status="{status}"}}', 0)


def test_each_message_is_counted_as_a_request(server: RunningServer, talk: WebSocket) -> None:
    before = {status: settled(server.base_url, status) for status in (101, 200, 400, 404)}
    for more in ({}, {"stream": False}, {"stream": True}, {"n": 2}, {"model": "none"}):
        talk.send(wanted(**more))
    assert {status: settled(server.base_url, status) - before[status] for status in before} == {
        101: 0,
        200: 3,
        400: 1,
        404: 1,
    }


def test_a_request_sent_before_done_waits_for_its_turn(talk: WebSocket) -> None:
    for count in (5, 6, 7):
        say(talk, max_tokens=count)
    texts = [""]
    while len(texts) < 4:
        message = talk.receive()
        assert isinstance(message, TextMessage)
        if message.data == "[DONE]":
            texts.append("")
        else:
            texts[-1] += chunks.read_chunk(message.data.encode()).text
    assert texts == [
        oracle.continuation("baba", 5),
        oracle.continuation("baba", 6),
        oracle.continuation("baba", 7),
        "",
    ]


def test_a_ping_gets_a_pong_in_the_middle_of_a_response(talk: WebSocket) -> None:
    say(talk, max_tokens=300)
    talk.receive()
    talk.socket.sendall(talk.protocol.send(Ping(b"still there?")))
    while isinstance(event := talk.receive(), TextMessage):
        assert event.data != "[DONE]"
    assert event == Pong(b"still there?")


@pytest.mark.parametrize("polite", [True, False], ids=["close frame", "none"])
def test_a_vanished_client_frees_its_slot(server: RunningServer, polite: bool) -> None:
    gone = settled(server.base_url, 499)
    with ConformanceClient(server.base_url, MODEL, True).websocket(api.COMPLETIONS) as talk:
        say(talk, max_tokens=3000)  # nine seconds
        talk.receive()
        assert counters(server.base_url)["serveoff_requests_in_flight"] == 1
        if polite:
            talk.socket.sendall(talk.protocol.send(CloseConnection(1000)))
    end = time.monotonic() + 5
    gauges = ("serveoff_requests_in_flight", "serveoff_requests_running")
    while (
        any(busy := [counters(server.base_url)[name] for name in gauges]) and time.monotonic() < end
    ):
        time.sleep(0.05)
    assert busy == [0, 0]
    assert settled(server.base_url, 499) == gone + 1
    assert "Traceback" not in server.log.read_text()


def test_a_message_that_is_too_long_closes_with_1009(
    server: RunningServer, talk: WebSocket
) -> None:
    try:
        say(talk, prompt="baba " * 1_000_000)
    except OSError:
        pass  # closed before the whole message was sent
    event = talk.receive()
    assert isinstance(event, CloseConnection) and event.code == 1009
    settled(server.base_url, 413)


@pytest.mark.parametrize(
    "message",
    ["", "{", "[1]", '{"model": ' + "[" * 100_000, '{"prompt": "\\ud800", "model": "m"}'],
    ids=range(5),
)
def test_nonsense_is_refused_and_the_connection_stays_usable(talk: WebSocket, message: str) -> None:
    talk.socket.sendall(talk.protocol.send(TextMessage(message)))
    event = talk.receive()
    assert isinstance(event, TextMessage) and api.status_of_end(event.data) == 400
    assert text_of(talk.send(wanted())[1]) == oracle.continuation("baba", 5)


def test_an_unknown_path_is_not_upgraded(server: RunningServer) -> None:
    with (
        pytest.raises(CheckFailed, match=r"is refused: .*status_code=40[34]"),
        ConformanceClient(server.base_url, MODEL, True).websocket("/v1/none"),
    ):
        pass


def test_without_the_key_there_is_no_upgrade(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVEOFF_API_KEY", "s3cret")
    with start(server.server, "simulated", tmp_path) as running:
        probe = ConformanceClient(running.base_url, MODEL, True)
        with probe.websocket(api.COMPLETIONS) as talk:
            assert talk.send(wanted())[0] == 200
        monkeypatch.setenv("SERVEOFF_API_KEY", "s3cretX")
        with (
            pytest.raises(CheckFailed, match=r"is refused: .*status_code=40[13]"),
            probe.websocket(api.COMPLETIONS),
        ):
            pass


def test_sigterm_lets_the_response_in_progress_finish(
    server: RunningServer, tmp_path: Path
) -> None:
    with start(server.server, "simulated", tmp_path) as running:
        with ConformanceClient(running.base_url, MODEL, True).websocket(api.COMPLETIONS) as talk:
            say(talk, max_tokens=300)  # about a second
            text = ""
            while isinstance(message := talk.receive(), TextMessage) and message.data != "[DONE]":
                if not text:
                    os.kill(running.pid, signal.SIGTERM)
                text += chunks.read_chunk(message.data.encode()).text
            assert text == oracle.continuation("baba", 300)
        running.supervisor.wait(timeout=30)
        assert "Traceback" not in running.log.read_text(), launch.log_tail(running.log, 50)


# --- AsgiMetrics alone, for the servers that use it


def asgi(
    received: list[dict[str, Any]], **scope: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run an application that refuses every message. Return the events that it receives, and those
    sent to the client.
    """
    seen: list[dict[str, Any]] = []
    sent: list[dict[str, Any]] = []

    async def app(_: Any, receive: Any, send: Any) -> None:
        while not seen or seen[-1]["type"] != "websocket.disconnect":
            seen.append(await receive())
            if seen[-1]["type"] == "websocket.receive":
                await send(
                    {
                        "type": "websocket.send",
                        "text": api.error_message(api.ContractError(418, "no")),
                    }
                )

    async def receive() -> dict[str, Any]:
        return received.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(
        metrics_middleware.AsgiMetrics(app)(
            {"type": "websocket", "path": api.COMPLETIONS, "headers": [], **scope}, receive, send
        )
    )
    return seen, sent


def requests(status: int) -> float:
    return (
        metrics.REGISTRY.get_sample_value(
            "serveoff_requests_total", {"path": api.COMPLETIONS, "status": str(status)}
        )
        or 0
    )


@pytest.mark.parametrize(
    "long",
    [
        {"text": "x" * (api.MAX_BODY_BYTES + 1)},
        {"text": "é" * (api.MAX_BODY_BYTES // 2 + 1)},
        {"bytes": b"x" * (api.MAX_BODY_BYTES + 1), "text": None},
    ],
    ids=["text", "UTF-8", "bytes"],
)
def test_asgis_long_messages_close_with_1009_and_are_counted(long: dict[str, Any]) -> None:
    before = {status: requests(status) for status in (418, 413, 499)}
    seen, sent = asgi(
        [{"type": "websocket.receive", "text": "x"}, {"type": "websocket.receive", **long}]
    )
    assert [message["type"] for message in seen] == ["websocket.receive", "websocket.disconnect"]
    assert sent[-1] == {"type": "websocket.close", "code": 1009}
    assert {status: requests(status) - before[status] for status in before} == {
        418: 1,
        413: 1,
        499: 0,
    }
    assert metrics.REGISTRY.get_sample_value("serveoff_requests_in_flight") == 0


def test_asgi_refuses_an_upgrade_with_401_if_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVEOFF_API_KEY", "s3cret")
    seen, (start, body) = asgi([], extensions={"websocket.http.response": {}})
    assert (
        seen == [] and start["type"] == "websocket.http.response.start" and start["status"] == 401
    )
    assert json.loads(body["body"])["error"]["type"] == "authentication_error"
    assert asgi([], extensions=None) == ([], [{"type": "websocket.close"}])
