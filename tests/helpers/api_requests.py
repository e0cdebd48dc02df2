"""The smallest valid requests to the API."""

import json
from typing import Any

from servers.contract import api
from servers.contract.api import ChatCompletionRequest, CompletionRequest, Outcome, Request

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
