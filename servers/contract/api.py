"""The API that every server speaks: a strict subset of OpenAI's. OpenAI's clients and LLM load
tools work unchanged.

    GET  /health  /v1/models  /metrics
    POST /v1/completions  /v1/chat/completions      plain, or streamed as server-sent events (SSE)
    GET  the same two, with Upgrade: websocket      streamed over a WebSocket (some servers)

On a WebSocket, each text message of the client is the body of a POST request, and its response is
always streamed: one text message per event, without "data: ", and [DONE] as the last. If a request
is refused or its engine fails, the last message is the error envelope, with the status beside
"error". The connection stays open and serves one request at a time; the next one waits for [DONE].
A request that is too long closes the connection with 1009. Without the key there is no upgrade.

Requests are pydantic models; `CompletionResponse` builds responses and `error_body` builds errors.
`chunks.py` is the client's side. Three extensions come from other servers: `ignore_eos` (vLLM)
makes output lengths exact, `stream_options.continuous_usage_stats` (vLLM) counts tokens in each
chunk, and `timings` (llama.cpp) explains a slow request. Unknown fields are ignored, as in most
servers. Known fields that would change the response but are not supported are refused
(unsupported_fields.json).
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from servers.contract import JsonObject as JsonObject
from servers.contract import fields
from servers.contract.chunks import CHAT_COMPLETIONS as CHAT_COMPLETIONS
from servers.contract.chunks import COMPLETIONS as COMPLETIONS
from servers.contract.chunks import status_of_end as status_of_end
from servers.contract.fields import Content, Prompt, Role, Text, or_default
from servers.contract.sse import SSE_CONTENT_TYPE as SSE_CONTENT_TYPE

MAX_BODY_BYTES = 4 * 1024 * 1024
SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
DONE = "data: [DONE]\n\n"
# Some servers have this option: serialise each whole chunk with that library, as most servers do.
# The default ("prepared") serialises the constant part of all chunks once, and then only the text
# of each token.
WHOLE_CHUNKS = os.environ.get("SERVEOFF_JSON", "prepared") != "prepared"

_dumps: Callable[[Any], str] = json.dumps
if os.environ.get("SERVEOFF_JSON") == "orjson":
    import orjson

    def _dumps(value: Any) -> str:
        return orjson.dumps(value).decode()


_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def authorization_header() -> dict[str, str]:
    """Return the header that carries the client's key (SERVEOFF_API_KEY); empty without a key."""
    key = os.environ.get("SERVEOFF_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


class ContractError(Exception):
    """A response with a status other than 200. `str()` is the message; never a stack trace."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}

    def body(self) -> JsonObject:
        return error_body(self.status, str(self), self.param, self.code)


class ClientGone(Exception):
    """Raised in `on_token` to stop a generation whose client has disconnected."""


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> JsonObject:
    """Return OpenAI's error envelope."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def invalid_request(errors: Sequence[Any]) -> ContractError:
    """Return a 400 that names the first bad field in pydantic's (or FastAPI's) list of errors."""
    first = errors[0]
    # drop FastAPI's "body" and pydantic's names of union members, such as "list[str]"
    where = [str(part) for part in first["loc"] if part != "body" and "[" not in str(part)]
    if first["type"] in ("json_invalid", "value_error.jsondecode") or (
        not where and first["type"] != "value_error"
    ):
        return ContractError(
            400, f"the body is not a JSON object: {first['msg']}", None, "invalid_json"
        )
    field = where[0] if where else None
    # from refuse_unsupported, whose message starts with the field
    if first["type"] == "value_error" and not where:
        field = first["msg"].removeprefix("Value error, ").split(":")[0]
        return ContractError(
            400, first["msg"].removeprefix("Value error, "), field, "unsupported_value"
        )
    return ContractError(400, f"{'.'.join(where)}: {first['msg']}", field, first["type"])


# --- requests


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)
    include_usage: Annotated[bool, or_default(False)] = False
    # vLLM's extension: with include_usage, each chunk has the usage so far
    continuous_usage_stats: bool | None = None


class _Request(BaseModel):
    model_config = ConfigDict(strict=True)

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False), or_default(1.0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), or_default(1.0)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    # the list comes first because its errors are more precise
    stop: Annotated[list[Text], Field(max_length=4)] | Text | None = None
    stream: Annotated[bool, or_default(False)] = False
    stream_options: StreamOptions | None = None
    ignore_eos: Annotated[bool, or_default(False)] = False

    @model_validator(mode="before")
    @classmethod
    def refuse_unsupported(cls, data: Any) -> Any:
        return fields.refuse_unsupported(data)

    @property
    def stops(self) -> list[str]:
        return [s for s in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if s]

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        return (
            self.include_usage
            and self.stream_options is not None
            and self.stream_options.continuous_usage_stats is True
        )

    @property
    def token_limit(self) -> int | None:
        """`max_tokens` under either of its names; None if the model decides when to stop."""
        return self.max_tokens


class CompletionRequest(_Request):
    max_tokens: Annotated[int, Field(ge=1), or_default(16)] = 16  # OpenAI's default
    prompt: Annotated[Prompt, Field(min_length=1)]  # or a list of one


class ChatMessage(BaseModel):
    """One chat message. The role `developer` means `system`; a `tool` result becomes user text. An
    assistant's content may be null; its tool calls are ignored because no engine here makes any.
    """

    model_config = ConfigDict(strict=True)

    role: Annotated[Literal["system", "user", "assistant"], Role]
    content: Content

    @model_validator(mode="before")
    @classmethod
    def fill_content(cls, data: Any) -> Any:
        return fields.fill_content(data)


