"""Events as the standard defines them, and as real servers send them."""

import itertools
import json

import pytest

from servers.contract import sse

ONE, TWO = b'{"a": 1}', b'{"b": [2]}'


def payloads(body: bytes) -> list[bytes]:
    return [payload.data for payload in sse.iterate_payloads(body)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("field", [b"data: ", b"data:"])
def test_any_line_end_with_and_without_a_space(end, field):
    body = end.join([field + ONE, b"", field + TWO, b"", field + b"[DONE]", b"", b""])
    assert payloads(body) == [ONE, TWO, b"[DONE]"]


def test_mixed_line_ends():
    for ends in itertools.product([b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n"], repeat=2):
        body = b"data: " + ONE + ends[0] + b"data: " + TWO + ends[1]
        assert payloads(body) == [ONE, TWO], ends


def test_other_fields_and_comments_anywhere():
    body = b": ping\n\nevent: message\nid: 7\n: between\ndata: " + ONE + b"\nretry: 5\n: ping\n\n"
    assert payloads(body) == [ONE]


def test_several_lines_of_data_are_one_payload():
    first, second = json.dumps({"a": [1, 2]}, indent=0).split("\n", 1)
    body = "".join(f"data: {line}\n" for line in (first, *second.split("\n")))
    assert [json.loads(payload) for payload in payloads(body.encode() + b"\n")] == [{"a": [1, 2]}]


def test_events_separated_by_a_single_line_end():
    body = b"data: " + ONE + b"\ndata: " + TWO + b"\ndata: [DONE]\n"
    assert payloads(body) == [ONE, TWO, b"[DONE]"]
    ends = [payload.end for payload in sse.iterate_payloads(body)]
    assert ends == [body.index(b"data: " + TWO), body.index(b"data: [DONE]"), len(body)]


def test_the_last_event_needs_no_empty_line():
    assert payloads(b"data: " + ONE + b"\n\ndata: [DONE]") == [ONE, b"[DONE]"]


def test_a_payload_ends_where_its_empty_line_does():
    body = b"data: " + ONE + b"\r\n\r\ndata: " + TWO + b"\r\n\r\n"
    ends = [payload.end for payload in sse.iterate_payloads(body)]
    assert ends == [body.index(b"data: " + TWO), len(body)]


@pytest.mark.parametrize(
    "event",
    [b'error: {"code": 400}\n\n', b'event: error\ndata: {"code": 400}\n\n', b'{"code": 400}\n\n'],
)
def test_errors_in_any_form(event):
    (found,) = sse.iterate_payloads(event)
    assert found.is_error and json.loads(found.data) == {"code": 400}


def test_what_looks_like_events():
    assert sse.looks_like_sse(b"data: x") and sse.looks_like_sse(b": ping\n\ndata: x")
    assert sse.looks_like_sse(b"\xef\xbb\xbfdata:{}") and sse.looks_like_sse(b"event: x")
    assert not sse.looks_like_sse(b'{"data": 1}') and not sse.looks_like_sse(b"<html>")
    assert payloads(b"\xef\xbb\xbfdata: " + ONE + b"\n\n") == [ONE]
