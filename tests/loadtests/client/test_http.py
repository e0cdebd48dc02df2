"""The HTTP client's connections are kept alive, replaced or closed; each token has the stamp of its
own read.
"""

import email.utils
import time

import pytest

from loadtests.client import http, response
from loadtests.client.blocking import make_blocking_connection
from servers.contract import oracle
from servers.profile.access import make_access
from tests.helpers.scripted_server import (
    ANSWER,
    CHUNKED,
    CLOSE,
    DONE,
    EVENTS,
    HEAD,
    LAST_CHUNK,
    PATIENCE_S,
    RESET,
    UNTIL_CLOSED,
    Scripted,
    Step,
    chunk,
    event,
    is_whole,
    sized,
    until_read,
)

# --- connections


def test_one_connection_serves_many_requests(server: Scripted) -> None:
    access = make_access(["Authorization: Bearer secret"])
    connection = make_blocking_connection(server.url + "/base/", PATIENCE_S, access)
    for turn in range(20):
        exchange = http.Exchange()
        server.scripts.append([ANSWER if turn % 2 else sized(EVENTS)])
        connection.post("/v1/completions", b'{"turn": %d}' % turn, exchange)
        assert is_whole(response.parse_response(exchange))
    connection.close()
    assert server.connections == 1
    assert [request.partition(b"\r\n\r\n")[2] for request in server.requests] == [
        b'{"turn": %d}' % turn for turn in range(20)
    ]
    head = server.requests[0].split(b"\r\n")
    assert head[0] == b"POST /base/v1/completions HTTP/1.1"
    assert {
        b"Accept-Encoding: identity",
        b"Authorization: Bearer secret",
        b"Host: " + server.url[7:].encode(),
    } <= {*head}


@pytest.mark.parametrize(
    "last_words", [(), (b"HTT",)], ids=["closed while idle", "closed in the response"]
)
def test_a_stale_connection_is_replaced_once_and_only_before_a_response(
    server: Scripted, last_words: tuple[bytes, ...]
) -> None:
    server.scripts += [[sized(EVENTS)], [*last_words, CLOSE], [sized(EVENTS)]]
    connection = make_blocking_connection(server.url, PATIENCE_S)
    first, second = http.Exchange(), http.Exchange()
    connection.post("/", b"{}", first)
    connection.post("/", b"{}", second)
    connection.close()
    assert is_whole(response.parse_response(first))
    if last_words:  # the response had started: sending again could make the server work twice
        assert (second.error, server.connections, len(server.requests)) == (
            "connection closed in the headers",
            1,
            2,
        )
    else:
        assert is_whole(response.parse_response(second)) and (
            server.connections,
            len(server.requests),
        ) == (2, 3)
    assert [first.resent, second.resent] == [False, not last_words]


def test_a_request_whose_response_was_reset_is_not_sent_again(server: Scripted) -> None:
    connection = make_blocking_connection(server.url, PATIENCE_S)
    first, second = http.Exchange(), http.Exchange()
    server.scripts += [
        [sized(EVENTS)],
        [CHUNKED + chunk(event(" baba")), until_read(second, 1), RESET],
    ]
    connection.post("/", b"{}", first)
    connection.post("/", b"{}", second)
    connection.close()
    settled = response.parse_response(second)
    assert (settled.error, settled.token_text) == (
        "connection failed: Connection reset by peer",
        [" baba"],
    )
    assert (server.connections, len(server.requests)) == (1, 2)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("", None), ("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None), ("inf", None)],
)
def test_retry_after_in_seconds(header: str, seconds: float | None) -> None:
    assert http.parse_retry_after(header) == seconds


def test_retry_after_as_a_date() -> None:
    date = email.utils.formatdate(time.time() + 60, usegmt=True)
    seconds = http.parse_retry_after(date)
    assert seconds is not None and 58 <= seconds <= 60
    assert http.parse_retry_after("Fri, 31 Dec 1999 23:59:59 GMT") == 0.0


def test_a_request_on_a_new_connection_that_is_closed_is_not_sent_again(server: Scripted) -> None:
    server.scripts += [[sized(EVENTS)], [CLOSE], [CLOSE], [sized(EVENTS)]]
    connection = make_blocking_connection(server.url, PATIENCE_S)
    exchanges = [http.Exchange() for _ in range(3)]
    for exchange in exchanges:
        connection.post("/", b"{}", exchange)
    connection.close()
    assert [exchange.error for exchange in exchanges] == [
        None,
        "connection closed before a response",
        None,
    ]
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "head",
    [HEAD + b"Connection: close\r\n", HEAD.replace(b"1.1", b"1.0")],
    ids=["header", "HTTP/1.0"],
)
def test_a_server_that_closes_is_not_kept(server: Scripted, head: bytes) -> None:
    server.scripts += [[sized(EVENTS, head)], [sized(EVENTS, head)]]
    connection = make_blocking_connection(server.url, PATIENCE_S)
    for _ in range(2):
        exchange = http.Exchange()
        connection.post("/", b"{}", exchange)
        assert is_whole(response.parse_response(exchange)) and connection.socket is None
    assert server.connections == 2


# --- stamps


@pytest.mark.parametrize("coded", [True, False], ids=["chunked", "until closed"])
def test_a_token_has_the_stamp_of_the_read_that_completed_its_event(
    server: Scripted, coded: bool
) -> None:
    one, two, three, four = (event(f" {word}") for word in oracle.VOCABULARY[:4])
    # The second event comes in three reads, and the third event ends in the last of them; the
    # fourth lacks only its last byte.
    pieces = [one, two[:5], two[5:-1], two[-1:] + three, four[:-1], b"\n" + DONE]
    exchange = http.Exchange()
    script: list[Step] = [CHUNKED if coded else UNTIL_CLOSED, 0.01]
    for count, piece in enumerate(pieces, 1):
        script += [chunk(piece) if coded else piece, until_read(exchange, count), 0.01]
    server.scripts.append([*script, LAST_CHUNK if coded else CLOSE, CLOSE])
    connection = make_blocking_connection(server.url, PATIENCE_S)
    connection.post("/", b"{}", exchange)
    connection.close()
    settled = response.parse_response(exchange)
    assert settled.error is None and settled.token_text == [
        f" {word}" for word in oracle.VOCABULARY[:4]
    ]
    assert settled.token_s == [exchange.arrived[read] for read in (0, 3, 3, 5)]
    sent_s = server.sent_s[1:]  # without the headers
    # both ends have one clock, so each read lies between two sends
    for read, at in enumerate(exchange.arrived[: len(pieces)]):
        assert sent_s[read] <= at
        assert read + 1 == len(pieces) or at <= sent_s[read + 1]
    assert (
        exchange.sent_s is not None
        and exchange.sent_s <= server.sent_s[0]
        and exchange.done_s >= exchange.arrived[-1]
    )


def test_events_in_one_read_have_one_stamp_and_headers_have_none(server: Scripted) -> None:
    exchange = http.Exchange()
    two = chunk(event(" baba") + event(" babe"))
    server.scripts.append([CHUNKED, 0.05, two, until_read(exchange, 1), chunk(DONE) + LAST_CHUNK])
    connection = make_blocking_connection(server.url, PATIENCE_S)
    connection.post("/", b"{}", exchange)
    connection.close()
    settled = response.parse_response(exchange)
    assert settled.token_s == [exchange.arrived[0]] * 2
    assert settled.token_s[0] >= server.sent_s[1], "the first token came after the headers"