class ChatCompletionRequest(_Request):
    """A chat request. Without max_tokens (or max_completion_tokens, its newer name) the response
    ends when the model stops or the context is full, as with OpenAI.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens or self.max_completion_tokens


Request = CompletionRequest | ChatCompletionRequest


def parse_request(
    kind: type[CompletionRequest] | type[ChatCompletionRequest], body: bytes | str
) -> Request:
    """Parse a body, for frameworks that do not use pydantic. Raises ContractError (400)."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise invalid_request(error.errors()) from None


# --- responses


def count_usage(prompt_tokens: int, completion_tokens: int) -> JsonObject:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class Piece(str):
    """The text of a chunk, marked with the usage so far and whether it is reasoning.

    A server treats it as any text; only `CompletionResponse` reads the marks.
    """

    def __new__(cls, text: str, reasoning: bool = False, usage: JsonObject | None = None) -> Self:
        made = super().__new__(cls, text)
        made.reasoning, made.usage = reasoning, usage
        return made

    reasoning: bool
    usage: JsonObject | None


@dataclass(frozen=True)
class Outcome:
    """How a generation ended. Times in ms: `queue_ms` waiting for the engine, `prompt_ms` from the
    engine's start to the first token, `predicted_ms` from the first to the last token.
    """

    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["length", "stop"]
    queue_ms: float
    prompt_ms: float
    predicted_ms: float
    reasoning: str = ""  # the leading part of the text that is reasoning
    reasoning_tokens: int = 0

    def usage(self) -> JsonObject:
        found = count_usage(self.prompt_tokens, self.completion_tokens)
        if self.reasoning_tokens:
            found["completion_tokens_details"] = {"reasoning_tokens": self.reasoning_tokens}
        return found

    def timings(self) -> dict[str, float]:
        return {
            name: round(getattr(self, name), 3)
            for name in ("queue_ms", "prompt_ms", "predicted_ms")
        }


class CompletionResponse:
    """Builds the response to one request: `event` for each item of a stream, or `complete` for a
    plain response.
    """

    def __init__(self, request: Request, model: str):
        self.chat = isinstance(request, ChatCompletionRequest)
        self.include_usage = request.include_usage
        self.continuous_usage = request.continuous_usage
        self.common = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if self.chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self.first = True
        if not WHOLE_CHUNKS:
            self.head, self.tail = self._chunk("\0").split(_dumps("\0"))

    def _chunk(
        self,
        text: str | None,
        finish_reason: str | None = None,
        *,
        role: bool = False,
        reasoning: bool = False,
        **more: Any,
    ) -> str:
        choice: JsonObject = {"index": 0, "logprobs": None, "finish_reason": finish_reason}
        if self.chat:
            choice["delta"] = ({"role": "assistant"} if role else {}) | (
                {} if text is None else {"reasoning_content" if reasoning else "content": text}
            )
        else:
            choice["text"] = text or ""
        return self._event({"choices": [choice], **more})

    def _event(self, fields: JsonObject) -> str:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return f"data: {_dumps({**self.common, 'object': kind, **fields})}\n\n"

    def event(self, item: "str | Outcome | BaseException") -> str:
        """Return SSE text: an event for a token, the end of the stream for an Outcome, an error
        event for an exception.
        """
        if isinstance(item, Piece):
            role, self.first = self.first, False
            more: JsonObject = {"usage": item.usage} if item.usage else {}
            return self._chunk(str(item), role=role, reasoning=item.reasoning, **more)
        if isinstance(item, str):
            # the role comes with the first token: clients would count a separate chunk as a token
            if self.first and self.chat:
                self.first = False
                return self._chunk(item, role=True)
            return self._chunk(item) if WHOLE_CHUNKS else f"{self.head}{_dumps(item)}{self.tail}"
        if isinstance(item, Outcome):
            more = {"usage": item.usage()} if self.continuous_usage else {}
            end = self._chunk(None, item.finish_reason, timings=item.timings(), **more)
            if self.include_usage:
                end += self._event({"choices": [], "usage": item.usage()})
            return end + DONE
        message = str(item) if isinstance(item, ContractError) else "the engine failed"
        return f"data: {json.dumps(error_body(500, message))}\n\n"

    def complete(self, text: str, outcome: Outcome) -> JsonObject:
        choice: JsonObject = {"index": 0, "logprobs": None, "finish_reason": outcome.finish_reason}
        if self.chat:
            message = {"role": "assistant", "content": text.removeprefix(outcome.reasoning)}
            if outcome.reasoning:
                message["reasoning_content"] = outcome.reasoning
            choice["message"] = message
        else:
            choice["text"] = text
        return {
            **self.common,
            "choices": [choice],
            "usage": outcome.usage(),
            "timings": outcome.timings(),
        }


def split_events(events: str) -> list[str]:
    """Split the text of `CompletionResponse.event` into WebSocket messages."""
    return [event.removeprefix("data: ") for event in events.split("\n\n")[:-1]]


def error_message(error: BaseException) -> str:
    """Return the WebSocket message for a request that was refused or whose engine failed."""
    shown = error if isinstance(error, ContractError) else ContractError(500, "the engine failed")
    return json.dumps({**shown.body(), "status": shown.status})


def models_body(*models: str) -> JsonObject:
    return {
        "object": "list",
        "data": [
            {"id": model, "object": "model", "created": 0, "owned_by": "serveoff"}
            for model in models
        ],
    }
