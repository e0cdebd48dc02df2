"""HTTP of the ground truth server (loadtests/accuracy/ground_truth_server.py): parses the bytes of
requests and makes the bytes of responses, without any times.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

from servers.contract import oracle

MAX_TOKENS_PER_CHUNK = 1000
TOKEN_BYTES = 5  # a space and a word
# all words in order, and more: a slice of MAX_TOKENS_PER_CHUNK may start at any word
TEXT = oracle.continuation(oracle.VOCABULARY[-1], oracle.WORDS + MAX_TOKENS_PER_CHUNK).encode()
MODEL = oracle.PLANTED_MODELS[0]  # a model whose right responses the load generator knows
PATHS = {"/v1/completions": False, "/v1/chat/completions": True}  # True for chats
PAGES = {
    "/health": {"status": "ok"},
    "/v1/models": {
        "object": "list",
        "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "serveoff"}],
    },
}
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control:"
    b" no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)


class BadRequest(Exception):
    """A request that this server does not understand."""


@dataclass(frozen=True)
class GroundTruthRequest:
    """A request for a stream."""

    id: str | None  # X-Request-Id
    chat: bool
    model: str
    prompt: str
    tokens: int


def parse_first_request(received: bytearray) -> GroundTruthRequest | bytes | None:
    """Removes the first request from `received`. Returns a request for a stream, or the response if
    the request is for a page. Returns None while it is incomplete. Raises BadRequest.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    try:
        first, *lines = received[:end].decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        if method == "GET":
            del received[: end + 4]
            return plain_response("200 OK", PAGES[path])
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        size = end + 4 + int(headers["content-length"])
        if len(received) < size:
            return None
        body, chat = json.loads(received[end + 4 : size]), PATHS[path]
        del received[:size]
        messages = (
            [(message["role"], message["content"]) for message in body["messages"]]
            if chat
            else [("", body["prompt"])]
        )
        tokens = body.get("max_tokens", 16)
        if (
            not all(isinstance(text, str) for _, text in messages)
            or type(tokens) is not int
            or tokens < 1
            or body.get("stream") is not True
        ):
            raise ValueError
        prompt = oracle.chat_text(messages) if chat else messages[0][1]
        return GroundTruthRequest(
            headers.get("x-request-id"), chat, str(body.get("model", MODEL)), prompt, tokens
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise BadRequest(
            "not a request for a stream: it needs a known path, stream: true, text, and max_tokens"
            " of 1 or more"
        ) from None


def plain_response(status: str, body: object, headers: str = "") -> bytes:
    data = json.dumps(body).encode()
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}Content-Length:"
        f" {len(data)}\r\n\r\n".encode()
        + data
    )


def refusal_response(error: BadRequest) -> bytes:
    return plain_response(
        "400 Bad Request",
        {"error": {"message": str(error), "type": "invalid_request_error"}},
        "Connection: close\r\n",
    )


def streamed_response(number: int, request: GroundTruthRequest, size: int) -> Iterator[bytes]:
    """Yields the response in pieces, one event of `size` tokens each. The first piece includes the
    headers, the last one the end of the stream.
    """
    kind, name = (
        ("chat.completion.chunk", "chatcmpl") if request.chat else ("text_completion", "cmpl")
    )
    common = {
        "id": f"{name}-{number:032x}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
    }

    def event(text: str, finish_reason: str | None = None, **more: object) -> bytes:
        content = {"delta": {"content": text}} if request.chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
        return f"data: {json.dumps({**common, 'choices': [choice], **more})}\n\n".encode()

    def chunk(data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data)

    def words(start: int, count: int) -> bytes:
        at = (first_word + start) % oracle.WORDS * TOKEN_BYTES
        return chunk(head + TEXT[at : at + count * TOKEN_BYTES] + tail)

    # only the words differ between events: serialise the rest once
    head, tail = event("\0").rsplit(rb"\u0000", 1)
    first_word, prompt_tokens = (
        oracle.successor_index(request.prompt),
        oracle.count_tokens(request.prompt),
    )
    last = (request.tokens - 1) // size * size  # index of the last piece's first token
    headers = STREAM_HEAD
    for start in range(0, last, size):
        yield headers + words(start, size)
        headers = b""
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": request.tokens,
        "total_tokens": prompt_tokens + request.tokens,
    }
    end = event("", "length", usage=usage) + b"data: [DONE]\n\n"
    yield headers + words(last, request.tokens - last) + chunk(end) + b"0\r\n\r\n"
