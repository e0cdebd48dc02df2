"""The WebSocket client against a real socket: frames cut anywhere, pings between them, all kinds of
ends; and a campaign over WebSockets.
"""

import itertools
import json
import sys
from collections.abc import Iterator

import pytest
from wsproto import ConnectionType
from wsproto.connection import Connection as Protocol
from wsproto.events import CloseConnection, Pong

from loadtests.client import http, response
from loadtests.client.blocking import make_blocking_connection
from loadtests.client.connection import Connection
from loadtests.client.websocket import MessageParser
from servers.contract import oracle
from servers.profile.access import OPEN, Access, make_access
from tests.helpers.campaign_process import (
    QUICK,
    SCENARIOS,
    Bench,
    is_complete,
    runs,
    table,
    wait_for,
)
from tests.helpers.installed import require_installed
from tests.helpers.python_program import output_of
from tests.helpers.scripted_server import (
    CLOSE,
    DONE,
    EVENTS,
    PATIENCE_S,
    RESET,
    USAGE,
    WORDS,
    Step,
    event,
    is_whole,
    until_read,
)
from tests.helpers.websocket_server import (
    ANSWER,
    PING,
    REFUSED,
    UNFINISHED,
    Upgrading,
    closing,
    frame,
    frames,
)


@pytest.fixture
def server() -> Iterator[Upgrading]:
    scripted = Upgrading()
    yield scripted
    scripted.ended.set()
    scripted.thread.join(PATIENCE_S)
    scripted.listener.close()
    assert not scripted.thread.is_alive()


def connect(server: Upgrading, timeout_s: float = PATIENCE_S, access: Access = OPEN) -> Connection:
    return make_blocking_connection(server.url + "/base/", timeout_s, access, "/v1/completions")


def post(
    connection: Connection, body: bytes = b"{}"
) -> tuple[http.Exchange, response.ParsedResponse]:
    exchange = http.Exchange()
    connection.post("/v1/completions", body, exchange)
    return exchange, response.parse_response(exchange)


def ask(
    server: Upgrading, *script: Step, timeout_s: float = PATIENCE_S
) -> tuple[http.Exchange, response.ParsedResponse]:
    """Sends one request on its own connection."""
    server.scripts.append(list(script))
    connection = connect(server, timeout_s)
    try:
        return post(connection)
    finally:
        connection.close()


# --- connections


def test_one_handshake_serves_all_requests(server: Upgrading) -> None:
    connection = connect(server, access=make_access(["Authorization: Bearer secret"]))
    connection.open()
    for turn in range(10):
        server.scripts.append([ANSWER])
        exchange, settled = post(connection, b'{"turn": %d}' % turn)
        assert is_whole(settled) and exchange.status == 200 and bytes(exchange.body) == EVENTS
    connection.close()
    assert server.connections == 1 and server.requests == [
        b'{"turn": %d}' % turn for turn in range(10)
    ]
    [head] = server.heads
    assert head.startswith(b"GET /base/v1/completions HTTP/1.1\r\n")
    assert {b"Authorization: Bearer secret", b"Host: " + server.url[7:].encode()} <= {
        *head.split(b"\r\n")
    }


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "upgrade refused: http 403"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "upgrade refused: http 200"),
        (
            (
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection:"
                b" Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"
            ),
            "upgrade refused: Bad accept token",
        ),
        (b"SSH-2.0-x\r\n\r\n", "upgrade refused: Bad HTTP message"),
        (b"HTTP/1.1 10", "connection closed in the handshake"),
    ],
)
def test_a_refused_upgrade_is_an_error_with_the_reason(
    server: Upgrading, refusal: bytes, error: str
) -> None:
    server.refusal = refusal
    connection = connect(server)
    with pytest.raises(http.ResponseError, match=error):
        connection.open()
    exchange, settled = post(connection)
    assert (settled.error, exchange.status, exchange.sent_s, connection.socket) == (
        error,
        None,
        None,
        None,
    )
    server.refusal = b""
    server.scripts.append([ANSWER])
    assert is_whole(post(connection)[1]), "the next request tries again"
    connection.close()


@pytest.mark.parametrize("last_words", [b"", closing(1001)], ids=["without a word", "says so"])
def test_a_connection_that_was_closed_while_idle_is_replaced_once(
    server: Upgrading, last_words: bytes
) -> None:
    server.scripts += [
        [ANSWER],
        [last_words, CLOSE],
        [ANSWER],
        [last_words, CLOSE],
        [last_words, CLOSE],
    ]
    connection = connect(server)
    assert (
        is_whole(post(connection)[1]) and is_whole(post(connection)[1]) and server.connections == 2
    )
    assert post(connection)[1].error == (
        "websocket closed: 1001" if last_words else "connection closed before a response"
    )
    assert server.connections == 3 and connection.socket is None


