"""Engines: they run the model inside a server. No engine imports a web framework or knows its
server.

`ENGINES` in servers/runtime/engine_specs.py lists them with their kinds. A server gets its engine
from `load_blocking()`, `load_async()` or `load_batch()`.

A blocking engine has

    generate(job, on_token) -> Outcome
        runs in the calling thread and calls on_token(text) for each token; an exception from
        on_token (ClientGone) stops the generation

an async engine has

    stream(job) -> async iterator
        of each token's text, then one Outcome; closing it, or cancelling the task that waits for
        it, stops the generation

a batch engine, for the queue in servers/engines/batching.py, has

    generate_batch(rows)
        runs in the calling thread and calls row.token(text, ended) for each token of each row,
        until all rows are `done`
    kind(job), max_batch
        a batch holds at most max_batch requests, all of one kind

and all have `model` (the served name), `prepare(request) -> Job` (raises ContractError before the
response starts) and `close()`. Each server connects the engine to its own concurrency model: that
connection is what we measure.
"""

import importlib
import json
import os
import time
from dataclasses import dataclass, field
from typing import Any

from servers.contract import metrics
from servers.contract.api import (
    ChatCompletionRequest,
    ContractError,
    JsonObject,
    Outcome,
    Piece,
    Request,
    count_usage,
)
from servers.runtime.engine_specs import ENGINES


@dataclass(frozen=True)
class Settings:
    """The launcher's settings for the engine, from SERVEOFF_* variables: the same for every server
    of a campaign.
    """

    engine: str
    model: str  # the served name
    path: str  # folder or hub name of the weights; empty for the simulated engine
    threads: int  # compute threads of this process
    simulated: JsonObject

    @classmethod
    def from_environment(cls) -> "Settings":
        def get(name: str, default: str | None = None) -> str:
            value = os.environ.get(f"SERVEOFF_{name}", default)
            if value is None:
                raise SystemExit(
                    f"SERVEOFF_{name} is not set: start this server with `python -m servers NAME`"
                )
            return value

        return cls(
            get("ENGINE"),
            get("MODEL_NAME"),
            get("MODEL_PATH", ""),
            int(get("ENGINE_THREADS", "1")),
            json.loads(get("SIMULATED", "{}")),
        )


def load_blocking() -> Any:
    return _load("blocking")


def load_async() -> Any:
    return _load("async")


def load_batch() -> Any:
    return _load("batch")


def _load(kind: str) -> Any:
    settings = Settings.from_environment()
    known = [name for name, engine in ENGINES.items() if kind in engine.classes]
    if settings.engine not in known:
        raise SystemExit(
            f"there is no {kind} engine {settings.engine!r}: list only {', '.join(known)} in the"
            " server.toml of this server"
        )
    module = importlib.import_module(f"servers.engines.{settings.engine}")
    return getattr(module, ENGINES[settings.engine].classes[kind])(settings)


@dataclass
class Job:
    """A request that the engine has accepted. `prompt` has the engine's own form: token ids or
    text.
    """

    prompt: Any
    prompt_tokens: int
    max_tokens: int
    request: Request
    received: float = field(default_factory=time.perf_counter)


def encode_prompt(tokenizer: Any, request: Request) -> list[int]:
    """Return the prompt's token ids; chats go through the model's own template."""
    if isinstance(request, ChatCompletionRequest):
        text = _apply_template(tokenizer, request)
        return list(tokenizer(text, add_special_tokens=False).input_ids)
    return list(tokenizer(request.prompt).input_ids)


def _apply_template(tokenizer: Any, request: ChatCompletionRequest) -> str:
    """Render the messages. Raises ContractError for messages that the model's template refuses,
    such as two user messages in a row.
    """
    from jinja2 import TemplateError

    if getattr(tokenizer, "chat_template", "") is None:
        raise ContractError(
            400,
            "messages: this model has no chat template; send the text as `prompt` to"
            " /v1/completions",
            "messages",
            "no_chat_template",
        )
    messages = [message.model_dump() for message in request.messages]
    try:
        return str(
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        )
    except TemplateError as error:
        raise ContractError(
            400,
            f"messages: the model's chat template refuses them: {error}",
            "messages",
            "refused_by_template",
        ) from None


