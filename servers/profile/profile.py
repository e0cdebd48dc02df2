"""The profile of an endpoint, and the dialect of requests to it.

Other people's servers are profiled, not judged: `profiler.py` sends requests, a Profile records the
findings, and the measurement adapts. A Dialect is the part that the load generator needs.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from servers.contract import JsonObject
from servers.profile.prompt_lengths import PromptLengths

ENDPOINTS = {"chat": "/chat/completions", "completions": "/completions"}

# How a server reports `usage`, the best first.
CONTINUOUS = "continuous"  # in each chunk, with stream_options.continuous_usage_stats
IN_STREAM = "stream"  # once per stream
PLAIN_ONLY = "plain"  # only in plain responses
NEVER = "never"


@dataclass(frozen=True)
class Dialect:
    """The form of requests to an endpoint. The default is that of our own servers.

    A request goes to the base URL + `root` + the path in ENDPOINTS + "?" + `query`. It leaves out
    the fields in `omitted` (ignore_eos, stream_options, temperature). Without a system role, the
    system message precedes the user's text. `extra` fields are the user's and replace ours. If
    streams have no usage and chunks hold several tokens, `tokens_per_byte` of text estimates them.
    """

    root: str = "/v1"
    query: str = ""
    max_tokens_field: str = "max_tokens"
    omitted: tuple[str, ...] = ()
    usage: str = IN_STREAM
    has_system_role: bool = True
    extra: JsonObject = field(default_factory=dict)
    tokens_per_byte: float | None = None

    @property
    def is_sampled(self) -> bool:
        """Whether the user asked for sampled text."""
        return bool(self.extra.get("temperature"))

    def path(self, endpoint: str) -> str:
        """Return the path of `chat` or `completions`, relative to the base URL."""
        return f"{self.root}{ENDPOINTS[endpoint]}" + (f"?{self.query}" if self.query else "")

    def build_fields(self, model: str, max_tokens: int, stream: bool = True) -> JsonObject:
        """Return the body, without prompt or messages, of a request that is greedy and of exact
        length as far as the dialect allows.
        """
        body: JsonObject = {
            "model": model,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": stream,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
            if self.usage == CONTINUOUS:
                body["stream_options"]["continuous_usage_stats"] = True
        return self.adapt(body)

    def adapt(self, body: JsonObject) -> JsonObject:
        """Return a request of our own servers in the form that this endpoint accepts."""
        renamed = {"max_tokens": self.max_tokens_field}
        kept = {
            renamed.get(name, name): value
            for name, value in body.items()
            if name not in self.omitted
        }
        return kept | self.extra

    @classmethod
    def from_json(cls, data: JsonObject) -> Self:
        return cls(**data | {"omitted": tuple(data["omitted"])})


@dataclass(frozen=True)
class Profile:
    """The findings of `profiler.py` about an endpoint; run.json's "profile". None: unknown.

    `fields`: by request field, "accepted", "refused" or "ignored". `tokens_per_chunk`: mean of a
    stream; 1 means token by token. `reasoning`: the field that holds reasoning, such as
    "reasoning_content". `early_chunks`: chunks before the first one with a token.
    `repeats_alone`, `repeats_under_load`: whether greedy text is the same again. `tokens_per_word`:
    of our prompts. `template_tokens`: those that the chat template adds. `context`: in tokens.
    `metrics`: the dialect of its /metrics. `notes`: sentences for the report about everything that
    could not be measured exactly. `lengths`: of prompts; without their words in JSON.
    """

    base_url: str
    dialect: Dialect
    model: str
    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    fields: dict[str, str] = field(default_factory=dict)
    usage: str = NEVER
    tokens_per_chunk: float | None = None
    reasoning: str | None = None
    early_chunks: int | None = None
    repeats_alone: bool | None = None
    repeats_under_load: bool | None = None
    tokens_per_word: float | None = None
    template_tokens: int | None = None
    context: int | None = None
    metrics: str | None = None
    notes: tuple[str, ...] = ()
    lengths: PromptLengths = field(default_factory=PromptLengths)

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        del data["lengths"]["words"]
        return data
