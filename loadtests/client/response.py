"""Parses the body of a finished exchange (`http.py`): its events, each with the stamp of the read
that completed it.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from loadtests.client.http import Exchange
from servers.contract.api import SSE_CONTENT_TYPE, Chunk, read_chunk

EVENTS_AT_ONCE = 32  # events between two pauses; about 2 us each
RUN_BYTES = 4096  # how far to look for events that are alike
PLAIN = re.compile(rb"[ !#-\[\]-~]+")  # text without JSON escapes
TEXT = re.compile(rb'"(?:text|content)"\s*:\s*"?([^"]*)')


@dataclass(slots=True)
class ParsedResponse:
    """The content of a response. `token_s` and `token_text` are the arrival and the text of each
    chunk that carries tokens.
    """

    token_s: list[float] = field(default_factory=list)
    token_text: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    error: str | None = None


def parse_response(exchange: Exchange, pause: Callable[[], None] = lambda: None) -> ParsedResponse:
    """Parses a finished exchange, and calls `pause` every few events. A chunk without text (a role,
    an end) is not a token.
    """
    parsed = ParsedResponse(error=exchange.error)
    streamed = exchange.content_type.startswith(SSE_CONTENT_TYPE)
    if exchange.status is not None and exchange.status != 200 and parsed.error is None:
        parsed.error = f"http {exchange.status}"
        return parsed
    done = False
    if exchange.status == 200 and not streamed and exchange.error is None:
        _parse_event(bytes(exchange.body), len(exchange.arrived) - 1, exchange, parsed)
        done = parsed.error is None
    elif streamed:
        body, lengths = exchange.body, exchange.lengths
        # searching for two bytes is much faster than for four
        separator = b"\r\n\r\n" if b"\r" in body and b"\r\n\r\n" in body else b"\n\n"
        template: tuple[bytes, bytes] | None = None
        start = read = work = 0
        while (end := body.find(separator, start)) >= 0:
            if work >= EVENTS_AT_ONCE:
                work = 0
                pause()
            if template and (
                texts := _run_text(template, separator, bytes(body[start : start + RUN_BYTES]))
            ):
                work += 1 + len(texts) // 4  # each costs about a quarter of another event
                around = len(template[0]) + len(template[1]) + len(separator)
                ends = list(
                    itertools.accumulate([len(text) + around for text in texts], initial=start)
                )[1:]
                start = ends[-1]
                read = _parse_run(texts, ends, read, exchange, parsed)
                continue
            work += 1
            event = bytes(body[start:end])
            start = end + len(separator)
            while lengths[read] < start:  # the read that completed this event
                read += 1
            for line in event.splitlines():
                if line.startswith(b"data:"):
                    payload = line[5:].strip()
                    if payload == b"[DONE]":
                        done = True
                        continue
                    chunk = _parse_event(payload, read, exchange, parsed)
                    if chunk is None:
                        return parsed
                    template = _template(event, chunk) or template
    if parsed.error is None and not done:
        parsed.error = "stream ended without [DONE]"
    return parsed


def _run_text(template: tuple[bytes, bytes], separator: bytes, piece: bytes) -> list[str]:
    """Returns the texts of the events at the start of `piece` that match the template. Matching all
    at once costs a fraction of parsing each.
    """
    before, after = template
    parts = piece.split(after + separator)[:-1]
    texts = [part[len(before) :] for part in parts]
    # equals the start of `piece` if all match the template
    made = before + (after + separator + before).join(texts)
    if not (piece.startswith(made) and all(texts) and PLAIN.fullmatch(b"".join(texts))):
        alike = itertools.takewhile(
            lambda part: part.startswith(before) and PLAIN.fullmatch(part, len(before)), parts
        )
        texts = [part[len(before) :] for part in alike]
    return [text.decode() for text in texts]


def _parse_run(
    texts: list[str], ends: list[int], read: int, exchange: Exchange, parsed: ParsedResponse
) -> int:
    """Adds the tokens of events that end at `ends` in the body, none of them before the `read`-th
    read. Returns the read that completed the last one.
    """
    arrived, lengths = exchange.arrived, exchange.lengths
    while lengths[read] < ends[0]:
        read += 1
    parsed.token_text += texts
    if lengths[read : read + len(ends)] == ends:  # mostly each event has a read of its own
        parsed.token_s += arrived[read : read + len(ends)]
        return read + len(ends) - 1
    for end in ends:
        while lengths[read] < end:
            read += 1
        parsed.token_s.append(arrived[read])
    return read


def _parse_event(
    payload: bytes, read: int, exchange: Exchange, parsed: ParsedResponse
) -> Chunk | None:
    """Adds one chunk, which the `read`-th read completed. Returns None if it is an error."""
    try:
        chunk: Chunk = read_chunk(payload)
    except (ValueError, RecursionError):  # RecursionError: JSON that is nested too deep
        parsed.error = parsed.error or "an event that is not a chunk"
        return None
    if chunk.error is not None:
        parsed.error = f"server error in the stream: {_printable(chunk.error)}"
        return None
    if chunk.text:
        parsed.token_s.append(exchange.arrived[read])
        parsed.token_text.append(chunk.text)
    parsed.finish_reason = (
        _printable(chunk.finish_reason) if chunk.finish_reason else parsed.finish_reason
    )
    # Only what the schema can hold: a foreign server may send anything here.
    if isinstance(chunk.usage, dict):
        parsed.usage = {
            name: n for name, n in chunk.usage.items() if type(n) is int and abs(n) < 2**63
        }
    if isinstance(chunk.timings, dict):
        parsed.timings = {
            name: float(ms)
            for name, ms in chunk.timings.items()
            if type(ms) in (int, float) and abs(ms) < 2**63
        }
    return chunk


def _template(event: bytes, chunk: Chunk) -> tuple[bytes, bytes] | None:
    """Returns the bytes around the text of an event that carries nothing else, or None if that is
    not certain. The next event mostly differs only in its text, and is then parsed without decoding
    its JSON, which is most of the work.
    """
    text = chunk.text.encode(errors="replace")
    more = chunk.finish_reason or isinstance(chunk.usage, dict) or isinstance(chunk.timings, dict)
    if more or b"\n" in event or b"\r" in event or b"\\" in event or not PLAIN.fullmatch(text):
        return None
    # Without escapes, a match is a key and its value. A second key might be the one that counts.
    found = list(TEXT.finditer(event))
    return (
        (event[: found[0].start(1)], event[found[0].end(1) :])
        if len(found) == 1 and found[0][1] == text
        else None
    )


def _printable(value: object) -> str:
    """Without the lone surrogates that JSON allows and UTF-8 does not."""
    return str(value)[:80].encode(errors="replace").decode()
