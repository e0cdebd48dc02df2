"""Each of our servers, started for real: with the simulated engine, and with its real engine on the
tiny model.

Every folder under servers/ is tested; nothing is listed here.
"""

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from servers.contract import api, oracle
from servers.contract.conformance import select_checks, verify_server
from servers.runtime.launch import RunningServer
from tests.helpers.started_server import (
    MODEL,
    OURS,
    SERVERS,
    STARTS,
    ask,
    counters,
    counters_at_rest,
    started,
    wanted,
)


@pytest.fixture(scope="module", params=[start for name in OURS for start in STARTS[name]])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with started(*request.param, tmp_path_factory) as running:
        yield running


def has_foreign_engine(server: RunningServer) -> bool:
    return any(SERVERS[each.server].foreign for each in server.behind)


def test_it_meets_the_contract(server: RunningServer) -> None:
    waived, transports = SERVERS[server.server].waives, SERVERS[server.server].transports
    checks = verify_server(server.base_url, checks=select_checks(False, waived, transports))
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]
    assert len(checks) == 12 + ("websocket" in transports) - len(waived)


# --- OpenAI's own client


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.base_url}/v1", api_key="none needed", max_retries=0, timeout=60
    ) as made:
        yield made


def test_openais_client_completes_and_chats(client: openai.OpenAI) -> None:
    completion = client.completions.create(
        model=MODEL, prompt="bebe baba", max_tokens=6, temperature=0
    )
    assert (
        completion.choices[0].text == oracle.continuation("baba", 6)
        and completion.choices[0].finish_reason == "length"
    )
    assert completion.usage and (
        completion.usage.prompt_tokens,
        completion.usage.completion_tokens,
    ) == (2, 6)
    messages: Any = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "baba"}]
    chat = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=6, temperature=0
    )
    assert chat.choices[0].message.role == "assistant" and chat.choices[
        0
    ].message.content == oracle.continuation("baba", 6)
    assert chat.usage and (chat.usage.prompt_tokens, chat.usage.total_tokens) == (5, 11)
    assert [model.id for model in client.models.list()] == [MODEL]


def test_openais_client_streams_with_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model=MODEL,
            prompt="baba",
            max_tokens=6,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(
        chunk.choices[0].text for chunk in chunks if chunk.choices
    ) == oracle.continuation("baba", 6)
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens == 6
    reply = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "baba"}],
            max_tokens=6,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    deltas = [chunk.choices[0].delta for chunk in reply if chunk.choices]
    assert (
        "".join(delta.content or "" for delta in deltas) == oracle.continuation("baba", 6)
        and deltas[0].role == "assistant"
    )
    assert (
        reply[-1].usage
        and reply[-1].usage.completion_tokens == 6
        and len({chunk.id for chunk in reply}) == 1
    )


def test_openais_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as unknown:
        client.completions.create(model="gpt-none", prompt="baba")
    assert (
        unknown.value.status_code == 404
        and unknown.value.code == "model_not_found"
        and "gpt-none" in unknown.value.message
    )
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model=MODEL, prompt="baba", n=2)
    assert bad.value.param == "n"


# --- requests


def chatted(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "baba"}], **more}


# Their frameworks cannot notice it, as their READMEs explain.
UNNOTICED = ("fastapi_blocking", "flask_fastcgi", "litserve")


def test_a_vanished_client_frees_its_plain_request(server: RunningServer) -> None:
    if server.server in UNNOTICED:
        pytest.skip("its framework does not let it notice")
    before = counters_at_rest(server.base_url)
    for path, more in (
        (api.COMPLETIONS, {}),
        (api.CHAT_COMPLETIONS, {"messages": [{"role": "user", "content": "baba"}]}),
    ):
        connection = http.client.HTTPConnection(server.base_url.removeprefix("http://"), timeout=60)
        body = json.dumps(wanted(max_tokens=1_900, **more))  # seconds
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        time.sleep(0.3)
        connection.close()
        counters_at_rest(server.engine_urls)
    after = counters_at_rest(server.base_url)
    completed = {name: n for name, n in after.items() if 'completions",status="200"' in name}
    assert completed == {name: before.get(name, 0) for name in completed}
    assert sum(n for name, n in after.items() if 'completions",status="499"' in name) >= 2


def test_stop_strings_end_a_response(server: RunningServer) -> None:
    status, body = ask(
        server.base_url, api.COMPLETIONS, wanted(stop=["babo", "zzz"], max_tokens=20)
    )
    expected = {"index": 0, "logprobs": None, "finish_reason": "stop", "text": " babe babi "}
    choice = body["choices"][0]
    if has_foreign_engine(server):
        choice = {name: choice[name] for name in expected}  # it may have more fields
    assert status == 200 and choice == expected


