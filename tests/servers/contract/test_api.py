"""THE API, without a server: what a request may be, how an answer looks, and that our own client
side reads it.
"""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from servers.contract import api
from servers.contract.api import (
    ChatCompletionRequest,
    CompletionRequest,
    CompletionResponse,
    ContractError,
    Outcome,
    Request,
)
from servers.contract.chunks import read_chunk

OUTCOME = Outcome(
    prompt_tokens=3,
    completion_tokens=2,
    finish_reason="length",
    queue_ms=1.23456,
    prompt_ms=20,
    predicted_ms=10,
)


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": "baba", **fields}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "baba"}], **fields}


def parse(data: dict[str, Any]) -> Request:
    kind = ChatCompletionRequest if "messages" in data else CompletionRequest
    return api.parse_request(kind, json.dumps(data).encode())


def refused(data: Any, body: bytes | None = None) -> dict[str, Any]:
    """The error of a request that must be refused, the same by both ways in: as bytes (Flask) and
    as parsed JSON (FastAPI).
    """
    kind = ChatCompletionRequest if "messages" in data else CompletionRequest
    with pytest.raises(ContractError) as by_bytes:
        api.parse_request(kind, json.dumps(data).encode() if body is None else body)
    error = by_bytes.value
    if body is None:
        with pytest.raises(ValidationError) as by_object:
            kind.model_validate(data)
        # FastAPI says where it looked
        framework = [{**e, "loc": ("body", *e["loc"])} for e in by_object.value.errors()]
        assert api.invalid_request(framework).param == error.param
    assert error.status == 400
    json.dumps(error.body()).encode()
    return dict(error.body()["error"])


# --- requests


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", 5),
        ("prompt", ""),
        ("prompt", None),
        ("prompt", ["baba"]),
        ("prompt", [1, 2]),
        ("model", 5),
        ("model", None),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", "5"),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("seed", 2**63),
        ("seed", "x"),
        ("stop", 5),
        ("stop", [5]),
        ("stop", ["a"] * 5),
        ("stream", "yes"),
        ("stream", 1),
        ("ignore_eos", "no"),
        ("stream_options", True),
        ("stream_options", {"include_usage": "yes"}),
        ("messages", None),
        ("messages", []),
        ("messages", "baba"),
        ("messages", ["baba"]),
        ("messages", [{}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": 5}]),
        ("messages", [{"role": "user", "content": None}]),
        ("messages", [{"role": "poet", "content": "baba"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}]),
        ("max_completion_tokens", 0),
    ],
    ids=repr,
)
def test_a_bad_field_is_a_400_that_names_it(field: str, value: Any) -> None:
    make = chat if field in ("messages", "max_completion_tokens") else completion
    error = refused(make(**{field: value}))
    assert (
        error["param"] == field
        and field in error["message"]
        and error["type"] == "invalid_request_error"
    )


@pytest.mark.parametrize("field", ["model", "prompt", "messages"])
def test_a_missing_field_is_named(field: str) -> None:
    data = chat() if field == "messages" else completion()
    kind = ChatCompletionRequest if field == "messages" else CompletionRequest
    del data[field]
    with pytest.raises(ContractError) as error:
        api.parse_request(kind, json.dumps(data).encode())
    assert (
        error.value.status == 400 and error.value.param == field and error.value.code == "missing"
    )


def test_too_many_stops_is_what_the_message_says() -> None:
    assert refused(completion(stop=["a"] * 5))["message"].startswith(
        "stop: List should have at most 4"
    )
    assert refused(completion(stop=["a", 5]))["message"].startswith("stop.1: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("best_of", 3),
        ("echo", True),
        ("logprobs", 5),
        ("logprobs", True),
        ("suffix", "end"),
        ("tools", [{"type": "function"}]),
        ("logit_bias", {"5": 1}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -1),
        ("repetition_penalty", 1.1),
    ],
)
def test_what_would_change_the_answer_and_is_not_supported_is_refused(
    field: str, value: Any
) -> None:
    for make in (completion, chat):
        error = refused(make(**{field: value}))
        assert (
            error["param"] == field
            and error["message"].startswith(field)
            and error["code"] == "unsupported_value"
        )


def test_unsupported_fields_that_are_off_and_unknown_ones_are_accepted() -> None:
    off = {
        "n": 1,
        "best_of": 1,
        "echo": False,
        "logprobs": None,
        "suffix": "",
        "tools": [],
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "user": "me",
        "no_such_field": [1],
    }
    for make in (completion, chat):
        assert parse(make(**off)) == parse(make()) == parse(make(**dict.fromkeys(off)))


def test_null_means_the_default() -> None:
    optional = (
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "ignore_eos",
    )
    for make, more in ((completion, ()), (chat, ("max_completion_tokens",))):
        wanted = make(**dict.fromkeys((*optional, *more)))
        assert parse(wanted) == parse(make())
        type(parse(wanted)).model_validate(wanted)
    assert parse(completion(stream_options={"include_usage": None})).include_usage is False


def test_defaults_are_openais() -> None:
    for request, max_tokens in ((parse(completion()), 16), (parse(chat()), None)):
        assert (request.max_tokens, request.temperature, request.top_p, request.stream) == (
            max_tokens,
            1.0,
            1.0,
            False,
        )
        assert request.stops == [] and not request.include_usage and not request.ignore_eos


