"""Chunks of other servers: reasoning, parts, errors in any form."""

import json

import pytest

from servers.contract import chunks
from servers.contract.chunks import read_chunk


def delta(**fields):
    return json.dumps({"choices": [{"delta": fields, "finish_reason": None}]}).encode()


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_is_not_visible(field):
    chunk = read_chunk(delta(**{field: "hm", "content": ""}))
    assert (chunk.text, chunk.reasoning, chunk.reasoning_field) == ("", "hm", field)


def test_reasoning_under_two_names_counts_once():
    assert read_chunk(delta(reasoning="hm", reasoning_content="hm")).reasoning == "hm"
    details = [{"type": "reasoning.text", "text": "hm"}]
    assert read_chunk(delta(reasoning="hm", reasoning_details=details)).reasoning == "hm"
    assert read_chunk(delta(reasoning_details=details)).reasoning == "hm"


def test_content_in_parts():
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "hello"},
    ]
    chunk = read_chunk(delta(content=parts))
    assert (chunk.text, chunk.reasoning) == ("hello", "hm")


def test_a_tool_call_is_generated_text():
    call = {"index": 0, "function": {"name": "f", "arguments": '{"x": 1}'}}
    assert read_chunk(delta(tool_calls=[call])).text == 'f{"x": 1}'
    assert read_chunk(delta(function_call=call["function"])).text == 'f{"x": 1}'


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "busy", "code": 7}}, "7: busy"),
        ({"error": "busy"}, "busy"),
        ({"text": "exceeds context", "error_code": 50001}, "50001: exceeds context"),
        ({"base_resp": {"status_code": 1004, "status_msg": "no"}}, "1004: no"),
        ({"object": "error", "message": "too long", "code": 40303}, "40303: too long"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"detail": [{"msg": "bad"}]}, '[{"msg": "bad"}]'),
        ({"code": 1214, "msg": "wrong"}, "1214: wrong"),
        ({"choices": [{"text": "", "finish_reason": "error"}]}, "finish_reason is 'error'"),
        (
            {"choices": [{"delta": {}, "finish_reason": "error", "error": {"message": "gone"}}]},
            "gone",
        ),
    ],
)
def test_errors_in_any_form(body, words):
    assert read_chunk(json.dumps(body).encode()).error == words


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"text": "x"}], "error": None},
        {"choices": [{"text": "x"}], "error_code": 0},
        {"choices": [], "base_resp": {"status_code": 0, "status_msg": ""}},
        {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]},
        {"id": "x", "object": "chat.completion.chunk", "choices": []},
        {"choices": [], "usage": {"completion_tokens": 3}, "message": ""},
    ],
)
def test_bodies_that_are_not_errors(body):
    assert read_chunk(json.dumps(body).encode()).error is None


def test_a_servers_own_message_is_short_and_without_secrets():
    body = {"error": {"message": "Incorrect API key provided: sk-abcdef123456.\n See " + "x" * 300}}
    words = chunks.describe_body(json.dumps(body).encode())
    assert words.startswith("Incorrect API key provided: ***") and len(words) == 200
    assert "abcdef" not in words
    page = b"<html><style>p {}</style><body><h1>502 Bad Gateway</h1></body></html>"
    assert chunks.describe_body(page) == "502 Bad Gateway"


def test_a_servers_own_message_does_not_control_the_terminal():
    words = chunks.describe_body(b'{"error": "\\u001b[31mred\\u0007 \\u202egnp.exe \\u00e9\\n2"}')
    assert words == "[31mred gnp.exe é 2"