def test_defaults_of_current_clients_change_nothing(server: RunningServer) -> None:
    defaults = {
        "n": 1,
        "stop": [],
        "logprobs": None,
        "user": "me",
        "store": False,
        "metadata": {"a": "b"},
        "tools": [],
        "parallel_tool_calls": True,
        "response_format": {"type": "text", "json_schema": None},
        "min_tokens": 5,
        "tool_choice": "none",
        "top_k": -1,
        "min_p": 0,
        "stream_options": None,
    }
    status, body = ask(server.base_url, api.COMPLETIONS, wanted(prompt=["bebe baba"], **defaults))
    assert (status, body["choices"][0]["text"]) == (200, oracle.continuation("baba", 5))
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": "bebe"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "baba"},
    ]
    asked = wanted(messages=messages) | defaults | {"logprobs": False}
    status, body = ask(server.base_url, api.CHAT_COMPLETIONS, asked)
    assert status == 200
    assert body["choices"][0]["message"]["content"] == oracle.continuation("baba", 5)


def test_continuous_usage_counts_each_chunk(server: RunningServer) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    asked = wanted(stream=True, stream_options=options)
    for _ in range(2):  # a cache serves the second
        status, reply = ask(server.base_url, api.COMPLETIONS, asked)
        *events, done = [event.removeprefix("data: ") for event in reply.split("\n\n") if event]
        usages = [json.loads(event)["usage"] for event in events]
        counts = [usage["completion_tokens"] for usage in usages]
        assert status == 200 and done == "[DONE]" and counts[:5] == [1, 2, 3, 4, 5]
        assert set(counts[5:]) == {5} and {usage["prompt_tokens"] for usage in usages} == {2}


def test_null_is_a_default_and_unknown_fields_are_ignored(server: RunningServer) -> None:
    status, body = ask(
        server.base_url,
        api.COMPLETIONS,
        wanted(stream=None, stop=None, seed=None, top_p=None, user="me", n=None),
    )
    assert status == 200 and body["choices"][0]["text"] == oracle.continuation("baba", 5)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (api.COMPLETIONS, {"model": MODEL}, "prompt"),
        (api.COMPLETIONS, {"prompt": "baba"}, "model"),
        (api.CHAT_COMPLETIONS, {"model": MODEL}, "messages"),
        (api.CHAT_COMPLETIONS, {"messages": [{"role": "user", "content": "baba"}]}, "model"),
        (api.CHAT_COMPLETIONS, {"model": MODEL, "messages": [{"role": "user"}]}, "messages"),
        (api.COMPLETIONS, wanted(n=2), "n"),
        (api.COMPLETIONS, wanted(prompt=["baba", "bebe"]), "prompt"),
        (api.COMPLETIONS, wanted(prompt=[1, 2]), "prompt"),
        (api.COMPLETIONS, wanted(top_k=40), "top_k"),
        (api.COMPLETIONS, wanted(min_p=0.1), "min_p"),
        (api.COMPLETIONS, wanted(guided_json={"type": "object"}), "guided_json"),
        (api.CHAT_COMPLETIONS, chatted(response_format={"type": "json_object"}), "response_format"),
        (api.CHAT_COMPLETIONS, chatted(tool_choice="required"), "tool_choice"),
        (api.COMPLETIONS, wanted(stop=["a"] * 5), "stop"),
        (api.COMPLETIONS, wanted(stream="yes"), "stream"),
        (api.COMPLETIONS, wanted(max_tokens=10**7), "prompt"),
    ],
    ids=repr,
)
def test_a_bad_field_is_a_400_that_names_it(
    server: RunningServer, path: str, body: dict[str, Any], param: str
) -> None:
    status, reply = ask(server.base_url, path, body)
    if has_foreign_engine(server) and body.get("max_tokens", 0) > 10**6:
        # only the engine knows its context, and vLLM names the other of the two fields
        param = "max_tokens"
    assert (
        status == 400
        and reply["error"]["param"] == param
        and reply["error"]["type"] == "invalid_request_error"
    )


@pytest.mark.parametrize("where", ["prompt", "stop", "model"])
def test_lone_surrogates_are_no_500(server: RunningServer, where: str) -> None:
    status, reply = ask(server.base_url, api.COMPLETIONS, wanted(**{where: "baba \ud800"}))
    assert status in (400, 404) and isinstance(reply["error"]["message"], str)