def test_stop_is_a_string_or_a_list_and_empty_ones_stop_nothing() -> None:
    assert parse(completion(stop="a")).stops == ["a"]
    assert parse(completion(stop=["a", "", "bc"])).stops == ["a", "bc"]
    assert parse(completion(stop="")).stops == parse(completion(stop=[])).stops == []


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "baba "}, {"type": "text", "text": "babe"}]
    request = parse(
        chat(messages=[{"role": "system", "content": "x"}, {"role": "user", "content": parts}])
    )
    assert isinstance(request, ChatCompletionRequest)
    assert [message.content for message in request.messages] == ["x", "baba babe"]


def test_lone_surrogates_are_refused() -> None:
    """JSON can say them, UTF-8 cannot: an engine that encodes them would end in a 500."""
    for data in (
        completion(prompt="baba \ud800"),
        completion(stop="\udfff"),
        completion(stop=["a", "\ud800"]),
        chat(messages=[{"role": "user", "content": "\udc00"}]),
        chat(messages=[{"role": "user", "content": [{"type": "text", "text": "\udc00"}]}]),
    ):
        kind = ChatCompletionRequest if "messages" in data else CompletionRequest
        with pytest.raises(ContractError) as error:  # pydantic's own JSON parser says: not JSON
            api.parse_request(kind, json.dumps(data).encode())
        assert error.value.status == 400
        # Python's parser, which FastAPI uses, lets them through
        with pytest.raises(ValidationError) as invalid:
            kind.model_validate(data)
        error_of = api.invalid_request(invalid.value.errors())
        assert error_of.status == 400 and error_of.param in ("prompt", "stop", "messages")
        json.dumps(error_of.body(), ensure_ascii=False).encode()  # as FastAPI writes it


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": ',
        b"[1]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_json_object_is_a_400_that_says_so(body: bytes) -> None:
    error = refused({}, body)
    assert (
        error["message"].startswith("the body is not a JSON object")
        and error["code"] == "invalid_json"
        and error["param"] is None
    )


# --- errors


def test_errors_have_openais_envelope() -> None:
    error = ContractError(429, "busy", retry_after_s=3)
    assert error.body() == {
        "error": {"message": "busy", "type": "rate_limit_error", "param": None, "code": None}
    }
    assert error.headers == {"Retry-After": "3"} and ContractError(400, "bad").headers == {}
    types = {
        400: "invalid_request_error",
        401: "authentication_error",
        404: "invalid_request_error",
        500: "server_error",
        503: "server_error",
    }
    assert {status: api.error_body(status, "x")["error"]["type"] for status in types} == types


# --- answers


def events(request: Request, *items: Any) -> list[str]:
    """Payloads of the stream, each properly framed."""
    answer = CompletionResponse(request, "m")
    text = "".join(answer.event(item) for item in items)
    assert text.endswith("\n\n")
    framed = text.removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") and "\n" not in event for event in framed)
    return [event.removeprefix("data: ") for event in framed]


@pytest.mark.parametrize("make", [completion, chat])
def test_a_stream_reads_back_as_it_was_said(make: Any) -> None:
    said = [" baba", ' "quoted"\n\\ ', " \u2028é\U0001f600", "data: [DONE]\n\n", ""]
    *chunks, end, usage, done = events(
        parse(make(stream=True, stream_options={"include_usage": True})), *said, OUTCOME
    )
    assert [read_chunk(chunk.encode()).text for chunk in chunks] == said
    assert all(read_chunk(chunk.encode()).finish_reason is None for chunk in chunks)
    last = read_chunk(end.encode())
    assert (last.text, last.finish_reason, last.usage) == ("", "length", None)
    assert last.timings == {"queue_ms": 1.235, "prompt_ms": 20, "predicted_ms": 10}
    tail = read_chunk(usage.encode())
    assert tail.usage == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert json.loads(usage)["choices"] == [] and tail.text == "" and done == "[DONE]"


def test_usage_comes_only_if_asked_for() -> None:
    for options in (None, {}, {"include_usage": False}):
        *_, end, done = events(
            parse(completion(stream=True, stream_options=options)), " baba", OUTCOME
        )
        assert (
            done == "[DONE]"
            and json.loads(end)["choices"]
            and read_chunk(end.encode()).usage is None
        )


def test_the_role_comes_with_the_first_token_and_no_other() -> None:
    """A chunk with a role alone would look like the first token to whoever measures."""
    first, *more = [
        json.loads(chunk)
        for chunk in events(parse(chat(stream=True)), " baba", " babe", OUTCOME)[:-1]
    ]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": " baba"}
    assert [chunk["choices"][0]["delta"] for chunk in more] == [{"content": " babe"}, {}]


def test_all_chunks_of_an_answer_have_its_id_and_two_answers_have_two() -> None:
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
    answer = CompletionResponse(parse(chat(stream=True)), "m")
    said = [
        payload
        for item in (" baba", ' "quoted"\n\n ', OUTCOME)
        for payload in api.split_events(answer.event(item))
    ]
    assert [read_chunk(payload.encode()).text for payload in said[:-1]] == [
        " baba",
        ' "quoted"\n\n ',
        "",
    ]
    assert [api.status_of_end(payload) for payload in said] == [None, None, None, 200] and said[
        -1
    ] == "[DONE]"


def test_an_error_ends_a_websockets_answer_and_has_its_status() -> None:
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
def test_a_plain_answer_reads_back(make: Any) -> None:
    body = CompletionResponse(parse(make()), "m").complete(" baba babe", OUTCOME)
    chunk = read_chunk(json.dumps(body).encode())
    assert (chunk.text, chunk.finish_reason, chunk.error) == (" baba babe", "length", None)
    assert chunk.usage == OUTCOME.usage() and chunk.timings == OUTCOME.timings()
    assert body["object"] == ("chat.completion" if make is chat else "text_completion")


def test_chunks_of_other_servers_are_read_too() -> None:
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
