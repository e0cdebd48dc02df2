"""The measuring instrument against a scripted server on a real socket: cut, slow, broken and endless answers, and stamps.

Nothing here depends on how fast the machine is: where time matters, the server waits until the client has read.
"""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from loadtests import sse
from servers import contract, rule

CLOSE = None
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s
Step = bytes | float | Callable[[], object] | None
PATIENCE_S = 30.0  # against hanging; not a measurement


class Scripted:
    """Answers the n-th request with the n-th script: bytes are sent, numbers slept (s), functions called."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.scripts: list[list[Step]] = []
        self.requests: list[bytes] = []
        self.connections = 0
        self.sent_s: list[float] = []  # just before each piece was sent
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        self.listener.settimeout(0.05)
        while not self.ended.is_set():
            try:
                client, _ = self.listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            client.settimeout(PATIENCE_S)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with client:
                try:
                    while request := self.read(client):
                        self.requests.append(request)
                        if not self.play(client, self.scripts.pop(0)):
                            break
                except OSError:
                    pass  # the client has given up, as it should for a broken answer

    @staticmethod
    def read(client: socket.socket) -> bytes:
        request = b""
        while b"\r\n\r\n" not in request:
            if not (data := client.recv(65536)):
                return b""
            request += data
        head, _, body = request.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        while len(body) < length:
            body += client.recv(65536)
        return head + b"\r\n\r\n" + body

    def play(self, client: socket.socket, script: list[Step]) -> bool:
        for step in script:
            if step is CLOSE:
                return False
            if step is RESET:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                return False
            if isinstance(step, bytes):
                self.sent_s.append(time.perf_counter())
                client.sendall(step)
            elif isinstance(step, float):
                self.ended.wait(step)
            else:
                step()
        return True


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.ended.set()
    scripted.thread.join(PATIENCE_S)
    scripted.listener.close()
    assert not scripted.thread.is_alive()


def ask(server: Scripted, *script: Step, timeout_s: float = PATIENCE_S) -> tuple[sse.Exchange, sse.Settled]:
    """One request on a connection of its own."""
    server.scripts.append(list(script))
    connection, exchange = sse.Connection(server.url, timeout_s), sse.Exchange()
    connection.post("/v1/completions", b"{}", exchange)
    connection.close()
    return exchange, sse.settle(exchange)


def event(text: str = "", **more: object) -> bytes:
    return f"data: {json.dumps({'choices': [{'text': text}], **more})}\n\n".encode()


WORDS = [" baba", " babe", " babi"]
USAGE = {"prompt_tokens": 2, "completion_tokens": 3}
DONE = contract.DONE.encode()
EVENTS = b"".join(event(word) for word in WORDS) + event(usage=USAGE) + DONE
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSED = HEAD + b"\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def sized(body: bytes, head: bytes = HEAD) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


def is_whole(settled: sse.Settled) -> bool:
    return (settled.error, settled.token_text, settled.usage) == (None, WORDS, USAGE)


# ----------------------------------------------------------------------------------------------------------- cut anywhere


# As servers send it: a chunk an event, one with an extension, one event in two chunks, a trailer at the end.
PIECES = [event(WORDS[0]), event(WORDS[1])[:9], event(WORDS[1])[9:], event(WORDS[2]) + event(usage=USAGE), DONE]
TRAILERS = b"0\r\nX-Trailer: yes\r\nY: z\r\n\r\n"
ANSWER = CHUNKED + b"".join(chunk(piece, b";n=1" * (i == 1)) for i, piece in enumerate(PIECES)) + TRAILERS


def test_an_answer_may_be_cut_at_any_byte(server: Scripted) -> None:
    connection = sse.Connection(server.url, PATIENCE_S)
    for cut in range(1, len(ANSWER)):
        exchange = sse.Exchange()
        server.scripts.append([ANSWER[:cut], 0.0005, ANSWER[cut:]])
        connection.post("/", b"{}", exchange)
        assert is_whole(sse.settle(exchange)), f"cut at {cut}: {sse.settle(exchange)}"
        assert bytes(exchange.body) == EVENTS
    connection.close()
    assert server.connections == 1, "each answer must be read to its very end, or the connection cannot be used again"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 64])
@pytest.mark.parametrize("answer", [ANSWER, sized(EVENTS)], ids=["chunked", "sized"])
def test_reads_of_any_size(server: Scripted, monkeypatch: pytest.MonkeyPatch, answer: bytes, size: int) -> None:
    monkeypatch.setattr(sse, "RECV_BYTES", size)
    exchange, settled = ask(server, answer)
    assert is_whole(settled)
    assert exchange.lengths == sorted(exchange.lengths) and exchange.lengths[-1] == len(EVENTS)
    assert settled.token_s == sorted(settled.token_s)


def test_chunked_encoding_cut_twice_anywhere() -> None:
    coded = chunk(b"one") + chunk(b"\r\n", b" ; a=b") + chunk(b"0123456789abcdef!") + b"000\r\nT: 1\r\n\r\n"
    for first in range(len(coded) + 1):
        for second in range(first, len(coded) + 1):
            decoder, body = sse._Chunked(), bytearray()
            for part in (coded[:first], coded[first:second], coded[second:]):
                assert not decoder.complete or not part
                if part:
                    decoder.feed(part, body)
            assert decoder.complete and bytes(body) == b"one\r\n0123456789abcdef!", (first, second)


# ------------------------------------------------------------------------------------------------------------ whole answers


@pytest.mark.parametrize("script", [
    (sized(EVENTS),),
    (UNTIL_CLOSED + EVENTS, CLOSE),
    (b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + EVENTS, CLOSE),
    (CHUNKED + chunk(EVENTS) + LAST_CHUNK,),
    (sized(EVENTS.replace(b"\n\n", b"\r\n\r\n")),),
    (sized(EVENTS.replace(b"data: ", b"data:")),),
    (sized(b": a comment\n\nevent: message\nid: 1\n" + EVENTS),),
    (sized(EVENTS, HEAD.replace(b"Content-Type", b"CONTENT-TYPE").replace(b"event-stream", b"event-stream; charset=utf-8")),),
], ids=["length", "close", "HTTP/1.0", "chunked", "CRLF", "no space", "comments", "header case"])  # fmt: skip
def test_every_framing_says_the_same(server: Scripted, script: tuple[Step, ...]) -> None:
    exchange, settled = ask(server, *script)
    assert is_whole(settled)
    assert exchange.status == 200 and exchange.sent_s is not None and exchange.sent_s <= settled.token_s[0] <= exchange.done_s


def test_our_own_servers_stream_is_understood(server: Scripted) -> None:
    request = contract.parse(contract.ChatCompletionRequest, json.dumps({
        "model": "m", "messages": [{"role": "user", "content": "baba"}], "stream_options": {"include_usage": True}}).encode())
    answer = contract.Answer(request, "m")
    outcome = contract.Outcome(2, 3, "length", 1.5, 2.5, 3.5)
    _, settled = ask(server, sized("".join(map(answer.event, [*WORDS, outcome])).encode()))
    assert (settled.error, settled.token_text, settled.finish_reason) == (None, WORDS, "length")
    assert settled.usage == USAGE | {"total_tokens": 5}
    assert settled.timings == {"queue_ms": 1.5, "prompt_ms": 2.5, "predicted_ms": 3.5}


def test_a_chunk_without_text_is_not_a_token(server: Scripted) -> None:
    def delta(**said: object) -> bytes:
        return f"data: {json.dumps({'choices': [{'delta': said, 'finish_reason': None}]})}\n\n".encode()

    server_says = delta(role="assistant", content=""), delta(content=None), delta(content=" baba"), delta(), event("")
    exchange = sse.Exchange()
    connection = sse.Connection(server.url, PATIENCE_S)
    steps = (step for count, said in enumerate(server_says, 1) for step in (chunk(said), until_read(exchange, count)))
    server.scripts.append([CHUNKED, 0.01, *steps, chunk(DONE) + LAST_CHUNK])
    connection.post("/", b"{}", exchange)
    connection.close()
    settled = sse.settle(exchange)
    assert (settled.error, settled.token_text) == (None, [" baba"])
    assert settled.token_s == [exchange.arrived[2]], "first is the first chunk with a token, not the role's"


def test_four_tokens_in_one_chunk_are_counted_by_their_text(server: Scripted) -> None:
    _, settled = ask(server, sized(event(" baba babe babi babo") + event(" babu") + DONE))
    assert [rule.count_tokens(text) for text in settled.token_text] == [4, 1]
    assert len(settled.token_s) == 2


def test_a_plain_answer_to_a_streamed_question(server: Scripted) -> None:
    body = json.dumps({"choices": [{"text": " baba babe"}], "usage": {"completion_tokens": 2}}).encode()
    exchange, settled = ask(server, sized(body, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"))
    assert (settled.error, settled.token_text, settled.token_s) == (None, [" baba babe"], exchange.arrived[-1:])


def test_missing_usage_and_timings_are_missing(server: Scripted) -> None:
    _, settled = ask(server, sized(event(" baba") + DONE))
    assert (settled.error, settled.usage, settled.timings, settled.finish_reason) == (None, {}, {}, None)


def test_only_what_the_schema_can_hold_is_taken(server: Scripted) -> None:
    odd = event(" baba", usage={"completion_tokens": "3", "prompt_tokens": 10**30, "total_tokens": 4.0},
                timings={"queue_ms": None, "prompt_ms": "1", "predicted_ms": 2})
    odd += b'data: {"choices": [{"text": "", "finish_reason": "\\ud800"}]}\n\n'
    _, settled = ask(server, sized(odd + DONE))
    assert (settled.error, settled.usage, settled.timings, settled.finish_reason) == (None, {}, {"predicted_ms": 2.0}, "?")


def test_an_event_of_one_megabyte(server: Scripted) -> None:
    text = " baba" * 200_000
    _, settled = ask(server, CHUNKED, *(chunk(event(text)[at : at + 10_000]) for at in range(0, len(event(text)), 10_000)),
                     chunk(DONE) + LAST_CHUNK)
    assert settled.error is None and settled.token_text == [text]


# ------------------------------------------------------------------------------------------------------------------ errors


JSON_503 = b"HTTP/1.1 503 Busy\r\nContent-Type: application/json\r\n"
TEXT = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(("script", "error", "tokens"), [
    ((sized(event(" baba")),), "stream ended without [DONE]", 1),
    ((sized(b""),), "stream ended without [DONE]", 0),
    ((sized(event(" baba") + b"data: [DONE]"),), "stream ended without [DONE]", 1),
    ((sized(event(" baba") + b'data: {"error": {"message": "out of memory"}}\n\n' + event(" babe") + DONE),),
     "server error in the stream: out of memory", 1),
    ((sized(event(" baba") + b"data: {broken\n\n" + DONE),), "an event that is not a chunk", 1),
    ((sized(event(" baba") + b"data: [1]\n\n" + DONE),), "an event that is not a chunk", 1),
    ((sized(b"data: " + b"[" * 100_000 + b"\n\n" + DONE),), "an event that is not a chunk", 0),
    ((sized(b'data: {"error": "\\ud800"}\n\n'),), "server error in the stream: ?", 0),
    ((sized(b'{"error": {"message": "busy"}}', JSON_503),), "http 503", 0),
    ((sized(EVENTS, HEAD.replace(b"200 OK", b"500 Oh")),), "http 500", 0),
    ((sized(b"<html>", TEXT + b"Content-Type: text/html\r\n"),), "an event that is not a chunk", 0),
    ((sized(b"", TEXT),), "an event that is not a chunk", 0),
    ((sized(EVENTS, HEAD + b"Content-Encoding: gzip\r\n"),), "compressed although identity was asked for", 0),
    ((b"hello\r\n\r\n",), "not an HTTP/1 answer", 0),
    ((b"\x16\x03\x01\x02\x00 TLS\r\n\r\n",), "not an HTTP/1 answer", 0),
    ((b"HTTP/1.1 " + b"2" * 5000 + b" OK\r\n\r\n",), "not an HTTP/1 answer", 0),
    ((b"SSH-2.0-OpenSSH_9.6\r\n", CLOSE), "connection closed in the headers", 0),
    ((b"x" * 200_000,), "headers too long", 0),
    ((HEAD + b"Content-Length: many\r\n\r\n",), "broken Content-Length", 0),
    ((HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",), "broken Content-Length", 0),
    ((CHUNKED + b"zz\r\n",), "broken chunked encoding", 0),
    ((CHUNKED + b"-5\r\nabc",), "broken chunked encoding", 0),
    ((CHUNKED + b"+1\r\na\r\n" + LAST_CHUNK,), "broken chunked encoding", 0),
    ((CHUNKED + b"1" * 100_000,), "broken chunked encoding", 0),
    ((CHUNKED + chunk(event(" baba"))[:-2] + b"ab" + LAST_CHUNK,), "broken chunked encoding", 1),
    ((CHUNKED + chunk(event(" baba")) + b"40\r\ndata: ", CLOSE), "connection closed in the answer", 1),
    ((sized(EVENTS)[:-20], CLOSE), "connection closed in the answer", 3),
    ((CLOSE,), "connection closed before an answer", 0),
])  # fmt: skip
def test_a_failure_has_a_reason_and_keeps_what_came(server: Scripted, script: tuple[Step, ...], error: str, tokens: int) -> None:
    exchange, settled = ask(server, *script)
    assert settled.error == error
    assert len(settled.token_text) == len(settled.token_s) == tokens
    assert exchange.sent_s is not None and exchange.done_s >= exchange.sent_s


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    exchange = sse.Exchange()
    sse.Connection(f"http://127.0.0.1:{port}", PATIENCE_S).post("/", b"{}", exchange)
    assert (exchange.error, exchange.sent_s, exchange.status) == ("connection refused", None, None)


FOREVER = 1000  # steps of 0.02 s: a bound that begins anew with each of them would take 20 s instead of 0.3 s


@pytest.mark.parametrize(("script", "tokens"), [
    ((PATIENCE_S,), 0),
    ((CHUNKED + chunk(event(" baba")), PATIENCE_S), 1),
    ((HEAD, *[b"x", 0.02] * FOREVER), 0),
    ((CHUNKED + chunk(event(" baba")), *[chunk(b": still here\n\n"), 0.02] * FOREVER), 1),
], ids=["silence", "silence in the answer", "headers drip", "answer drips"])  # fmt: skip
def test_timeout_bounds_the_whole_exchange(server: Scripted, script: tuple[Step, ...], tokens: int) -> None:
    began = time.perf_counter()
    exchange, settled = ask(server, *script, timeout_s=0.3)
    assert settled.error == "timeout" and len(settled.token_s) == tokens
    assert 0.3 <= exchange.done_s - began < 10


def test_an_endless_body_is_given_up(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_ANSWER_BYTES", 100_000)
    for head, piece in ((UNTIL_CLOSED, event(" baba") * 1000), (CHUNKED, chunk(event(" baba") * 1000))):
        exchange, settled = ask(server, head, *[piece] * 1000)
        assert settled.error == "answer too long"
        assert 100_000 < len(exchange.body) <= 100_000 + sse.RECV_BYTES


# ------------------------------------------------------------------------------------------------------------- connections


def test_one_connection_carries_many_requests(server: Scripted) -> None:
    connection = sse.Connection(server.url + "/base/", PATIENCE_S, api_key="secret")
    for turn in range(20):
        exchange = sse.Exchange()
        server.scripts.append([ANSWER if turn % 2 else sized(EVENTS)])
        connection.post("/v1/completions", b'{"turn": %d}' % turn, exchange)
        assert is_whole(sse.settle(exchange))
    connection.close()
    assert server.connections == 1
    assert [request.partition(b"\r\n\r\n")[2] for request in server.requests] == [b'{"turn": %d}' % turn for turn in range(20)]
    head = server.requests[0].split(b"\r\n")
    assert head[0] == b"POST /base/v1/completions HTTP/1.1"
    assert {b"Accept-Encoding: identity", b"Authorization: Bearer secret", b"Host: " + server.url[7:].encode()} <= {*head}


@pytest.mark.parametrize("last_words", [(), (b"HTT",)], ids=["closed while idle", "closed in the answer"])
def test_a_stale_connection_is_replaced_once_and_only_before_an_answer(server: Scripted, last_words: tuple[bytes, ...]) -> None:
    server.scripts += [[sized(EVENTS)], [*last_words, CLOSE], [sized(EVENTS)]]
    connection = sse.Connection(server.url, PATIENCE_S)
    first, second = sse.Exchange(), sse.Exchange()
    connection.post("/", b"{}", first)
    connection.post("/", b"{}", second)
    connection.close()
    assert is_whole(sse.settle(first))
    if last_words:  # something was answered: to ask again might be to ask for the work twice
        assert (second.error, server.connections, len(server.requests)) == ("connection closed in the headers", 1, 2)
    else:
        assert is_whole(sse.settle(second)) and (server.connections, len(server.requests)) == (2, 3)


def test_an_answer_that_was_reset_is_not_asked_for_again(server: Scripted) -> None:
    connection = sse.Connection(server.url, PATIENCE_S)
    first, second = sse.Exchange(), sse.Exchange()
    server.scripts += [[sized(EVENTS)], [CHUNKED + chunk(event(" baba")), until_read(second, 1), RESET]]
    connection.post("/", b"{}", first)
    connection.post("/", b"{}", second)
    connection.close()
    settled = sse.settle(second)
    assert (settled.error, settled.token_text) == ("connection failed: Connection reset by peer", [" baba"])
    assert (server.connections, len(server.requests)) == (1, 2)


def test_a_new_connection_that_is_closed_is_not_asked_again(server: Scripted) -> None:
    server.scripts += [[sized(EVENTS)], [CLOSE], [CLOSE], [sized(EVENTS)]]
    connection = sse.Connection(server.url, PATIENCE_S)
    exchanges = [sse.Exchange() for _ in range(3)]
    for exchange in exchanges:
        connection.post("/", b"{}", exchange)
    connection.close()
    assert [exchange.error for exchange in exchanges] == [None, "connection closed before an answer", None]
    assert len(server.requests) == 4


@pytest.mark.parametrize("head", [HEAD + b"Connection: close\r\n", HEAD.replace(b"1.1", b"1.0")], ids=["header", "HTTP/1.0"])
def test_a_server_that_closes_is_not_kept(server: Scripted, head: bytes) -> None:
    server.scripts += [[sized(EVENTS, head)], [sized(EVENTS, head)]]
    connection = sse.Connection(server.url, PATIENCE_S)
    for _ in range(2):
        exchange = sse.Exchange()
        connection.post("/", b"{}", exchange)
        assert is_whole(sse.settle(exchange)) and connection.socket is None
    assert server.connections == 2


# ------------------------------------------------------------------------------------------------------------------ stamps


def until_read(exchange: sse.Exchange, pieces: int) -> Callable[[], object]:
    """A step that waits until the client has read so many pieces of the body."""

    def wait() -> None:
        end = time.monotonic() + PATIENCE_S
        while len(exchange.arrived) < pieces and time.monotonic() < end:
            time.sleep(0.0005)

    return wait


@pytest.mark.parametrize("coded", [True, False], ids=["chunked", "until closed"])
def test_a_token_has_the_stamp_of_the_read_that_completed_its_event(server: Scripted, coded: bool) -> None:
    one, two, three, four = (event(f" {word}") for word in rule.VOCABULARY[:4])
    # The second event comes in three reads, and the third one ends in the last of these; the fourth lacks only its last byte.
    pieces = [one, two[:5], two[5:-1], two[-1:] + three, four[:-1], b"\n" + DONE]
    exchange = sse.Exchange()
    script: list[Step] = [CHUNKED if coded else UNTIL_CLOSED, 0.01]
    for count, piece in enumerate(pieces, 1):
        script += [chunk(piece) if coded else piece, until_read(exchange, count), 0.01]
    server.scripts.append([*script, LAST_CHUNK if coded else CLOSE, CLOSE])
    connection = sse.Connection(server.url, PATIENCE_S)
    connection.post("/", b"{}", exchange)
    connection.close()
    settled = sse.settle(exchange)
    assert settled.error is None and settled.token_text == [f" {word}" for word in rule.VOCABULARY[:4]]
    assert settled.token_s == [exchange.arrived[read] for read in (0, 3, 3, 5)]
    sent_s = server.sent_s[1:]  # without the headers
    for read, at in enumerate(exchange.arrived[: len(pieces)]):  # one clock: each read lies between two sends
        assert sent_s[read] <= at
        assert read + 1 == len(pieces) or at <= sent_s[read + 1]
    assert exchange.sent_s is not None and exchange.sent_s <= server.sent_s[0] and exchange.done_s >= exchange.arrived[-1]


def test_events_in_one_read_have_one_stamp_and_headers_have_none(server: Scripted) -> None:
    exchange = sse.Exchange()
    two = chunk(event(" baba") + event(" babe"))
    server.scripts.append([CHUNKED, 0.05, two, until_read(exchange, 1), chunk(DONE) + LAST_CHUNK])
    connection = sse.Connection(server.url, PATIENCE_S)
    connection.post("/", b"{}", exchange)
    connection.close()
    settled = sse.settle(exchange)
    assert settled.token_s == [exchange.arrived[0]] * 2
    assert settled.token_s[0] >= server.sent_s[1], "the first token came after the headers"
