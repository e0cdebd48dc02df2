"""Endpoints like those of others: a server in a process of its own that follows a script and
records what it sends, and when.
"""

import contextlib
import itertools
import json
import os
import random
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from servers.contract.oracle import VOCABULARY
from tests.helpers.python_program import ROOT, command_of

CHAT, COMPLETIONS = "/chat/completions", "/completions"
DONE = "data: [DONE]\n\n"
EVENT = "data: {data}\n\n"
ALWAYS, LOAD = "always", "load"
Json = dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """What a request gets instead of a response: a status with a message, or events of a stream."""

    status: int = 200
    words: str = ""  # the message in OpenAI's error envelope
    events: tuple[str, ...] = ()  # as sent on the wire
    after_tokens: int = 0
    content_type: str = "text/event-stream"
    retry_after: str = ""
    when: str = ALWAYS  # LOAD: from the first request of the load generator on
    every: int = 1  # fails only every n-th request
    after_requests: int = 0
    dies: bool = False  # the whole server


@dataclass(frozen=True)
class Script:
    """What the endpoint does. By default: one word is one token, 20 ms to the first token and 5 ms
    to each further one, model "m", completions and chat below /v1, usage on request.
    """

    # the server
    root: str = "/v1"
    models: tuple[str, ...] | None = ("m",)  # None: 404
    models_refused: tuple[int, str] | None = None  # status and message of the list of models
    query: str = ""  # 404 without it
    header: str = ""  # "name: value"; 401 without it
    redirect: str = ""
    loading_s: float = 0.0  # after its start
    loading: str = "Loading model"
    endpoints: tuple[str, ...] = (CHAT, COMPLETIONS)
    metrics: str = ""  # text of /metrics, 404 if empty

    # requests
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)  # field: status and message
    required: dict[str, tuple[int, str]] = field(default_factory=dict)
    context: int | None = None
    least_tokens: int = 0  # 400 for a smaller max_tokens
    lengths: tuple[int, int] | None = (
        None  # range of tokens, whatever was requested; chosen by the prompt
    )
    heeds_max_tokens: bool = True  # whether `lengths` also ends at max_tokens

    # usage
    # asked (on request), finish (always, in the finish chunk), continuous (on request, in every
    # chunk), running (always, in every chunk), plain, never
    usage: str = "asked"
    null_usage: bool = False  # "usage": null in every other chunk
    usage_times: float = 1.0
    usage_says: Any = None  # reported instead of the count of tokens
    usage_adds_prompt: bool = False  # completion_tokens counts the prompt, too
    prompt_factor: float = 1.0  # tokens per word of a prompt
    template_tokens: int = 0  # added to each chat

    # chunks
    per_chunk: tuple[int, ...] = (1,)  # tokens per chunk, cycled
    reasoning: float = 0  # reasoning tokens of a chat, or their share if below 1
    reasoning_field: str = "reasoning_content"  # "parts": content is a list of parts
    empty_content: bool = False  # "content": "" beside reasoning
    null_reasoning: bool = False  # the reasoning field is null beside content
    parts: bool = False  # visible content is a list of parts
    early: tuple[str, ...] = ()  # events before the first token, as JSON
    one_choice: bool = True  # the usage chunk has "choices": []; False: it is a second finish chunk
    finish_with_token: bool = False  # the last chunk with a token is the finish chunk
    extras: bool = False  # meaningless fields in every chunk
    long_words: bool = False  # words of 1 to 12 letters instead of 4

    # framing
    event: tuple[str, ...] = (EVENT,)  # templates with {data} and {n}, cycled
    pretty: bool = False  # JSON on several "data:" lines
    marked: bool = False  # the stream begins with a byte order mark
    finish: str | None = "length"
    done: str = DONE
    per_write: int = 1  # events per write
    in_halves: bool = False  # each event in two writes
    until_closed: bool = False  # no chunked encoding: the connection ends with the body
    interim: tuple[str, ...] = ()  # responses before the final one
    content_type: str = "text/event-stream"

    # times
    first_s: float = 0.020
    step_s: float = 0.005  # between chunks
    at_once: bool = False  # the whole response after first_s
    probe_pace: float = 1.0  # factor of both times for requests outside the load

    # requests on a connection before the server closes it without a response to the next
    serves: int | None = None

    # failures and texts
    failure: Failure | None = None
    # stable, busy (the 20th word differs if another request is in flight), second (also if a prompt
    # repeats), cut (streams have only the first 10 words), loses (streams lack the 6th word), mixed
    # (text of the newest other request from the 11th word on), cumulative (each chunk repeats the
    # text before it), halves (each 4th word is half of a surrogate pair)
    text: str = "stable"

    # Completions have the fields of these kinds, one kind after the other.
    kinds: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of_kind(self, kind: str) -> "Script":
        return replace(self, **self.kinds[kind])

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Script":
        data = json.loads(text)
        for fields in (data, *data["kinds"].values()):
            if failure := fields.get("failure"):
                fields["failure"] = Failure(**failure)
        return cls(**data)


