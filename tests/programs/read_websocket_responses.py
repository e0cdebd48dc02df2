"""Reads responses over WebSockets under gevent: whole, sent ahead, cut off, refused, and killed."""

from gevent import monkey

monkey.patch_all()

import os

import gevent

from loadtests.client import http, response
from loadtests.client.connection import Connection
from loadtests.client.gevent_connection import make_gevent_connection
from tests.helpers.scripted_server import CLOSE, EVENTS, is_whole
from tests.helpers.websocket_server import ANSWER, PING, UNFINISHED, Upgrading, closing

PATH = "/v1/completions"
server = Upgrading()


def connect(timeout_s: float = 30.0) -> Connection:
    return make_gevent_connection(server.url, timeout_s, websocket_path=PATH)


def ask(connection: Connection) -> response.ParsedResponse:
    exchange = http.Exchange()
    connection.post(PATH, b"{}", exchange)
    return response.parse_response(exchange)


def send_ahead_before_anyone_waits(kept: Connection) -> None:
    """As an open loop does, which makes the request before it knows the connection."""
    server.scripts.insert(0, [ANSWER])
    exchange = http.Exchange()
    kept.send_ahead(connect().protocol.make_template(PATH, b"{}", "0-"), 1, exchange)
    assert exchange.sent_s is not None
    kept.post(PATH, b"{}", exchange)
    assert is_whole(response.parse_response(exchange))
    assert server.connections == 1


def use_one_connection_until_it_is_closed() -> None:
    kept = connect()
    kept.open()
    server.scripts += [
        [ANSWER],
        [PING, 0.02, ANSWER[:70], 0.02, ANSWER[70:]],
        [UNFINISHED, closing(1011, "oops")],
    ]
    assert is_whole(ask(kept))
    assert is_whole(ask(kept))
    assert server.connections == 1
    send_ahead_before_anyone_waits(kept)
    assert ask(kept).error == "websocket closed: 1011 oops"
    assert kept.socket is None


def give_up_after_the_timeout() -> None:
    server.scripts.append([UNFINISHED, 1.0])
    assert ask(connect(0.3)).error == "timeout"


def keep_what_a_killed_greenlet_has_read() -> None:
    exchange = http.Exchange()
    server.scripts.append([UNFINISHED, 1.0, CLOSE])
    connection = connect()
    victim = gevent.spawn(connection.post, PATH, b"{}", exchange)
    while len(exchange.body) < len(EVENTS) // 2:
        gevent.sleep(0.01)
    victim.kill()
    assert len(response.parse_response(exchange).token_s) >= 1
    assert exchange.done_s
    assert exchange.error is None
    connection.close()


def report_a_refused_upgrade() -> None:
    server.refusal = b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"
    assert ask(connect()).error == "upgrade refused: http 403"
    server.refusal = b""


def leak_no_descriptors() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        server.scripts.append([ANSWER, CLOSE])
        connection = connect()
        assert is_whole(ask(connection))
        connection.close()
    gevent.sleep(0.1)
    assert len(os.listdir("/proc/self/fd")) <= before, "descriptors leak"


def main() -> None:
    use_one_connection_until_it_is_closed()
    give_up_after_the_timeout()
    keep_what_a_killed_greenlet_has_read()
    report_a_refused_upgrade()
    leak_no_descriptors()
    server.ended.set()
    server.thread.join()
    print("fine")


if __name__ == "__main__":
    main()
