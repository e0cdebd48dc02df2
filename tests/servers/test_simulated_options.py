"""The simulated engine's options through servers: each way in which tokens reach a client.

`engines/test_like_other_engines.py` tests the engine alone.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from servers.contract import api
from tests.helpers.started_server import MODEL, ask, start

# Threads and queues, an event loop, a batch, other processes, a cache, a gateway.
NAMES = (
    "flask_gunicorn",
    "fastapi_threadpool",
    "fastapi_vllm",
    "fastapi_batched",
    "fastapi_cached",
    "litserve",
    "node_gateway",
)
OPTIONS = {
    "tokens_per_chunk": 2,
    "reasoning_share": 0.5,
    "early_chunk": 1,
    "end_of_text": 8,
    "tokens_per_word": 2,
}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "bebe baba"}]}
USAGE = {
    "prompt_tokens": 6,
    "completion_tokens": 8,
    "total_tokens": 14,
    "completion_tokens_details": {"reasoning_tokens": 4},
}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_like_another_engine(name: str, tmp_path: Path) -> None:
    with start(name, "simulated", tmp_path, **OPTIONS) as running:
        streamed = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
        for _ in range(2):  # a cache serves the second
            status, reply = ask(running.base_url, api.CHAT_COMPLETIONS, streamed)
            *events, done = [event.removeprefix("data: ") for event in reply.split("\n\n") if event]
            chunks: list[dict[str, Any]] = [json.loads(event) for event in events]
            assert status == 200 and done == "[DONE]"
            assert [chunk["choices"][0]["delta"] for chunk in chunks[:-1]] == [
                {"role": "assistant", "content": ""},
                {"reasoning_content": " babe"},
                {"reasoning_content": " babi"},
                {"content": " babo"},
                {"content": " babu"},
                {},
            ]
            assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
            assert chunks[-1]["usage"] == USAGE
        status, plain = ask(running.base_url, api.CHAT_COMPLETIONS, CHAT)
        assert status == 200 and plain["usage"] == USAGE
        assert plain["choices"][0]["message"] == {
            "role": "assistant",
            "content": " babo babu",
            "reasoning_content": " babe babi",
        }
        asked = {"model": MODEL, "prompt": "bebe baba", "max_tokens": 7, "ignore_eos": True}
        status, plain = ask(running.base_url, api.COMPLETIONS, asked)
        assert plain["choices"][0]["text"] == " babe babi babo b"
        assert plain["choices"][0]["finish_reason"] == "length"
        assert plain["usage"] == {"prompt_tokens": 4, "completion_tokens": 7, "total_tokens": 11}