@dataclass
class Served:
    """A request as the server saw it; times on time.perf_counter, the same clock in all processes.
    `sent` has, for each event with tokens, when its write started and the number of tokens.
    """

    method: str
    path: str  # with the query
    at_s: float
    headers: dict[str, str]
    body: dict[str, Any]
    status: int = 0
    sent: list[tuple[float, int]] = field(default_factory=list)
    first_visible_s: float | None = None
    reasoning: int = 0
    whole: bool = False
    in_flight: int = 0  # this request included
    kind: str = ""

    @property
    def tokens(self) -> int:
        return sum(n for _, n in self.sent)

    @property
    def is_load(self) -> bool:
        return "x-request-id" in self.headers


@dataclass
class Endpoint:
    """A running scripted server. `url` has no path."""

    url: str
    record: Path

    def requests(self) -> list[Served]:
        """All requests that it has handled so far."""
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return [
            Served(**data | {"sent": [(at, n) for at, n in data["sent"]]})
            for data in map(json.loads, lines)
        ]

    def completions(self) -> list[Served]:
        return [served for served in self.requests() if served.method == "POST"]

    def load(self) -> list[Served]:
        """The requests of the load generator."""
        return [served for served in self.completions() if served.is_load]


@contextmanager
def serve_script(folder: Path, script: Script) -> Iterator[Endpoint]:
    """Run the scripted server until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "record.jsonl"
    record.unlink(missing_ok=True)
    (folder / "script.json").write_text(script.to_json())
    process = subprocess.Popen(
        command_of("serve_script", str(folder / "script.json"), str(record)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        yield Endpoint(f"http://127.0.0.1:{port}", record)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
        process.stdout.close()


class Response:
    """The words of one response, and its JSON."""

    def __init__(self, script: Script, served: Served, chat: bool, prompt: str, count: int):
        self.script, self.served, self.chat, self.count = script, served, chat, count
        self.words = words_of(prompt, count, script.long_words)
        if script.text == "halves":
            self.words[::4] = ["\ud83d"] * len(self.words[::4])
        share = script.reasoning
        self.reasoning = min(count, int(share if share >= 1 else share * count)) if chat else 0
        self.prompt_tokens = round(len(prompt.split()) * script.prompt_factor) + (
            script.template_tokens if chat else 0
        )
        served.reasoning = self.reasoning

    def envelope(self, choice: Json | None, **more: Any) -> Json:
        kind = ("chat.completion.chunk" if self.chat else "text_completion") * self.streams
        return {
            "id": "x-1",
            "object": kind or ("chat.completion" if self.chat else "text_completion"),
            "created": 1_700_000_000,
            "model": self.served.body.get("model"),
            "choices": [] if choice is None else [{"index": 0, **choice}],
            **more,
        }

    @property
    def streams(self) -> bool:
        return self.served.body.get("stream") is True

    def plain(self) -> Json:
        """The response without streaming."""
        script, content = self.script, self.content(0, self.count)
        choice = {"message": {"role": "assistant", **content}} if self.chat else content
        usage = {} if script.usage == "never" else {"usage": self.usage(self.count)}
        return self.envelope(choice | {"finish_reason": script.finish}, **usage)

    def usage(self, tokens: int) -> Json:
        script = self.script
        reported = round(tokens * script.usage_times)
        reported += self.prompt_tokens * script.usage_adds_prompt
        usage: Json = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": reported if script.usage_says is None else script.usage_says,
            "total_tokens": self.prompt_tokens + reported,
        }
        if self.reasoning:
            usage["completion_tokens_details"] = {"reasoning_tokens": min(tokens, self.reasoning)}
        return usage

    def chunks(self) -> Iterator[tuple[int, int]]:
        """[begin, end) of the tokens of each chunk; no chunk mixes reasoning and visible tokens."""
        begin = 0
        for size in itertools.cycle(self.script.per_chunk):
            if begin >= self.count:
                return
            end = min(begin + size, self.count)
            end = self.reasoning if begin < self.reasoning < end else end
            yield begin, end
            begin = end

    def content(self, begin: int, end: int) -> Json:
        """The content of a delta or message, or a text, with these tokens."""
        text = "".join(f" {word}" for word in self.words[begin:end])
        if not self.chat:
            return {"text": text}
        hidden = "".join(f" {word}" for word in self.words[begin : min(end, self.reasoning)])
        text = text[len(hidden) :]
        script = self.script
        found: Json = {"content": text} if text else {}
        if script.parts and text:
            found = {"content": [{"type": "text", "text": text}]}
        if hidden and script.reasoning_field == "parts":
            thinking = {"type": "thinking", "thinking": [{"type": "text", "text": hidden}]}
            found = {"content": [thinking, *([{"type": "text", "text": text}] if text else [])]}
        elif hidden:
            found |= {script.reasoning_field: hidden}
            if script.empty_content and not text:
                found = {"content": ""} | found
        elif script.null_reasoning:
            found = {script.reasoning_field: None} | found
        return found

    def delta(self, begin: int, end: int) -> Json:
        content = self.content(begin, end)
        if not self.script.extras:
            return {"delta": content} if self.chat else content
        if self.chat:
            nothing = {"role": "assistant", "tool_calls": None, "refusal": None, "audio": None}
            content = {"delta": nothing | content}
        return content | {"logprobs": None, "content_filter_results": {}, "stop_reason": None}


def words_of(prompt: str, count: int, long_words: bool = False) -> list[str]:
    """The greedy continuation of a prompt, which depends on the prompt alone."""
    source = random.Random(zlib.crc32(prompt.encode()))
    words = source.choices(VOCABULARY, k=count)
    return [(word * 3)[: source.randint(1, 12)] for word in words] if long_words else words
