"""The client against a scripted server on a real socket: cut, slow, broken and endless responses,
and stamps.

No test depends on the machine's speed: where time matters, the server waits until the client has
read.
"""

import json
import socket
import time

import pytest

from loadtests.client import http, response, transport
from loadtests.client.blocking import make_blocking_connection
from servers.contract import api, oracle
from tests.helpers.scripted_server import (
    ANSWER,
    CHUNKED,
    CLOSE,
    DONE,
    EVENTS,
    HEAD,
    LAST_CHUNK,
    PATIENCE_S,
    UNTIL_CLOSED,
    WORDS,
    Scripted,
    Step,
    ask,
    chunk,
    event,
    is_whole,
    sized,
    until_read,
)

# --- cut anywhere


def test_a_response_may_be_cut_at_any_byte(server: Scripted) -> None:
    connection = make_blocking_connection(server.url, PATIENCE_S)
    for cut in range(1, len(ANSWER)):
        exchange = http.Exchange()
        server.scripts.append([ANSWER[:cut], 0.0005, ANSWER[cut:]])
        connection.post("/", b"{}", exchange)
        assert is_whole(response.parse_response(exchange)), (
            f"cut at {cut}: {response.parse_response(exchange)}"
        )
        assert bytes(exchange.body) == EVENTS
    connection.close()
    assert server.connections == 1, (
        "each response must be read to its very end, or the connection cannot be used again"
    )


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 64])
@pytest.mark.parametrize("answer", [ANSWER, sized(EVENTS)], ids=["chunked", "sized"])
def test_reads_of_any_size(
    server: Scripted, monkeypatch: pytest.MonkeyPatch, answer: bytes, size: int
) -> None:
    monkeypatch.setattr(transport, "READ_BYTES", size)
    exchange, settled = ask(server, answer)
    assert is_whole(settled)
    assert exchange.lengths == sorted(exchange.lengths) and exchange.lengths[-1] == len(EVENTS)
    assert settled.token_s == sorted(settled.token_s)


def test_chunked_encoding_cut_twice_anywhere() -> None:
    coded = (
        chunk(b"one")
        + chunk(b"\r\n", b" ; a=b")
        + chunk(b"0123456789abcdef!")
        + b"000\r\nT: 1\r\n\r\n"
    )
    for first in range(len(coded) + 1):
        for second in range(first, len(coded) + 1):
            decoder, body = http.ChunkedDecoder(), bytearray()
            ends = [
                decoder.feed(part, body)
                for part in (coded[:first], coded[first:second], coded[second:])
                if part
            ]
            assert ends == [False] * (len(ends) - 1) + [True], (first, second)
            assert bytes(body) == b"one\r\n0123456789abcdef!", (first, second)


