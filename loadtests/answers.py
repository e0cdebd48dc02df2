"""What a finished exchange (`loadtests/sse.py`) says: its events, each with the stamp of the read that completed it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from loadtests.sse import Exchange
from servers.contract import SSE_CONTENT_TYPE, Chunk, read_chunk

SETTLED_AT_ONCE = 32  # events; some 2 us each
PLAIN = re.compile(rb"[ !#-\[\]-~]+")  # text that JSON writes as it is
TEXT = re.compile(rb'"(?:text|content)"\s*:\s*"?([^"]*)')


@dataclass(slots=True)
class Settled:
    """What an exchange says. `token_s`, `token_text`: arrival and text of each chunk that carries tokens."""

    token_s: list[float] = field(default_factory=list)
    token_text: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    error: str | None = None


def settle(exchange: Exchange, pause: Callable[[], None] = lambda: None) -> Settled:
    """Reads a finished exchange. A chunk without text (a role, an end) is not a token. `pause` is called every few events."""
    settled = Settled(error=exchange.error)
    streamed = exchange.content_type.startswith(SSE_CONTENT_TYPE)
    if exchange.status is not None and exchange.status != 200 and settled.error is None:
        settled.error = f"http {exchange.status}"
        return settled
    done = False
    if exchange.status == 200 and not streamed and exchange.error is None:
        _take(bytes(exchange.body), len(exchange.arrived) - 1, exchange, settled)
        done = settled.error is None
    elif streamed:
        body, lengths = exchange.body, exchange.lengths
        separator = b"\r\n\r\n" if b"\r\n\r\n" in body else b"\n\n"
        template: tuple[bytes, bytes] | None = None
        start = number = read = 0
        while (end := body.find(separator, start)) >= 0:
            number += 1
            if number % SETTLED_AT_ONCE == 0:
                pause()
            event = bytes(body[start:end])
            start = end + len(separator)
            while lengths[read] < start:  # the read that completed this event
                read += 1
            if template and (text := _text_by(template, event)):
                settled.token_s.append(exchange.arrived[read])
                settled.token_text.append(text)
                continue
            for line in event.splitlines():
                if line.startswith(b"data:"):
                    payload = line[5:].strip()
                    if payload == b"[DONE]":
                        done = True
                        continue
                    chunk = _take(payload, read, exchange, settled)
                    if chunk is None:
                        return settled
                    template = _template(event, chunk)
    if settled.error is None and not done:
        settled.error = "stream ended without [DONE]"
    return settled


def _take(payload: bytes, read: int, exchange: Exchange, settled: Settled) -> Chunk | None:
    """One chunk that was complete with the `read`-th read; null if it is an error."""
    try:
        chunk: Chunk = read_chunk(payload)
    except (ValueError, RecursionError):  # the latter: JSON that is nested too deep
        settled.error = settled.error or "an event that is not a chunk"
        return None
    if chunk.error is not None:
        settled.error = f"server error in the stream: {_printable(chunk.error)}"
        return None
    if chunk.text:
        settled.token_s.append(exchange.arrived[read])
        settled.token_text.append(chunk.text)
    settled.finish_reason = _printable(chunk.finish_reason) if chunk.finish_reason else settled.finish_reason
    # Only what the schema can hold: somebody else's server may say anything here.
    if isinstance(chunk.usage, dict):
        settled.usage = {name: n for name, n in chunk.usage.items() if type(n) is int and abs(n) < 2**63}
    if isinstance(chunk.timings, dict):
        settled.timings = {name: float(ms) for name, ms in chunk.timings.items() if type(ms) in (int, float) and abs(ms) < 2**63}
    return chunk


def _template(event: bytes, chunk: Chunk) -> tuple[bytes, bytes] | None:
    """What stands before and after the text of an event that carries nothing else: the next event mostly differs in its text
    alone, and is then read without decoding its JSON, which is most of the work. Null if that would not be certain."""
    text = chunk.text.encode(errors="replace")
    if (chunk.finish_reason or chunk.usage or chunk.timings or b"\n" in event or b"\r" in event or b"\\" in event
            or not PLAIN.fullmatch(text)):  # fmt: skip
        return None
    found = list(TEXT.finditer(event))  # without escapes, a match is a key and its value; a second key might be the one that counts
    return (event[: found[0].start(1)], event[found[0].end(1) :]) if len(found) == 1 and found[0][1] == text else None


def _text_by(template: tuple[bytes, bytes], event: bytes) -> str:
    """The text of an event that is like the template; empty if it is not."""
    before, after = template
    if not (event.startswith(before) and event.endswith(after) and len(event) > len(before) + len(after)):
        return ""
    text = event[len(before) : len(event) - len(after)]
    return text.decode() if PLAIN.fullmatch(text) else ""


def _printable(said: object) -> str:
    """Without the lone surrogates that JSON allows and UTF-8 does not."""
    return str(said)[:80].encode(errors="replace").decode()