def test_deep_nesting_is_no_500(server: RunningServer) -> None:
    status, reply = ask(server.base_url, api.COMPLETIONS, b'{"model": ' + b"[" * 100_000)
    assert status == 400 and isinstance(reply["error"]["message"], str)


def test_a_body_that_is_too_long_is_a_413(server: RunningServer) -> None:
    status, reply = ask(server.base_url, api.COMPLETIONS, wanted(prompt="baba " * 1_000_000))
    assert status == 413 and isinstance(reply["error"]["message"], str)


def test_a_chunked_body_that_is_too_long_is_a_413(server: RunningServer) -> None:
    """Its length is not known in advance."""

    def pieces() -> Iterator[bytes]:
        yield b'{"model": "' + MODEL.encode() + b'", "prompt": "'
        for _ in range(100):
            yield b"baba " * 10_000

    refused = 'serveoff_requests_total{path="/v1/completions",status="413"}'
    before = counters_at_rest(server.base_url).get(refused, 0)
    status, reply = ask(server.base_url, api.COMPLETIONS, pieces())
    assert status == 413 and isinstance(reply["error"]["message"], str)
    assert counters_at_rest(server.base_url)[refused] == before + 1


def test_it_keeps_serving_after_all_that(server: RunningServer) -> None:
    assert ask(server.base_url, api.COMPLETIONS, wanted())[1]["choices"][0][
        "text"
    ] == oracle.continuation("baba", 5)


# --- metrics


def engine_counters(server: RunningServer) -> dict[str, float]:
    """Return the engine's counters: a gateway counts its requests, and the server behind it the
    tokens.
    """
    return {
        name: value
        for name, value in counters_at_rest(server.engine_urls).items()
        if name.startswith(
            tuple(
                f"serveoff_{what}"
                for what in ("tokens", "queue", "requests_running", "requests_waiting")
            )
        )
    }


def test_the_counters_count(server: RunningServer) -> None:
    ok, refused = (
        f'serveoff_requests_total{{path="/v1/completions",status="{status}"}}'
        for status in (200, 400)
    )
    seconds = 'serveoff_request_seconds_count{path="/v1/completions"}'
    if server.behind and "serveoff_tokens_total" not in counters(server.engine_urls):
        pytest.skip("the engine behind it has other names for its counters")
    before = counters_at_rest(server.base_url) | engine_counters(server)
    for more in ({}, {"stream": True}, {"n": 2}):
        ask(server.base_url, api.COMPLETIONS, wanted(**more))
    after = counters_at_rest(server.base_url) | engine_counters(server)
    moved = {
        name: after[name] - before.get(name, 0)
        for name in (ok, refused, seconds, "serveoff_tokens_total", "serveoff_queue_seconds_count")
    }
    assert list(moved.values()) == [2, 1, 3, 10, 2], moved
    assert (
        after["serveoff_requests_in_flight"]
        == after["serveoff_requests_running"]
        == after["serveoff_requests_waiting"]
        == 0
    )


def test_counters_can_be_selected_by_name(server: RunningServer) -> None:
    status, text = ask(server.engine_urls, "/metrics?name%5B%5D=serveoff_tokens_total")
    names = {
        line.split("{")[0].split()[0] for line in text.splitlines() if not line.startswith("#")
    }
    few = {
        f"serveoff_{name}"
        for name in ("tokens_total", "requests_in_flight", "requests_running", "requests_waiting")
    }
    if server.behind and not few & names:
        pytest.skip("the engine behind it has other names for its counters")
    assert status == 200 and few <= names
    several = "--workers" in server.command or "PROMETHEUS_MULTIPROC_DIR={run}/metrics" in (
        SERVERS[server.server].command
    )
    assert few == names or several, "Prometheus' client cannot select names with several processes"


def test_a_server_with_an_event_loop_measures_its_lag(server: RunningServer) -> None:
    if {"flask", "node"} & set(SERVERS[server.server].requires):
        assert not [name for name in counters(server.base_url) if "event_loop" in name]
        return
    before = counters(server.base_url)["serveoff_event_loop_lag_seconds_count"]
    time.sleep(0.5)
    # one every 50 ms, including late ones
    assert counters(server.base_url)["serveoff_event_loop_lag_seconds_count"] >= before + 8


def test_unknown_paths_create_no_time_series(server: RunningServer) -> None:
    for path in ("/v1/nothing", "/v1/nothing/else"):
        assert ask(server.base_url, path)[0] == 404
    assert not [name for name in counters(server.base_url) if "nothing" in name]