@pytest.mark.parametrize(
    "last",
    [LAST_CHUNK, b"0;a=b\r\n\r\n", b"00\r\nT: 1\r\n\r\n"],
    ids=["last", "extended", "trailer"],
)
@pytest.mark.parametrize("size", [1, 10, 0xAB, 4095, 4096, 10_000])
@pytest.mark.parametrize("together", [1, 2, 5])
def test_chunks_that_come_whole(together: int, size: int, last: bytes) -> None:
    """A read has one chunk or several, with digits in both cases, with or without the last."""
    decoder, body = http.ChunkedDecoder(), bytearray()
    data = b"\r\n" * (size // 2) + b"x" * (size % 2)
    for digits in (b"%x", b"%X"):
        assert not decoder.feed((digits % size + b"\r\n" + data + b"\r\n") * together, body)
    assert decoder.feed(chunk(data) * together + last, body)
    assert bytes(body) == data * 3 * together


# --- whole responses


@pytest.mark.parametrize(
    "script",
    [
        (sized(EVENTS),),
        (UNTIL_CLOSED + EVENTS, CLOSE),
        (b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + EVENTS, CLOSE),
        (CHUNKED + chunk(EVENTS) + LAST_CHUNK,),
        (sized(EVENTS.replace(b"\n\n", b"\r\n\r\n")),),
        (sized(EVENTS.replace(b"data: ", b"data:")),),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + sized(EVENTS),),
        (
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 2,
            0.01,
            CHUNKED + chunk(EVENTS) + LAST_CHUNK,
        ),
        (sized(EVENTS.replace(b"\n\n", b"\r\r")),),
        (sized(EVENTS.replace(b"\n\n", b"\n\r\n")),),
        (sized(EVENTS.removesuffix(b"\n\n")),),
        (sized(EVENTS, HEAD.replace(b"text/event-stream", b"text/plain")),),
        (sized(b": a comment\n\nevent: message\nid: 1\n" + EVENTS),),
        (
            sized(
                EVENTS,
                HEAD.replace(b"Content-Type", b"CONTENT-TYPE").replace(
                    b"event-stream", b"event-stream; charset=utf-8"
                ),
            ),
        ),
    ],
    ids=[
        "length",
        "close",
        "HTTP/1.0",
        "chunked",
        "CRLF",
        "no space",
        "100",
        "103",
        "CR",
        "mixed",
        "no empty line",
        "plain text",
        "comments",
        "header case",
    ],
)
def test_every_framing_gives_the_same_response(server: Scripted, script: tuple[Step, ...]) -> None:
    exchange, settled = ask(server, *script)
    assert is_whole(settled)
    assert (
        exchange.status == 200
        and exchange.sent_s is not None
        and exchange.sent_s <= settled.token_s[0] <= exchange.done_s
    )


def test_our_own_servers_stream_is_understood(server: Scripted) -> None:
    request = api.parse_request(
        api.ChatCompletionRequest,
        json.dumps(
            {
                "model": "m",
                "messages": [{"role": "user", "content": "baba"}],
                "stream_options": {"include_usage": True},
            }
        ).encode(),
    )
    answer = api.CompletionResponse(request, "m")
    outcome = api.Outcome(2, 3, "length", 1.5, 2.5, 3.5)
    _, settled = ask(server, sized("".join(map(answer.event, [*WORDS, outcome])).encode()))
    assert (settled.error, settled.token_text, settled.finish_reason) == (None, WORDS, "length")
    assert (settled.prompt_tokens, settled.tokens) == (2, 3)
    assert settled.timings == {"queue_ms": 1.5, "prompt_ms": 2.5, "predicted_ms": 3.5}


def test_a_chunk_without_text_is_not_a_token(server: Scripted) -> None:
    def delta(**fields: object) -> bytes:
        choice = {"delta": fields, "finish_reason": None}
        return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()

    sent = (
        delta(role="assistant", content=""),
        delta(content=None),
        delta(content=" baba"),
        delta(),
        event(""),
    )
    exchange = http.Exchange()
    connection = make_blocking_connection(server.url, PATIENCE_S)
    steps = (
        step
        for count, each in enumerate(sent, 1)
        for step in (chunk(each), until_read(exchange, count))
    )
    server.scripts.append([CHUNKED, 0.01, *steps, chunk(DONE) + LAST_CHUNK])
    connection.post("/", b"{}", exchange)
    connection.close()
    settled = response.parse_response(exchange)
    assert (settled.error, settled.token_text) == (None, [" baba"])
    assert settled.token_s == [exchange.arrived[2]], (
        "the first token is in the first chunk with text, not in the role's"
    )


def test_four_tokens_in_one_chunk_are_counted_by_their_text(server: Scripted) -> None:
    _, settled = ask(server, sized(event(" baba babe babi babo") + event(" babu") + DONE))
    assert [oracle.count_tokens(text) for text in settled.token_text] == [4, 1]
    assert len(settled.token_s) == 2