def test_a_close_after_a_response_is_no_error_and_the_next_request_reconnects(
    server: Upgrading,
) -> None:
    server.scripts += [[ANSWER + closing(1000), CLOSE], [ANSWER]]
    connection = connect(server)
    assert is_whole(post(connection)[1]) and connection.socket is None
    assert is_whole(post(connection)[1]) and server.connections == 2
    connection.close()


# --- frames


def test_frames_may_be_cut_anywhere() -> None:
    pieces = [
        frames(event(WORDS[0])),
        PING + frames(event(WORDS[1])),
        frames(event(WORDS[2])),
        frames(event(usage=USAGE) + DONE),
    ]
    ends, wire = [*itertools.accumulate(map(len, pieces))][:3], b"".join(pieces)
    for cut in range(1, len(wire)):
        exchange, pongs = http.Exchange(), []
        reader = MessageParser(exchange, Protocol(ConnectionType.CLIENT), pongs.append)
        assert (
            not reader.feed(wire[:cut], 1.0, 0.0)
            and reader.feed(wire[cut:], 2.0, 0.0)
            and len(pongs) == 1
        )
        settled = response.parse_response(exchange)
        assert is_whole(settled) and bytes(exchange.body) == EVENTS
        assert settled.token_s == [1.0 if cut >= end else 2.0 for end in ends]


def test_a_response_is_read_byte_by_byte(server: Upgrading) -> None:
    script = [step for n in range(len(ANSWER)) for step in (ANSWER[n : n + 1], 0.0)]
    assert is_whole(ask(server, *script)[1])


def test_a_token_has_the_stamp_of_the_read_that_completed_its_message(server: Upgrading) -> None:
    one, two, three = (frames(event(word)) for word in WORDS)
    pieces = [one, two[:9], two[9:-1], two[-1:] + three, frames(event(usage=USAGE) + DONE)]
    exchange = http.Exchange()
    script: list[Step] = [0.01]
    for count, piece in enumerate(pieces, 1):
        script += [piece, until_read(exchange, count), 0.01]
    server.scripts.append(script)
    connection = connect(server)
    connection.post("/v1/completions", b"{}", exchange)
    connection.close()
    settled = response.parse_response(exchange)
    assert is_whole(settled) and settled.token_s == [exchange.arrived[read] for read in (0, 3, 3)]
    for read, at in enumerate(exchange.arrived):  # on one clock, each read is between two sends
        assert server.sent_s[read] <= at and (
            read + 1 == len(pieces) or at <= server.sent_s[read + 1]
        )
    assert (
        exchange.sent_s is not None
        and exchange.sent_s <= server.sent_s[0]
        and exchange.done_s == exchange.arrived[-1]
    )


def test_a_ping_gets_a_pong_and_is_no_part_of_the_response(server: Upgrading) -> None:
    connection, exchange = connect(server), http.Exchange()
    first, rest = frames(event(WORDS[0])), frames(EVENTS.removeprefix(event(WORDS[0])))
    server.scripts += [[PING, 0.02, first, until_read(exchange, 1), PING, 0.02, rest], [ANSWER]]
    connection.post("/v1/completions", b"{}", exchange)
    assert (
        is_whole(response.parse_response(exchange))
        and len(exchange.arrived) == len(exchange.lengths) == len(exchange.lags) == 2
    )
    assert is_whole(post(connection)[1]) and server.heard == [Pong(b"still there?")] * 2
    connection.close()


def test_a_message_may_be_huge_or_in_many_frames(server: Upgrading) -> None:
    text = " ".join(oracle.VOCABULARY) * 700  # about 300 KB: its length takes eight bytes
    huge = event(text)[6:-2]
    assert len(huge) > 2**16
    exchange, settled = ask(server, frame(huge) + frames(DONE))
    assert (settled.error, settled.token_text) == (None, [text]) and exchange.arrived[
        0
    ] < exchange.arrived[-1]
    parts = [huge[n : n + 1000] for n in range(0, len(huge), 1000)]
    fragments = [frame(part, 0 if n else 1, n == len(parts) - 1) for n, part in enumerate(parts)]
    _, settled = ask(server, PING.join(fragments), frames(DONE))
    assert (settled.error, settled.token_text) == (None, [text])


def test_a_request_may_be_huge(server: Upgrading) -> None:
    server.scripts.append([ANSWER])
    body = json.dumps({"prompt": "baba " * 400_000}).encode()
    connection = connect(server)
    assert is_whole(post(connection, body)[1]) and server.requests == [body]
    connection.close()


def test_line_breaks_in_json_do_not_split_an_event(server: Upgrading) -> None:
    pretty = json.dumps(json.loads(event(WORDS[0])[6:]), indent=1).replace("\n", "\r\n").encode()
    _, settled = ask(server, frame(pretty) + frames(EVENTS.removeprefix(event(WORDS[0]))))
    assert is_whole(settled)


