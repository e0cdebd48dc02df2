"""The API's responses without a server, and that our own client side reads them."""

import json
import pickle
from dataclasses import replace
from typing import Any

import pytest

from servers.contract import api
from servers.contract.api import CompletionResponse, ContractError, Piece, Request
from servers.contract.chunks import read_chunk
from tests.helpers.api_requests import OUTCOME, chat, completion, parse


def events(request: Request, *items: Any) -> list[str]:
    """Return the payloads of the stream, after checking their framing."""
    response = CompletionResponse(request, "m")
    text = "".join(response.event(item) for item in items)
    assert text.endswith("\n\n")
    framed = text.removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") and "\n" not in event for event in framed)
    return [event.removeprefix("data: ") for event in framed]


@pytest.mark.parametrize("make", [completion, chat])
def test_a_stream_reads_back_as_it_was_written(make: Any) -> None:
    texts = [" baba", ' "quoted"\n\\ ', " \u2028é\U0001f600", "data: [DONE]\n\n", ""]
    *chunks, end, usage, done = events(
        parse(make(stream=True, stream_options={"include_usage": True})), *texts, OUTCOME
    )
    assert [read_chunk(chunk.encode()).text for chunk in chunks] == texts
    assert all(read_chunk(chunk.encode()).finish_reason is None for chunk in chunks)
    last = read_chunk(end.encode())
    assert (last.text, last.finish_reason, last.usage) == ("", "length", None)
    assert last.timings == {"queue_ms": 1.235, "prompt_ms": 20, "predicted_ms": 10}
    tail = read_chunk(usage.encode())
    assert tail.usage == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert json.loads(usage)["choices"] == [] and tail.text == "" and done == "[DONE]"


def test_usage_is_sent_only_on_request() -> None:
    for options in (None, {}, {"include_usage": False}):
        *_, end, done = events(
            parse(completion(stream=True, stream_options=options)), " baba", OUTCOME
        )
        assert (
            done == "[DONE]"
            and json.loads(end)["choices"]
            and read_chunk(end.encode()).usage is None
        )


@pytest.mark.parametrize("make", [completion, chat])
def test_continuous_usage_is_in_each_chunk(make: Any) -> None:
    asked = {"include_usage": True, "continuous_usage_stats": True}
    request = parse(make(stream=True, stream_options=asked))
    assert request.continuous_usage
    pieces = [Piece(" baba", False, api.count_usage(3, n)) for n in (1, 2)]
    *chunks, done = events(request, *pieces, OUTCOME)
    usages = [json.loads(chunk)["usage"]["completion_tokens"] for chunk in chunks]
    assert usages == [1, 2, 2, 2] and done == "[DONE]"
    for options in (
        {"continuous_usage_stats": True},
        {"include_usage": True},
        {"include_usage": True, "continuous_usage_stats": None},
        {"include_usage": True, "continuous_usage_stats": False},
    ):
        assert not parse(make(stream=True, stream_options=options)).continuous_usage


def test_reasoning_has_its_own_field_streamed_and_plain() -> None:
    first, *_ = events(parse(chat(stream=True)), Piece(" baba", True), " babe", OUTCOME)
    delta = json.loads(first)["choices"][0]["delta"]
    assert delta == {"role": "assistant", "reasoning_content": " baba"}
    outcome = replace(OUTCOME, reasoning=" baba", reasoning_tokens=1)
    body = CompletionResponse(parse(chat()), "m").complete(" baba babe", outcome)
    message = body["choices"][0]["message"]
    assert message == {"role": "assistant", "content": " babe", "reasoning_content": " baba"}
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 1}


def test_a_piece_of_text_survives_a_queue_between_processes() -> None:
    piece = pickle.loads(pickle.dumps(Piece(" baba", True, {"completion_tokens": 1})))
    assert (piece, piece.reasoning, piece.usage) == (" baba", True, {"completion_tokens": 1})


