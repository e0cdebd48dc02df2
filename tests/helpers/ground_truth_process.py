"""The ground-truth server as a process, and requests to it."""

import json
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from loadtests.accuracy.ground_truth_server import LogSummary, ServedRequest, read_log
from loadtests.client import http, response
from loadtests.client.blocking import make_blocking_connection
from loadtests.client.connection import Connection
from servers.contract import oracle

PATIENCE_S = 30.0  # against hanging; not a measurement


PROMPT = "some words and then bade"


class Reference:
    def __init__(self, folder: Path, *options: str):
        self.log = folder / "reference.jsonl"
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "loadtests.accuracy.ground_truth_server",
                "--log",
                str(self.log),
                *options,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def end(self, number: int = signal.SIGTERM) -> tuple[LogSummary, list[ServedRequest]]:
        self.process.send_signal(number)
        assert self.process.wait(PATIENCE_S) == 0
        return read_log(self.log)


def body(tokens: int, chat: bool = False, **more: object) -> bytes:
    asked = (
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": PROMPT},
            ]
        }
        if chat
        else {"prompt": PROMPT}
    )
    return json.dumps(
        {"model": "serveoff-tiny", "max_tokens": tokens, "stream": True, **asked, **more}
    ).encode()


def raw(tokens: int) -> bytes:
    data = body(tokens)
    return b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(data) + data


def connect(reference: Reference) -> socket.socket:
    return socket.create_connection(("127.0.0.1", reference.port), PATIENCE_S)


def ask(
    reference: Reference, tokens: int, chat: bool = False, name: str = ""
) -> tuple[http.Exchange, response.ParsedResponse]:
    """Send one request on a connection of its own."""
    with closing(make_blocking_connection(reference.url, PATIENCE_S)) as connection:
        connection.protocol.headers += f"X-Request-Id: {name}\r\n" if name else ""
        return ask_on(connection, tokens, chat)


def ask_on(
    connection: Connection, tokens: int, chat: bool = False
) -> tuple[http.Exchange, response.ParsedResponse]:
    exchange = http.Exchange()
    connection.post(
        "/v1/chat/completions" if chat else "/v1/completions", body(tokens, chat), exchange
    )
    return exchange, response.parse_response(exchange)


def is_exact(settled: response.ParsedResponse, tokens: int, chat: bool = False) -> bool:
    prompt = oracle.chat_text([("system", "be brief"), ("user", PROMPT)]) if chat else PROMPT
    prompt_tokens = oracle.count_tokens(prompt)
    counts = (settled.prompt_tokens, settled.tokens)
    return (settled.error, "".join(settled.token_text), settled.finish_reason, counts) == (
        None,
        oracle.continuation(prompt, tokens),
        "length",
        (prompt_tokens, tokens),
    )