# --- ends


@pytest.mark.parametrize(
    ("steps", "error", "tokens"),
    [
        ([UNFINISHED, closing(1011, "out of memory")], "websocket closed: 1011 out of memory", 3),
        ([UNFINISHED, closing(1000)], "websocket closed: 1000", 3),
        ([UNFINISHED, frame(b"", 8)], "websocket closed: 1005", 3),
        ([closing(1009, "message too big")], "websocket closed: 1009 message too big", 0),
        ([UNFINISHED, CLOSE], "connection closed in the response", 3),
        ([CLOSE], "connection closed before a response", 0),
        ([frames(event(WORDS[0])), 0.05, RESET], "connection failed: Connection reset by peer", 1),
        ([frames(event(WORDS[0])), b"\xff\xff"], "broken WebSocket frame: Invalid opcode 0xf", 1),
        (
            [frames(event(WORDS[0])), frame(b"\xff")],
            (
                "broken WebSocket frame: 'utf-8' codec can't decode byte 0xff in position 0:"
                " invalid start byte"
            ),
            1,
        ),
        (
            [frames(event(WORDS[0])), b"\x81\x81abcdx"],
            "broken WebSocket frame: client received unexpected masked frame",
            1,
        ),
        ([ANSWER + frames(event("x"))], "a message after the end of the response", 3),
        ([frames(event(WORDS[0])) + REFUSED], "server error in the response", 1),
        ([REFUSED], "http 400", 0),
        ([frame(b'{"error": {"message": "busy"}}')], "http 500", 0),
        ([frames(event(WORDS[0])), 5.0], "timeout", 1),
        ([5.0], "timeout", 0),
    ],
)
def test_each_end_has_a_name_and_the_tokens_before_it_are_kept(
    server: Upgrading, steps: list[Step], error: str, tokens: int
) -> None:
    quick = error == "timeout"
    exchange, settled = ask(
        server, *steps, *([5.0] if quick else [0.05, CLOSE]), timeout_s=0.5 if quick else PATIENCE_S
    )
    assert (settled.error, len(settled.token_s)) == (error, tokens)
    assert exchange.sent_s is not None and exchange.done_s >= exchange.sent_s


def test_after_a_refused_request_the_connection_still_serves(server: Upgrading) -> None:
    server.scripts += [[REFUSED], [ANSWER]]
    connection = connect(server)
    assert post(connection)[1].error == "http 400"
    assert is_whole(post(connection)[1]) and server.connections == 1
    connection.close()


def test_a_close_is_answered(server: Upgrading) -> None:
    ask(server, UNFINISHED, closing(1001, "bye"))
    assert wait_for(lambda: server.heard, "an answer to the close") == [
        CloseConnection(1001, "bye")
    ]


# --- under gevent


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_the_loop_reads_what_the_blocking_client_reads() -> None:
    assert output_of("read_websocket_responses") == "fine\n"


# --- a campaign


def test_a_campaign_over_websockets_has_the_same_rows_and_skips_servers_without(
    bench: Bench,
) -> None:
    require_installed("tornado")
    (bench.folder / "ws.toml").write_text(
        SCENARIOS.replace('endpoint = "chat"', 'endpoint = "chat"\ntransport = "websocket"')
    )
    done = bench.run(
        *QUICK,
        "--scenarios-file",
        "ws.toml",
        "--servers",
        "tornado,flask_gunicorn",
        "--out",
        "sockets",
    )
    assert is_complete(done.returncode, done.stderr), done.stdout + done.stderr
    assert bench.left_over() == []
    by_server = {
        run["case"]["server"]: (folder, run) for folder, run in runs(bench.folder / "sockets")
    }
    folder, run = by_server["flask_gunicorn"]
    assert (
        run["status"] == "skipped: it does not stream by websocket"
        and not (folder / "requests.parquet").exists()
    )
    folder, run = by_server["tornado"]
    assert run["status"] == "ok", run["status"]
    assert run["verify_before"][-1]["name"] == run["verify_after"][-1]["name"] == "websocket"
    rows = table(folder, "requests")
    counted = dict.fromkeys(("sent", "rows", "locust_requests"), len(rows))
    assert (
        run["counts"] == counted | {"locust_failures": 0, "cut_off": 0, "planned": None}
        and len(rows) > 20
    )
    assert run["served"] == {"requests": len(rows), "tokens": sum(row["tokens"] for row in rows)}
    for row in rows:
        assert (row["error"], row["answer"], row["http_status"], row["finish_reason"]) == (
            None,
            "exact",
            200,
            "length",
        )
        assert row["tokens"] == row["max_tokens"] == len(row["token_s"]) and row["prompt_ms"] >= 20
        assert (
            row["scheduled_s"] <= row["sent_s"] < row["first_s"] <= row["last_s"] <= row["done_s"]
        )