def test_the_role_comes_with_the_first_token_and_no_other() -> None:
    """A load tool would count a chunk with only a role as the first token."""
    first, *more = [
        json.loads(chunk)
        for chunk in events(parse(chat(stream=True)), " baba", " babe", OUTCOME)[:-1]
    ]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": " baba"}
    assert [chunk["choices"][0]["delta"] for chunk in more] == [{"content": " babe"}, {}]


def test_all_chunks_of_a_response_share_an_id_and_two_responses_have_two() -> None:
    one, two = (
        [
            json.loads(chunk)
            for chunk in events(parse(make(stream=True)), " baba", " babe", OUTCOME)[:-1]
        ]
        for make in (completion, chat)
    )
    assert (
        len({chunk["id"] for chunk in one}) == len({chunk["id"] for chunk in two}) == 1
        and one[0]["id"] != two[0]["id"]
    )
    assert {chunk["object"] for chunk in one} == {"text_completion"} and {
        chunk["object"] for chunk in two
    } == {"chat.completion.chunk"}
    assert {chunk["model"] for chunk in one + two} == {"m"}


def test_an_engines_failure_is_an_error_event_without_its_secrets() -> None:
    *_, error = events(
        parse(completion(stream=True)), " baba", RuntimeError("/home/me/weights is broken")
    )
    assert read_chunk(error.encode()).error == "the engine failed" and "weights" not in error
    (error,) = events(parse(completion(stream=True)), ContractError(503, "shutting down"))
    assert read_chunk(error.encode()).error == "shutting down"


def test_a_websockets_messages_are_the_events_payloads() -> None:
    response = CompletionResponse(parse(chat(stream=True)), "m")
    payloads = [
        payload
        for item in (" baba", ' "quoted"\n\n ', OUTCOME)
        for payload in api.split_events(response.event(item))
    ]
    assert [read_chunk(payload.encode()).text for payload in payloads[:-1]] == [
        " baba",
        ' "quoted"\n\n ',
        "",
    ]
    assert [api.status_of_end(payload) for payload in payloads] == [None, None, None, 200]
    assert payloads[-1] == "[DONE]"


def test_an_error_ends_a_websockets_response_and_has_its_status() -> None:
    refused = api.error_message(ContractError(404, "no such model", "model", "model_not_found"))
    assert (
        json.loads(refused)["error"]["code"] == "model_not_found"
        and api.status_of_end(refused) == 404
    )
    failed = api.error_message(RuntimeError("/home/me/weights is broken"))
    assert "weights" not in failed and api.status_of_end(failed) == 500
    for payload, status in (
        ('{"error": {"message": "busy"}}', 500),
        ('{"error": "busy", "status": "x"}', 500),
        ('{"error": null}', None),
        ('{"error": ', None),
        ('["error"]', None),
        ('{"choices": [{"text": "error"}]}', None),
    ):
        assert api.status_of_end(payload) == status, payload


@pytest.mark.parametrize("make", [completion, chat])
def test_a_plain_response_reads_back(make: Any) -> None:
    body = CompletionResponse(parse(make()), "m").complete(" baba babe", OUTCOME)
    chunk = read_chunk(json.dumps(body).encode())
    assert (chunk.text, chunk.finish_reason, chunk.error) == (" baba babe", "length", None)
    assert chunk.usage == OUTCOME.usage() and chunk.timings == OUTCOME.timings()
    assert body["object"] == ("chat.completion" if make is chat else "text_completion")


def test_chunks_of_other_servers_are_read() -> None:
    assert read_chunk(b'{"choices": [{"delta": {"role": "assistant", "content": ""}}]}').text == ""
    assert (
        read_chunk(
            b'{"choices": [{"delta": {"content": null}, "finish_reason": "stop"}], "usage": null}'
        ).finish_reason
        == "stop"
    )
    assert read_chunk(b'{"error": "overloaded"}').error == "overloaded"
    assert read_chunk(b'{"error": {"message": "overloaded"}}').error == "overloaded"
    for broken in (
        b"[1]",
        b"{",
        b'{"choices": 5}',
        b'{"choices": [5]}',
        b'{"choices": [{"text": 5}]}',
        b'{"choices": [{"delta": "a"}]}',
    ):
        with pytest.raises(ValueError):
            read_chunk(broken)
