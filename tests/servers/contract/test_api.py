"""The API without a server: valid requests, and the form of errors."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from servers.contract import api
from servers.contract.api import ChatCompletionRequest, CompletionRequest, ContractError
from tests.helpers.api_requests import chat, completion, parse


def refused(data: Any, body: bytes | None = None) -> dict[str, Any]:
    """Return the error of a request that must be refused. It must be the same for bytes (Flask) and
    for parsed JSON (FastAPI).
    """
    kind = ChatCompletionRequest if "messages" in data else CompletionRequest
    with pytest.raises(ContractError) as by_bytes:
        api.parse_request(kind, json.dumps(data).encode() if body is None else body)
    error = by_bytes.value
    if body is None:
        with pytest.raises(ValidationError) as by_object:
            kind.model_validate(data)
        # FastAPI adds where it looked
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
        ("prompt", []),
        ("prompt", ["baba", "bebe"]),
        ("prompt", [""]),
        ("prompt", [5]),
        ("prompt", [[1, 2]]),
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
        ("stream_options", {"continuous_usage_stats": "yes"}),
        ("messages", None),
        ("messages", []),
        ("messages", "baba"),
        ("messages", ["baba"]),
        ("messages", [{}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": 5}]),
        ("messages", [{"role": "user", "content": None}]),
        ("messages", [{"role": "tool", "content": None}]),
        ("messages", [{"role": [], "content": "baba"}]),
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


def test_the_message_names_too_many_stops() -> None:
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
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}),
        ("response_format", "json"),
        ("top_logprobs", 3),
        ("prompt_logprobs", 0),
        ("top_k", 40),
        ("top_k", 1),
        ("min_p", 0.05),
        ("typical_p", 0.9),
        ("min_tokens", 5),
        ("stop_token_ids", [2]),
        ("bad_words", ["baba"]),
        ("allowed_token_ids", [1]),
        ("guided_json", {"type": "object"}),
        ("guided_regex", "a+"),
        ("guided_choice", ["a", "b"]),
        ("guided_grammar", "root ::= 'a'"),
        ("structured_outputs", {"json": {}}),
        ("json_schema", {}),
        ("use_beam_search", True),
        ("length_penalty", 2.0),
        ("include_stop_str_in_output", True),
        ("skip_special_tokens", False),
        ("truncate_prompt_tokens", 5),
        ("chat_template", "{{ messages }}"),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("continue_final_message", True),
        ("reasoning_effort", "high"),
        ("modalities", ["text", "audio"]),
    ],
)
def test_unsupported_values_that_would_change_the_response_are_refused(
    field: str, value: Any
) -> None:
    for make in (completion, chat):
        error = refused(make(**{field: value}))
        assert (
            error["param"] == field
            and error["message"].startswith(f"{field}: this server does not support it; leave it")
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
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "top_k": -1,
        "min_p": 0.0,
        "use_beam_search": False,
        "user": "me",
        "store": False,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "service_tier": "auto",
        "no_such_field": [1],
    }
    for make in (completion, chat):
        assert parse(make(**off)) == parse(make()) == parse(make(**dict.fromkeys(off)))


def test_unsupported_fields_may_be_off_in_other_ways() -> None:
    for make in (completion, chat):
        for fields in (
            {"response_format": {"type": "text", "json_schema": None}},
            {"ignore_eos": True, "min_tokens": 5},
        ):
            parse(make(**fields))
    assert refused(completion(ignore_eos=False, min_tokens=5))["param"] == "min_tokens"


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


def test_a_list_of_one_prompt_is_that_prompt() -> None:
    assert parse(completion(prompt=["bebe baba"])) == parse(completion(prompt="bebe baba"))
    error = refused(completion(prompt=["baba", "bebe"]))
    assert "one request per prompt" in error["message"]


def test_current_role_names_map_to_ours() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": "baba", "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": [{"type": "text", "text": "bebe"}], "tool_call_id": "1"},
        {"role": "assistant", "tool_calls": [call]},
    ]
    request = parse(chat(messages=messages))
    assert isinstance(request, ChatCompletionRequest)
    assert [(message.role, message.content) for message in request.messages] == [
        ("system", "be kind"),
        ("user", "baba"),
        ("assistant", ""),
        ("user", "bebe"),
        ("assistant", ""),
    ]


def test_lone_surrogates_are_refused() -> None:
    """JSON can represent them, UTF-8 cannot: an engine that encodes them would cause a 500."""
    for data in (
        completion(prompt="baba \ud800"),
        completion(stop="\udfff"),
        completion(stop=["a", "\ud800"]),
        chat(messages=[{"role": "user", "content": "\udc00"}]),
        chat(messages=[{"role": "user", "content": [{"type": "text", "text": "\udc00"}]}]),
    ):
        kind = ChatCompletionRequest if "messages" in data else CompletionRequest
        with pytest.raises(ContractError) as error:  # to pydantic's JSON parser this is not JSON
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
def test_a_body_that_is_not_a_json_object_is_a_400(body: bytes) -> None:
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
