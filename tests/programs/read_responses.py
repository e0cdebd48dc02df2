"""Reads responses under gevent: whole, cut off, broken, silent, dripping, and while killed."""

from gevent import monkey

monkey.patch_all()

import os

import gevent
from gevent.server import StreamServer

from loadtests.client import http, response
from loadtests.client.connection import Connection
from loadtests.client.gevent_connection import make_gevent_connection
from loadtests.client.reader import socket_reader
from tests.helpers.scripted_server import CHUNKED, CLOSE, DONE, LAST_CHUNK, chunk, event

Script = list[bytes | float | None]  # bytes to send, seconds to wait, CLOSE
WHOLE = CHUNKED + b"".join(map(chunk, (event(" baba"), event(" babe"), DONE))) + LAST_CHUNK
# (what the server does, error, tokens); with a timeout of 0.3 s
BROKEN: list[tuple[Script, str, int | None]] = [
    ([WHOLE[:-5], CLOSE], "connection closed in the response", 2),
    ([WHOLE[:40], CLOSE], "connection closed in the headers", 0),
    ([CLOSE], "connection closed before a response", 0),
    ([b"SSH-2.0-x\r\n\r\n"], "not an HTTP/1 response", 0),
    ([WHOLE[:-5], 5.0], "timeout", 2),
    ([5.0], "timeout", 0),
    # bytes that drip do not restart the timeout
    ([step for n in range(250) for step in (WHOLE[n : n + 1], 0.02)], "timeout", None),
]
scripts: list[Script] = []  # for the next requests


def serve(sock: gevent.socket.socket, _: object) -> None:
    while scripts and sock.recv(65536):
        for step in scripts.pop(0):
            if step is CLOSE:
                sock.close()
                return
            if isinstance(step, float):
                gevent.sleep(step)
            else:
                sock.sendall(step)


server = StreamServer(("127.0.0.1", 0), serve)


def connect(timeout_s: float = 30.0) -> Connection:
    return make_gevent_connection(f"http://127.0.0.1:{server.server_port}", timeout_s)


def ask(
    script: Script, timeout_s: float = 30.0
) -> tuple[Connection, http.Exchange, response.ParsedResponse]:
    """One request on a connection of its own, which stays open."""
    scripts[:] = [script]
    connection, exchange = connect(timeout_s), http.Exchange()
    connection.post("/v1/completions", b"{}", exchange)
    return connection, exchange, response.parse_response(exchange)


def read_whole_responses() -> None:
    _, _, settled = ask([WHOLE])
    assert (settled.error, settled.token_text) == (None, [" baba", " babe"]), settled
    _, exchange, settled = ask([0.05, WHOLE[:130], 0.02, WHOLE[130:-3], 0.02, WHOLE[-3:]])
    assert settled.error is None
    assert len(exchange.arrived) == len(exchange.lags) >= 2
    assert exchange.arrived == sorted(exchange.arrived)


def read_broken_responses() -> None:
    for script, error, tokens in BROKEN:
        connection, _, settled = ask(script, timeout_s=0.3)
        assert settled.error == error, (error, settled)
        assert tokens in (None, len(settled.token_s)), (error, settled)
        assert connection.socket is None, "a broken connection is not kept"


def keep_what_a_killed_greenlet_has_read() -> None:
    exchange = http.Exchange()
    scripts[:] = [[WHOLE[:-5], 5.0]]
    connection = connect()
    before = socket_reader().bytes
    victim = gevent.spawn(connection.post, "/v1/completions", b"{}", exchange)
    while socket_reader().bytes < before + len(WHOLE) - 5:
        gevent.sleep(0.01)
    victim.kill()
    assert len(response.parse_response(exchange).token_s) == 2
    connection.close()


def leak_no_descriptors() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        ask([WHOLE, CLOSE])[0].close()
    gevent.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= before, "descriptors leak"


def main() -> None:
    server.start()
    read_whole_responses()
    read_broken_responses()
    keep_what_a_killed_greenlet_has_read()
    leak_no_descriptors()
    print("fine")


if __name__ == "__main__":
    main()
