"""Parses the body of a finished exchange (`http.py`) into chunks, each with the stamp of the read
that completed it, and checks whether the response is whole.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from loadtests.client.http import Exchange
from servers.contract import chunks, sse
from servers.contract.chunks import Chunk, read_chunk
from servers.contract.sse import SSE_CONTENT_TYPE
from servers.contract.token_counts import read_count, read_reasoning_count

EVENTS_AT_ONCE = 32  # events between two pauses; about 2 us each
RUN_BYTES = 4096  # bytes to search for a run of similar events
PLAIN = re.compile(rb"[ !#-\[\]-~]+")  # text without JSON escapes
TEXT = re.compile(rb'"(?:text|content|reasoning|reasoning_content)"\s*:\s*"([^"]*)')
EMPTY = "no token"
INCOMPLETE = "stream ended without finish_reason or [DONE]"


class Template(NamedTuple):
    """The bytes around the text of an event, and whether that text is reasoning."""

    before: bytes
    after: bytes
    is_reasoning: bool


@dataclass(slots=True)
class ParsedResponse:
    """The content of a response.

    `token_s` and `token_text` are the arrival and the text of each chunk that carries tokens;
    `running_tokens` is usage's count up to that chunk, where it had one; `reasoning_chunks` are the
    positions of chunks that carry only reasoning. `error` is a few words, so equal causes can be
    counted; `error_detail` is the server's own text.
    """

    token_s: list[float] = field(default_factory=list)
    token_text: list[str] = field(default_factory=list)
    running_tokens: list[int | None] = field(default_factory=list)
    reasoning_chunks: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    tokens: int | None = None
    reasoning_tokens: int | None = None
    timings: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    error_detail: str | None = None

    def fail(self, error: str, detail: str | None = None) -> None:
        """Records the first error, which is the cause; later ones are ignored."""
        if self.error is None:
            self.error, self.error_detail = error, detail or None

    @property
    def first_visible_s(self) -> float | None:
        """Arrival of the first chunk whose text is not reasoning."""
        hidden = set(self.reasoning_chunks)
        return next((at for i, at in enumerate(self.token_s) if i not in hidden), None)


class Cursor:
    """Finds the read that completed a byte of the body. Positions must not decrease."""

    def __init__(self, exchange: Exchange):
        self.arrived, self.lengths, self.read = exchange.arrived, exchange.lengths, 0

    def stamp(self, end: int) -> float:
        while self.lengths[self.read] < end:
            self.read += 1
        return self.arrived[self.read]

    def stamp_run(self, ends: list[int]) -> list[float]:
        """Returns the stamps of events that end at `ends`."""
        self.stamp(ends[0])
        read, count = self.read, len(ends)
        if self.lengths[read : read + count] == ends:  # the usual case: one event per read
            self.read = read + count - 1
            return self.arrived[read : read + count]
        return [self.stamp(end) for end in ends]


def parse_response(exchange: Exchange, pause: Callable[[], None] = lambda: None) -> ParsedResponse:
    """Parses a finished exchange; calls `pause` every few events. A chunk without text (a role, a
    finish reason) is not a token.
    """
    parsed = ParsedResponse(error=exchange.error)
    status, body = exchange.status, exchange.body
    if status is not None and not 200 <= status < 300:
        words = chunks.describe_body(bytes(body)).removeprefix(f"{status}: ")
        if exchange.location:
            words = f"{words} (Location: {chunks.shorten(exchange.location)})".strip()
        parsed.fail(f"http {status}", words)
        return parsed
    done = False
    if exchange.content_type.startswith(SSE_CONTENT_TYPE) or sse.looks_like_sse(bytes(body[:64])):
        done = _parse_stream(exchange, parsed, pause)
    elif body and exchange.error is None:
        _parse_payload(bytes(body), len(body), Cursor(exchange), parsed)
        done = True
    is_whole = done or parsed.finish_reason is not None
    if not parsed.token_s:
        parsed.fail(EMPTY, _describe_end(parsed) if is_whole else f"the {INCOMPLETE}")
    elif not is_whole:
        parsed.fail(INCOMPLETE)
    return parsed


def _parse_stream(exchange: Exchange, parsed: ParsedResponse, pause: Callable[[], None]) -> bool:
    """Returns whether the stream ended with [DONE] or an error."""
    body, cursor = exchange.body, Cursor(exchange)
    separator = sse.find_separator(body)
    template: Template | None = None
    done, start, work = False, sse.find_first_event(body), 0
    while start < len(body):
        if work >= EVENTS_AT_ONCE:
            work = 0
            pause()
        if (
            template
            and separator
            and (texts := _run_text(template, separator, bytes(body[start : start + RUN_BYTES])))
        ):
            work += 1 + len(texts) // 4  # a matched event costs about a quarter of a parsed one
            around = len(template.before) + len(template.after) + len(separator)
            lengths = [len(text) + around for text in texts]
            ends = list(itertools.accumulate(lengths, initial=start))[1:]
            start = ends[-1]
            if template.is_reasoning:
                first = len(parsed.token_text)
                parsed.reasoning_chunks += range(first, first + len(texts))
            parsed.token_text += texts
            parsed.token_s += cursor.stamp_run(ends)
            continue
        work += 1
        end = sse.find_event_end(body, start, separator)
        end = len(body) if end < 0 else end
        event = bytes(body[start:end])
        for payload in sse.read_event(event, start):
            if payload.data == sse.DONE:
                done = True
                continue
            chunk = _parse_payload(payload.data, payload.end, cursor, parsed, payload.is_error)
            if chunk is None:
                return True
            template = _template(event, chunk, separator) or template
        start = end
    return done


def _describe_end(parsed: ParsedResponse) -> str:
    usage = "no usage" if parsed.tokens is None else f"usage reports {parsed.tokens} tokens"
    return f"finish_reason is {parsed.finish_reason!r}, {usage}" if parsed.finish_reason else usage


def _run_text(template: Template, separator: bytes, piece: bytes) -> list[str]:
    """Returns the texts of the events at the start of `piece` that match the template. Matching
    them together costs a fraction of parsing each.
    """
    before, after, _ = template
    parts = piece.split(after + separator)[:-1]
    texts = [part[len(before) :] for part in parts]
    # the start of `piece`, if all match the template
    made = before + (after + separator + before).join(texts)
    if not (piece.startswith(made) and all(texts) and PLAIN.fullmatch(b"".join(texts))):
        alike = itertools.takewhile(
            lambda part: part.startswith(before) and PLAIN.fullmatch(part, len(before)), parts
        )
        texts = [part[len(before) :] for part in alike]
    return [text.decode() for text in texts]


def _parse_payload(
    payload: bytes, end: int, cursor: Cursor, parsed: ParsedResponse, is_error: bool = False
) -> Chunk | None:
    """Adds a payload that ends at byte `end` of the body. Returns None if it is an error."""
    try:
        chunk: Chunk = read_chunk(payload)
    except (ValueError, RecursionError):  # RecursionError: JSON that is nested too deeply
        words = chunks.describe_body(payload)
        parsed.fail("server error in the stream" if is_error else "not a completion", words)
        return None
    if chunk.error is not None or (is_error and not chunk.text):
        words = chunk.error if chunk.error is not None else chunks.describe_body(payload)
        parsed.fail("server error in the response", chunks.shorten(words))
        return None
    running = None
    if chunk.usage is not None:
        running = read_count(chunk.usage, "completion_tokens")
        parsed.tokens = running if running is not None else parsed.tokens
        prompt = read_count(chunk.usage, "prompt_tokens")
        parsed.prompt_tokens = prompt if prompt is not None else parsed.prompt_tokens
        reasoning = read_reasoning_count(chunk.usage)
        parsed.reasoning_tokens = reasoning if reasoning is not None else parsed.reasoning_tokens
    if chunk.text or chunk.reasoning:
        if chunk.reasoning and not chunk.text:
            parsed.reasoning_chunks.append(len(parsed.token_text))
        if running is not None:
            missing = len(parsed.token_text) - len(parsed.running_tokens)
            parsed.running_tokens += [*[None] * missing, running]
        parsed.token_s.append(cursor.stamp(end))
        parsed.token_text.append(chunk.reasoning + chunk.text)
    if chunk.finish_reason:
        parsed.finish_reason = chunks.shorten(str(chunk.finish_reason))
    # Keep only values that the schema can hold: a server may send anything here.
    if isinstance(chunk.timings, dict):
        parsed.timings = {
            name: float(ms)
            for name, ms in chunk.timings.items()
            if type(ms) in (int, float) and abs(ms) < 2**63
        }
    return chunk


def _template(event: bytes, chunk: Chunk, separator: bytes | None) -> Template | None:
    """Returns the template of an event that carries nothing but text, or None if that is not
    certain. The next event usually differs only in its text; the template saves decoding its JSON,
    which is most of the work.
    """
    event = event.removesuffix(separator) if separator else event
    text = (chunk.text or chunk.reasoning).encode(errors="replace")
    more = chunk.finish_reason or isinstance(chunk.usage, dict) or isinstance(chunk.timings, dict)
    if more or (chunk.text and chunk.reasoning):
        return None
    if b"\n" in event or b"\r" in event or b"\\" in event or not PLAIN.fullmatch(text):
        return None
    # Without escapes, a match is a key and its value. With a second key that has text, it is
    # uncertain which one counts.
    found = [match for match in TEXT.finditer(event) if match[1]]
    return (
        Template(event[: found[0].start(1)], event[found[0].end(1) :], not chunk.text)
        if len(found) == 1 and found[0][1] == text and event.startswith(b"data:")
        else None
    )