def test_a_plain_response_to_a_streaming_request(server: Scripted) -> None:
    body = json.dumps(
        {"choices": [{"text": " baba babe"}], "usage": {"completion_tokens": 2}}
    ).encode()
    exchange, settled = ask(
        server, sized(body, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
    )
    assert (settled.error, settled.token_text, settled.token_s) == (
        None,
        [" baba babe"],
        exchange.arrived[-1:],
    )


def test_missing_usage_and_timings_stay_missing(server: Scripted) -> None:
    _, settled = ask(server, sized(event(" baba") + DONE))
    assert (settled.error, settled.tokens, settled.prompt_tokens) == (None, None, None)
    assert (settled.timings, settled.finish_reason) == ({}, None)


def test_values_that_the_schema_cannot_hold_are_dropped(server: Scripted) -> None:
    odd = event(
        " baba",
        usage={"completion_tokens": "3", "prompt_tokens": 10**30, "total_tokens": 4.0},
        timings={"queue_ms": None, "prompt_ms": "1", "predicted_ms": 2},
    )
    odd += b'data: {"choices": [{"text": "", "finish_reason": "\\ud800"}]}\n\n'
    _, settled = ask(server, sized(odd + DONE))
    assert (settled.error, settled.tokens, settled.prompt_tokens) == (None, None, None)
    assert (settled.timings, settled.finish_reason) == ({"predicted_ms": 2.0}, "?")


def test_an_event_of_one_megabyte(server: Scripted) -> None:
    text = " baba" * 200_000
    _, settled = ask(
        server,
        CHUNKED,
        *(chunk(event(text)[at : at + 10_000]) for at in range(0, len(event(text)), 10_000)),
        chunk(DONE) + LAST_CHUNK,
    )
    assert settled.error is None and settled.token_text == [text]


# --- errors


JSON_503 = b"HTTP/1.1 503 Busy\r\nContent-Type: application/json\r\n"
TEXT = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("script", "error", "tokens"),
    [
        ((sized(event(" baba")),), "stream ended without finish_reason or [DONE]", 1),
        ((sized(b""),), "no token", 0),
        ((sized(DONE),), "no token", 0),
        ((sized(event(finish_reason="stop") + DONE),), "no token", 0),
        (
            (
                sized(
                    event(" baba")
                    + b'data: {"error": {"message": "out of memory"}}\n\n'
                    + event(" babe")
                    + DONE
                ),
            ),
            "server error in the response",
            1,
        ),
        ((sized(event(" baba") + b"data: {broken\n\n" + DONE),), "not a completion", 1),
        ((sized(event(" baba") + b"data: [1]\n\n" + DONE),), "not a completion", 1),
        ((sized(b"data: " + b"[" * 100_000 + b"\n\n" + DONE),), "not a completion", 0),
        ((sized(b'data: {"error": "\\ud800"}\n\n'),), "server error in the response", 0),
        ((sized(b'{"error": {"message": "busy"}}', JSON_503),), "http 503", 0),
        ((sized(EVENTS, HEAD.replace(b"200 OK", b"500 Oh")),), "http 500", 0),
        ((sized(b"<html>", TEXT + b"Content-Type: text/html\r\n"),), "not a completion", 0),
        ((sized(b"", TEXT),), "no token", 0),
        (
            (sized(EVENTS, HEAD + b"Content-Encoding: gzip\r\n"),),
            "compressed although Accept-Encoding was identity",
            0,
        ),
        ((b"hello\r\n\r\n",), "not an HTTP/1 response", 0),
        ((b"\x16\x03\x01\x02\x00 TLS\r\n\r\n",), "not an HTTP/1 response", 0),
        ((b"HTTP/1.1 " + b"2" * 5000 + b" OK\r\n\r\n",), "not an HTTP/1 response", 0),
        ((b"SSH-2.0-OpenSSH_9.6\r\n", CLOSE), "connection closed in the headers", 0),
        ((b"x" * 200_000,), "headers too long", 0),
        ((HEAD + b"Content-Length: many\r\n\r\n",), "broken Content-Length", 0),
        ((HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",), "broken Content-Length", 0),
        ((CHUNKED + b"zz\r\n",), "broken chunked encoding", 0),
        ((CHUNKED + b"-5\r\nabc",), "broken chunked encoding", 0),
        ((CHUNKED + b"+1\r\na\r\n" + LAST_CHUNK,), "broken chunked encoding", 0),
        ((CHUNKED + b"1" * 100_000,), "broken chunked encoding", 0),
        (
            (CHUNKED + chunk(event(" baba"))[:-2] + b"ab" + LAST_CHUNK,),
            "broken chunked encoding",
            1,
        ),
        (
            (
                CHUNKED,
                0.01,
                chunk(event(" baba")) + chunk(event(" baba"))[:-2] + b"ab" + LAST_CHUNK,
            ),
            "broken chunked encoding",
            2,
        ),
        (
            (CHUNKED + chunk(event(" baba")) + b"40\r\ndata: ", CLOSE),
            "connection closed in the response",
            1,
        ),
        ((sized(EVENTS)[:-20], CLOSE), "connection closed in the response", 3),
        ((CLOSE,), "connection closed before a response", 0),
    ],
)
def test_a_failure_has_a_reason_and_keeps_the_tokens_before_it(
    server: Scripted, script: tuple[Step, ...], error: str, tokens: int
) -> None:
    exchange, settled = ask(server, *script)
    assert settled.error == error
    assert len(settled.token_text) == len(settled.token_s) == tokens
    assert exchange.sent_s is not None and exchange.done_s >= exchange.sent_s


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    exchange = http.Exchange()
    make_blocking_connection(f"http://127.0.0.1:{port}", PATIENCE_S).post("/", b"{}", exchange)
    assert (exchange.error, exchange.sent_s, exchange.status) == ("connection refused", None, None)


# steps of 0.02 s: a limit that restarts with each step would take 20 s instead of 0.3 s
FOREVER = 1000


@pytest.mark.parametrize(
    ("script", "tokens"),
    [
        ((PATIENCE_S,), 0),
        ((CHUNKED + chunk(event(" baba")), PATIENCE_S), 1),
        ((HEAD, *[b"x", 0.02] * FOREVER), 0),
        ((CHUNKED + chunk(event(" baba")), *[chunk(b": still here\n\n"), 0.02] * FOREVER), 1),
    ],
    ids=["silence", "silence in the response", "headers drip", "response drips"],
)
def test_timeout_bounds_the_whole_exchange(
    server: Scripted, script: tuple[Step, ...], tokens: int
) -> None:
    began = time.perf_counter()
    exchange, settled = ask(server, *script, timeout_s=0.3)
    assert settled.error == "timeout" and len(settled.token_s) == tokens
    assert 0.3 <= exchange.done_s - began < 10


def test_an_endless_body_is_given_up(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_RESPONSE_BYTES", 100_000)
    for head, piece in (
        (UNTIL_CLOSED, event(" baba") * 1000),
        (CHUNKED, chunk(event(" baba") * 1000)),
    ):
        exchange, settled = ask(server, head, *[piece] * 1000)
        assert settled.error == "response too long"
        assert 100_000 < len(exchange.body) <= 100_000 + transport.READ_BYTES


def test_an_endless_body_of_whole_chunks_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_RESPONSE_BYTES", 100_000)
    exchange = http.Exchange()
    answer, piece = http.ResponseParser(exchange), event(" baba")
    answer.feed(CHUNKED, 0.0, 0.0)
    with pytest.raises(http.ResponseError, match="response too long"):
        for number in range(100_000):
            answer.feed(chunk(piece), 0.001 * number, 0.0)
    assert 100_000 < len(exchange.body) <= 100_000 + len(piece)
