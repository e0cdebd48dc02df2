"""Parsing without decoding JSON: for any response, the fast path must read what the slow path
reads.
"""

import json
import random
from typing import Any

import pytest

from loadtests.client import http, response

TEXTS = [
    " baba",
    " babe",
    " babi",
    " a",
    "a",
    "{",
    "}",
    "[DONE]",
    "data: x",
    "stop",
    "m",
    "text",
    "content",
    "text: x",
    ":",
    ",",
    "null",
    "",
    None,
    " ",
    "\t",
    "\n",
    "\n\n",
    'say "x"',
    "\\",
    "\\n",
    "é",
    "日本",
    "\u2028",
    "\x85",
    "😀",
    "\ud800",
    "?",
    "\x7f",
]


def dumped(source: random.Random, body: dict[str, Any]) -> str:
    """Writes JSON as one library or another would: with or without spaces and escapes."""
    separators = (
        (",", ":") if source.random() < 0.3 else (", ", " : ") if source.random() < 0.1 else None
    )
    text = json.dumps(body, ensure_ascii=source.random() < 0.7, separators=separators)
    if source.random() < 0.15:  # letters in values and in keys may be escaped as well
        letter = source.choice('abemtx"')
        text = (
            text.replace(letter, f"\\u{ord(letter):04x}")
            if letter != '"'
            else text.replace('\\"', "\\u0022")
        )
    return text


def body_of(source: random.Random, shape: str, text: str | None) -> dict[str, Any]:
    common: dict[str, Any] = {"id": "c-1", "created": 1, "model": "m"}
    choice: dict[str, Any] = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    body = common | {"choices": [choice]}
    match shape:
        case "completion":
            body["choices"] = [{"index": 0, "text": text}]
        case "reasoning":
            choice["delta"] = {source.choice(["reasoning", "reasoning_content"]): text}
        case "reasoning beside":
            choice["delta"] = {"content": "", "reasoning_content": text}
        case "role":
            choice["delta"] = {"role": "assistant", "content": text}
        case "new id":
            body |= {"id": f"c-{source.random()}", "created": source.randrange(10)}
        case "same text elsewhere":
            body = {
                source.choice(["note", "text", "content"]): source.choice(
                    [text, {"content": text}, [{"text": text}]]
                )
            } | body
        case "same text behind":
            body["system"] = source.choice([text, {"text": text}])
        case "both keys":
            body["choices"] = [{"text": text, "delta": {"content": source.choice(TEXTS)}}]
        case "two choices":
            body["choices"] = [
                {"text": text},
                source.choice([{"text": ""}, {"text": text}, {"delta": {"content": " baba"}}, {}]),
            ]
        case "finish":
            choice["finish_reason"] = source.choice(["stop", "length", ""])
        case "usage":
            body["usage"] = source.choice(
                [None, {}, {"completion_tokens": source.randrange(9)}, {"prompt_tokens": "x"}]
            )
        case "timings":
            body["timings"] = source.choice([None, {}, {"queue_ms": 1.5}])
        case "no choices":
            body["choices"] = source.choice([[], None])
        case "error":
            body["error"] = source.choice([None, "busy", {"message": "out of memory"}])
    return body


SHAPES = [
    "chat",
    "completion",
    "reasoning",
    "reasoning beside",
    "role",
    "new id",
    "same text elsewhere",
    "same text behind",
    "both keys",
    "two choices",
    "finish",
    "usage",
    "timings",
    "no choices",
    "error",
    "comment",
    "two lines",
    "event line",
    "no space",
    "escaped",
    "broken",
    "done",
]
WEIGHTS = [10, 10, 5, 5, 1, 2, 3, 3, 2, 2, 1, 1, 1, 1, 0.2, 1, 1, 1, 1, 1, 0.1, 0.3]