def accept_request(
    request: Request, prompt: Any, prompt_tokens: int, model: str, context: int
) -> Job:
    """Check a request as every engine must. `context`: limit of prompt and response tokens.
    Raises ContractError.
    """
    if request.model != model:
        raise ContractError(
            404,
            f"model: {request.model!r} does not exist; this server has {model!r}",
            "model",
            "model_not_found",
        )
    field_name = "messages" if isinstance(request, ChatCompletionRequest) else "prompt"
    if prompt_tokens == 0:
        raise ContractError(400, f"{field_name}: must not be empty", field_name, "empty_prompt")
    asked = request.token_limit
    room = context - prompt_tokens
    if room < (asked or 1):
        wanted = f"{prompt_tokens} tokens" + (f" and max_tokens {asked}" if asked else "")
        raise ContractError(
            400,
            f"{field_name}: {wanted} exceed the context of {context} tokens",
            field_name,
            "context_length_exceeded",
        )
    return Job(prompt, prompt_tokens, asked or room, request)


class Generation:
    """Clock, counters and stop strings of one generation. As a context manager, it counts as
    running in `metrics`.
    """

    def __init__(self, job: Job):
        self.job = job
        self.stops = job.request.stops
        self.continuous_usage = job.request.continuous_usage
        self.tokens = self.reasoning_tokens = 0
        self.reasoning = ""
        self.waited_s = 0.0  # in the engine's own queue, if it reports that
        self.stopped = False
        self.held = ""

    def __enter__(self) -> "Generation":
        metrics.RUNNING.inc()
        self.began = self.first = self.last = time.perf_counter()
        metrics.QUEUE_SECONDS.observe(self.began - self.job.received)
        return self

    def __exit__(self, *exc: object) -> None:
        metrics.TOKENS.inc(self.tokens)
        metrics.RUNNING.dec()  # last: when none is running, all tokens have been counted

    def token(self, text: str, count: int = 1, reasoning: bool = False) -> str:
        """Count new tokens; return the text that may be sent now. Sets `stopped` once a stop string
        is complete.
        """
        self.last = time.perf_counter()
        if not self.tokens:
            self.first = self.last
        self.tokens += count
        if self.stops:
            text = self._cut(text)
        if reasoning:
            self.reasoning_tokens += count
            self.reasoning += text
        return self._describe(text, reasoning) if reasoning or self.continuous_usage else text

    def release_held(self) -> str:
        """Return the text still held back at the end of the response; often empty."""
        held, self.held = self.held, ""
        return self._describe(held) if held and self.continuous_usage else held

    def _describe(self, text: str, reasoning: bool = False) -> Piece:
        usage = count_usage(self.job.prompt_tokens, self.tokens) if self.continuous_usage else None
        return Piece(text, reasoning, usage)

    def _cut(self, text: str) -> str:
        """Cut at a stop string; hold back text that may still become one."""
        text = self.held + text
        ends = [end for stop in self.stops if (end := text.find(stop)) >= 0]
        if ends:
            self.stopped, self.held = True, ""
            return text[: min(ends)]
        hold = max(
            (n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])),
            default=0,
        )
        self.held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def outcome(self, ended: bool = False) -> Outcome:
        """Return the outcome. `ended`: the model itself ended its response."""
        began = min(self.began + max(self.waited_s, 0.0), self.first)
        return Outcome(
            self.job.prompt_tokens,
            self.tokens,
            "stop" if self.stopped or ended else "length",
            1e3 * (began - self.job.received),
            1e3 * (self.first - began),
            1e3 * (self.last - self.first),
            self.reasoning,
            self.reasoning_tokens,
        )
