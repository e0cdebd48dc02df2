"""What a finished exchange (`loadtests/client/http.py`) says: its events, each with the stamp of
the read that completed it.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from loadtests.client.http import Exchange
from servers.contract.api import SSE_CONTENT_TYPE, Chunk, read_chunk

EVENTS_AT_ONCE = 32  # events; some 2 us each
RUN_BYTES = 4096  # of those that are alike, looked at together
PLAIN = re.compile(rb"[ !#-\[\]-~]+")  # text that JSON writes as it is
TEXT = re.compile(rb'"(?:text|content)"\s*:\s*"?([^"]*)')


@dataclass(slots=True)
class ParsedResponse:
    """What an exchange says. `token_s`, `token_text`: arrival and text of each chunk that carries
    tokens.
    """

    token_s: list[float] = field(default_factory=list)
    token_text: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    error: str | None = None


def parse_response(exchange: Exchange, pause: Callable[[], None] = lambda: None) -> ParsedResponse:
    """Reads a finished exchange. A chunk without text (a role, an end) is not a token. `pause` is
    called every few events.
    """
    settled = ParsedResponse(error=exchange.error)
    streamed = exchange.content_type.startswith(SSE_CONTENT_TYPE)
    if exchange.status is not None and exchange.status != 200 and settled.error is None:
        settled.error = f"http {exchange.status}"
        return settled
    done = False
    if exchange.status == 200 and not streamed and exchange.error is None:
        _parse_event(bytes(exchange.body), len(exchange.arrived) - 1, exchange, settled)
        done = settled.error is None
    elif streamed:
        body, lengths = exchange.body, exchange.lengths
        # one byte is found much sooner than four
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
                work += 1 + len(texts) // 4  # they cost about a quarter of others
                around = len(template[0]) + len(template[1]) + len(separator)
                ends = list(
                    itertools.accumulate([len(text) + around for text in texts], initial=start)
                )[1:]
                start = ends[-1]
                read = _parse_run(texts, ends, read, exchange, settled)
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
                    chunk = _parse_event(payload, read, exchange, settled)
                    if chunk is None:
                        return settled
                    template = _template(event, chunk) or template
    if settled.error is None and not done:
        settled.error = "stream ended without [DONE]"
    return settled


def _run_text(template: tuple[bytes, bytes], separator: bytes, piece: bytes) -> list[str]:
    """The texts of the events at the beginning of `piece` that are like the template: all at once,
    which costs a fraction of looking at each.
    """
    before, after = template
    parts = piece.split(after + separator)[:-1]
    texts = [part[len(before) :] for part in parts]
    # `piece`, if all are like the template
    made = before + (after + separator + before).join(texts)
    if not (piece.startswith(made) and all(texts) and PLAIN.fullmatch(b"".join(texts))):
        alike = itertools.takewhile(
            lambda part: part.startswith(before) and PLAIN.fullmatch(part, len(before)), parts
        )
        texts = [part[len(before) :] for part in alike]
    return [text.decode() for text in texts]


def _parse_run(
    texts: list[str], ends: list[int], read: int, exchange: Exchange, settled: ParsedResponse
) -> int:
    """Events that end at these bytes of the body, none of them before the `read`-th read; returns
    the last one's read.
    """
    arrived, lengths = exchange.arrived, exchange.lengths
    while lengths[read] < ends[0]:
        read += 1
    settled.token_text += texts
    if lengths[read : read + len(ends)] == ends:  # as they mostly come, each by itself
        settled.token_s += arrived[read : read + len(ends)]
        return read + len(ends) - 1
    for end in ends:
        while lengths[read] < end:
            read += 1
        settled.token_s.append(arrived[read])
    return read


def _parse_event(
    payload: bytes, read: int, exchange: Exchange, settled: ParsedResponse
) -> Chunk | None:
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
    settled.finish_reason = (
        _printable(chunk.finish_reason) if chunk.finish_reason else settled.finish_reason
    )
    # Only what the schema can hold: somebody else's server may say anything here.
    if isinstance(chunk.usage, dict):
        settled.usage = {
            name: n for name, n in chunk.usage.items() if type(n) is int and abs(n) < 2**63
        }
    if isinstance(chunk.timings, dict):
        settled.timings = {
            name: float(ms)
            for name, ms in chunk.timings.items()
            if type(ms) in (int, float) and abs(ms) < 2**63
        }
    return chunk


def _template(event: bytes, chunk: Chunk) -> tuple[bytes, bytes] | None:
    """What stands before and after the text of an event that carries nothing else: the next event
    mostly differs in its text alone, and is then read without decoding its JSON, which is most of
    the work. Null if that would not be certain.
    """
    text = chunk.text.encode(errors="replace")
    more = chunk.finish_reason or isinstance(chunk.usage, dict) or isinstance(chunk.timings, dict)
    if more or b"\n" in event or b"\r" in event or b"\\" in event or not PLAIN.fullmatch(text):
        return None
    # without escapes, a match is a key and its value; a second key might be the one that counts
    found = list(TEXT.finditer(event))
    return (
        (event[: found[0].start(1)], event[found[0].end(1) :])
        if len(found) == 1 and found[0][1] == text
        else None
    )


def _printable(said: object) -> str:
    """Without the lone surrogates that JSON allows and UTF-8 does not."""
    return str(said)[:80].encode(errors="replace").decode()