def events(source: random.Random) -> list[bytes]:
    """Makes mostly runs of one shape, on which the fast path is used."""
    found, shape = [], "chat"
    ascii_only = source.random() < 0.5
    for _ in range(source.randrange(1, 60)):
        if source.random() < 0.25:
            [shape] = source.choices(SHAPES, WEIGHTS)
        text = source.choice(TEXTS[:12]) if source.random() < 0.8 else source.choice(TEXTS)
        plain = (
            json.dumps(body_of(source, shape, text))
            if ascii_only
            else dumped(source, body_of(source, shape, text))
        )
        line = f"data: {plain}"
        match shape:
            case "comment":
                line = source.choice([": still here", ":", "", f": {plain}"])
            # the text that counts is hidden behind an escape; the visible text belongs to a note
            case "escaped":
                note = str(source.choice(TEXTS[:3]))
                line = 'data: {"note": {"content": "X"}, "choices": [{"text": "\\u0020baba"}]}'
                line = line.replace("X", note)
            case "two lines":
                line = f"{line}\n{line}"
            case "event line":
                line = source.choice(
                    [f"event: message\nid: 7\n{line}", f"{line}\nid: 7", f"retry: 5\n{line}"]
                )
            case "no space":
                line = source.choice([f"data:{plain}", f"data:  {plain}  "])
            case "broken":
                line = source.choice(
                    [
                        "data: {",
                        "data: 5",
                        "data: []",
                        "data:",
                        line[: source.randrange(6, len(line))],
                    ]
                )
            case "done":
                line = "data: [DONE]"
        found.append(line.encode(errors="surrogatepass"))
    return [*found, b"data: [DONE]"] if source.random() < 0.9 else found


def exchange_of(source: random.Random) -> http.Exchange:
    separator = b"\r\n\r\n" if source.random() < 0.2 else b"\n\n"
    body = bytearray(
        separator.join(
            part.replace(b"\n", separator[: len(separator) // 2]) for part in events(source)
        )
        + separator
    )
    exchange = http.Exchange(sent_s=0.0, status=200, content_type="text/event-stream", body=body)
    cuts = sorted(
        {*(source.randrange(1, len(body) + 1) for _ in range(source.randrange(20))), len(body)}
    )
    exchange.lengths, exchange.arrived = cuts, [float(n) for n in range(len(cuts))]
    return exchange


def test_the_fast_path_reads_what_the_slow_path_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, read_chunk = 0, response.read_chunk

    def counted(payload: bytes) -> Any:
        nonlocal decoded
        decoded += 1
        return read_chunk(payload)

    monkeypatch.setattr(response, "read_chunk", counted)
    exchanges = [exchange_of(random.Random(seed)) for seed in range(4000)]
    fast = [response.parse_response(exchange) for exchange in exchanges]
    fast_decoded, decoded = decoded, 0
    monkeypatch.setattr(response, "_template", lambda *_: None)
    for seed, exchange in enumerate(exchanges):
        assert fast[seed] == response.parse_response(exchange), (
            f"seed {seed}: {bytes(exchange.body)!r}"
        )
    assert 0.1 * decoded < fast_decoded < 0.8 * decoded, "both paths must have been used often"


@pytest.mark.parametrize("shape", ["chat", "completion"])
def test_events_that_differ_only_in_their_text_are_decoded_once(
    monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    body = b"".join(
        b"data: %s\n\n" % json.dumps(body_of(random.Random(), shape, f" w{n}")).encode()
        for n in range(100)
    )
    exchange = http.Exchange(
        status=200,
        content_type="text/event-stream",
        body=bytearray(body),
        arrived=[1.0],
        lengths=[len(body)],
    )
    decoded, read_chunk = [], response.read_chunk
    monkeypatch.setattr(
        response, "read_chunk", lambda payload: decoded.append(payload) or read_chunk(payload)
    )
    assert response.parse_response(exchange).token_text == [f" w{n}" for n in range(100)]
    assert len(decoded) == 1
