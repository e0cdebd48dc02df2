"""Parses server-sent events as the standard defines them (html.spec.whatwg.org, section 9.2), and
as some servers send them: errors without "data:", a last event without its empty line, events
separated by a single line end.
"""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import NamedTuple

SSE_CONTENT_TYPE = "text/event-stream"
DONE = b"[DONE]"
_LINE = re.compile(rb"([^\r\n]*)(\r\n|\n|\r|$)")
# an event's end: its last line's end and an empty line's
_EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_LOOKS_LIKE_SSE = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:data|event|id|retry|error)?:")


class Payload(NamedTuple):
    """The data of one event, complete at byte `end` of the body. `is_error`: the name of the event
    or of its field is "error".
    """

    data: bytes
    end: int
    is_error: bool = False


def looks_like_sse(body: bytes) -> bool:
    """Return whether a body is a stream of events, whatever its content type."""
    return _LOOKS_LIKE_SSE.match(body, 0, 64) is not None


def find_first_event(body: bytes | bytearray) -> int:
    """Return where the first event starts: after a byte order mark, if there is one."""
    return len(BOM_UTF8) if body.startswith(BOM_UTF8) else 0


def find_separator(body: bytes | bytearray) -> bytes | None:
    """Return the bytes that end every event; None if line ends are mixed."""
    if b"\r" not in body:
        return b"\n\n"
    pairs = body.count(b"\r\n")
    return b"\r\n\r\n" if pairs == body.count(b"\r") == body.count(b"\n") else None


def find_event_end(body: bytes | bytearray, start: int, separator: bytes | None) -> int:
    """Return the end of the event that starts at `start`, after its empty line; -1 if it is
    incomplete.
    """
    if separator is not None:
        end = body.find(separator, start)
        return end if end < 0 else end + len(separator)
    found = _EVENT_END.search(body, start)
    return found.end() if found else -1


def read_event(event: bytes, start: int = 0) -> Iterator[Payload]:
    """Yield the payloads of one event that starts at byte `start` of its body: usually one.

    The standard joins several lines of data. If the joined lines are not JSON, each line is a
    payload of its own: some servers separate events by a single line end.
    """
    lines: list[Payload] = []
    is_error = False
    for line in _LINE.finditer(event):
        name, colon, value = line[1].partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if name == b"data":
            lines.append(Payload(value, start + line.end()))
        elif name == b"event":
            is_error = value.strip() == b"error"
        elif (name == b"error" and colon) or line[1].lstrip().startswith(b"{"):
            # `error: {...}` of llama.cpp, and JSON without any field
            lines.append(Payload(value if name == b"error" else line[1], start + line.end(), True))
    if len(lines) > 1 and not any(payload.is_error for payload in lines):
        joined = b"\n".join(payload.data for payload in lines)
        if _is_json(joined):
            lines = [Payload(joined, lines[-1].end)]
    if len(lines) == 1:  # complete once its empty line has arrived
        lines = [lines[0]._replace(end=start + len(event))]
    for payload in lines:
        if payload.data.strip():
            yield payload._replace(data=payload.data.strip(), is_error=is_error or payload.is_error)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def iterate_payloads(body: bytes) -> Iterator[Payload]:
    """Yield all payloads of a body. The last event needs no empty line."""
    separator, start = find_separator(body), find_first_event(body)
    while start < len(body):
        end = find_event_end(body, start, separator)
        end = len(body) if end < 0 else end
        yield from read_event(body[start:end], start)
        start = end
