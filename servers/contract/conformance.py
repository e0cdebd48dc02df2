"""Does a server keep the contract, and is it honest? `verify(url)` runs each check against any base
URL.

With the planted model every text is compared with the closed form of `servers/contract/oracle.py`;
with another model streamed answers are compared with plain ones and concurrent ones with serial
ones. What asks is `servers/contract/conformance_client.py`.
"""

import http.client
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from servers.contract import oracle
from servers.contract.api import CHAT_COMPLETIONS, COMPLETIONS
from servers.contract.conformance_client import (
    STREAMED_TOKENS,
    CheckFailed,
    ConformanceClient,
    NoResponse,
    StreamedReply,
    WebSocket,
    read_events,
)

VANISHED_TOKENS = 3000
VANISHED_BOUND_S = 10.0
# for so long streams are asked for of which this client cannot tell when they came
UNDECIDED_S = 30.0


@dataclass(frozen=True)
class ConformanceCheck:
    name: str
    ok: bool
    detail: str


def _same(what: str, said: str, expected: str) -> None:
    if said != expected:
        a, b = said.split(), expected.split()
        at = next(
            (i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]),
            min(len(a), len(b)),
        )
        raise CheckFailed(
            f"{what} differs from the right answer at word {at + 1}: {' '.join(a[at : at + 3])!r}"
            f" instead of {' '.join(b[at : at + 3])!r} ({len(a)} words instead of {len(b)})"
        )


def _usage(what: str, usage: dict[str, Any] | None, completion: int, prompt: int | None) -> None:
    if usage is None:
        raise CheckFailed(f"{what} has no usage")
    if usage.get("completion_tokens") != completion:
        raise CheckFailed(
            f"{what}: usage says {usage.get('completion_tokens')} completion tokens, asked were"
            f" {completion}"
        )
    if prompt is not None and usage.get("prompt_tokens") != prompt:
        raise CheckFailed(
            f"{what}: usage says {usage.get('prompt_tokens')} prompt tokens, sent were {prompt}"
        )


# --- checks


def health(probe: ConformanceClient) -> str:
    if (status := probe.ask("GET", "/health").status) != 200:
        raise CheckFailed(f"GET /health gives {status}")
    return "200"


def models(probe: ConformanceClient) -> str:
    names = [entry.get("id") for entry in probe.ask("GET", "/v1/models").json().get("data", [])]
    if probe.model not in names:
        raise CheckFailed(f"GET /v1/models does not list {probe.model!r} but {names}")
    return probe.model


def metrics(probe: ConformanceClient) -> str:
    reply = probe.ask("GET", "/metrics")
    if reply.status != 200 or b"# TYPE " not in reply.body:
        raise CheckFailed(f"GET /metrics gives {reply.status} and no Prometheus text")
    return f"{reply.body.count(b'# TYPE ')} metrics"


def plain_answers(probe: ConformanceClient) -> str:
    for chat in (False, True):
        prompt = probe.prompt()
        said = probe.complete(prompt, 8, chat)
        what = "chat completion" if chat else "completion"
        if probe.planted:
            _same(what, said.text, oracle.continuation(prompt, 8))
        _usage(what, said.usage, 8, oracle.count_tokens(prompt) + chat if probe.planted else None)
        if said.finish_reason != "length":
            raise CheckFailed(f"{what}: finish_reason is {said.finish_reason!r}, not 'length'")
    return "completion and chat exact"


def max_tokens(probe: ConformanceClient) -> str:
    for count in (1, 7, 19):
        prompt = probe.prompt()
        said = probe.complete(prompt, count)
        _usage(f"max_tokens={count}", said.usage, count, None)
        if probe.planted and len(said.text.split()) != count:
            raise CheckFailed(f"max_tokens={count} gave {len(said.text.split())} tokens")
    return "1, 7 and 19 tokens exact"


def framing(probe: ConformanceClient) -> str:
    for what, (_, stream) in (("completion", probe.sample), ("chat", probe.chat_sample)):
        usage = stream.last_of("usage")
        _usage(f"streamed {what}", usage, STREAMED_TOKENS, None)
        if stream.last_of("finish_reason") != "length":
            raise CheckFailed(
                f"streamed {what}: finish_reason is {stream.last_of('finish_reason')!r}, not"
                " 'length'"
            )
        if probe.planted and len(stream.tokens) < STREAMED_TOKENS / 2:
            raise CheckFailed(
                f"streamed {what}: {len(stream.tokens)} events for {STREAMED_TOKENS} tokens; one"
                " event a token is the contract"
            )
    return "SSE, one event a token, usage, [DONE]"


def stream_exact(probe: ConformanceClient) -> str:
    for chat, (prompt, stream) in ((False, probe.sample), (True, probe.chat_sample)):
        _same(
            "the streamed " + ("chat" if chat else "completion"),
            stream.text,
            probe.expected(prompt, STREAMED_TOKENS, chat),
        )
    return f"{STREAMED_TOKENS} tokens, none lost or doubled"


def trickles(probe: ConformanceClient) -> str:
    for what, chat in (("completion", False), ("chat", True)):
        _, stream = probe.chat_sample if chat else probe.sample
        _trickles(f"the streamed {what}", stream, partial(probe.fresh, chat))
    return "tokens come as they are made"


def _trickles(what: str, stream: StreamedReply, again: Callable[[], StreamedReply]) -> None:
    def is_right(stream: StreamedReply) -> ExpectedResponse:
        first, last = stream.tokens[0][0], stream.tokens[-1][0]
        took_s = last.at_s - first.at_s
        generating = (stream.last_of("timings") or {}).get("predicted_ms")
        least_s = 0.5 * generating / 1e3 if generating is not None else 0.25 * last.at_s
        return ExpectedResponse(
            max(0.0, took_s - last.waited_s) >= least_s, took_s + first.waited_s >= least_s
        )

    if wrong := _always_wrong(what, stream, again, is_right):
        first_s, last_s = wrong.tokens[0][0].at_s, wrong.tokens[-1][0].at_s
        raise CheckFailed(
            f"{what} is buffered: its {STREAMED_TOKENS} tokens came within"
            f" {1e3 * (last_s - first_s):.1f} ms, after {1e3 * first_s:.0f} ms of silence"
        )


def first_chunk(probe: ConformanceClient) -> str:
    for what, chat in (("completion", False), ("chat", True)):
        _, stream = probe.chat_sample if chat else probe.sample
        _nothing_before_the_first_token(f"the streamed {what}", stream, partial(probe.fresh, chat))
    return "nothing comes before the first token"


def _nothing_before_the_first_token(
    what: str, stream: StreamedReply, again: Callable[[], StreamedReply]
) -> None:
    def is_right(stream: StreamedReply) -> ExpectedResponse:
        event, token = stream.events[0][0], stream.tokens[0][0]
        before_s, most_s = token.at_s - event.at_s, max(0.005, 0.2 * token.at_s)
        return ExpectedResponse(
            before_s + event.waited_s <= most_s, before_s - token.waited_s <= most_s
        )

    if wrong := _always_wrong(what, stream, again, is_right):
        before_s = wrong.tokens[0][0].at_s - wrong.events[0][0].at_s
        raise CheckFailed(
            f"{what} begins with a chunk without a token, {1e3 * before_s:.0f} ms before the first"
            " token: tools would take it for the first token"
        )


class ExpectedResponse(NamedTuple):
    """Whether a stream came as it should: of one for which its reader waited for a processor,
    neither is known.
    """

    surely: bool
    maybe: bool


def _always_wrong(
    what: str,
    stream: StreamedReply,
    again: Callable[[], StreamedReply],
    is_right: Callable[[StreamedReply], ExpectedResponse],
) -> StreamedReply | None:
    """The third stream that is surely wrong (a server that lost the processor for a moment does it
    once), or None after one that is surely right. Raises Failed if this machine lets nobody tell.
    """
    wrong, ends_s = 0, time.monotonic() + UNDECIDED_S
    while not (right := is_right(stream)).surely:
        wrong += not right.maybe
        if wrong == 3:
            return stream
        if right.maybe and time.monotonic() > ends_s:
            last = stream.events[-1][0]
            raise CheckFailed(
                f"how {what} comes cannot be told: of the last one's {1e3 * last.at_s:.0f} ms, this"
                f" client waited {1e3 * last.waited_s:.0f} for a processor; end what else runs on"
                " this machine"
            )
        stream = again()
    return None


def no_cross_talk(probe: ConformanceClient) -> str:
    prompts = [probe.prompt() for _ in range(8)]
    expected = [probe.expected(prompt, 24) for prompt in prompts]

    def ask(index: int) -> str:
        if index % 2:
            return probe.stream(prompts[index], 24).text
        return probe.complete(prompts[index], 24).text

    with ThreadPoolExecutor(len(prompts)) as pool:
        for index, said in enumerate(pool.map(ask, range(len(prompts)))):
            _same(f"answer {index + 1} of {len(prompts)} in flight", said, expected[index])
    return f"{len(prompts)} different requests in flight, each exact"


def bad_input(probe: ConformanceClient) -> str:
    def completion(**fields: Any) -> bytes:
        return json.dumps(
            {"model": probe.model, "prompt": "baba", "max_tokens": 1, **fields}
        ).encode()

    def chat(messages: Any) -> bytes:
        return json.dumps({"model": probe.model, "messages": messages, "max_tokens": 1}).encode()

    cases: list[tuple[str, str, str, bytes | None, tuple[int, ...], str | None]] = [
        ("broken JSON", "POST", COMPLETIONS, b'{"model": ', (400,), None),
        ("a JSON array", "POST", COMPLETIONS, b"[1]", (400,), None),
        ("invalid UTF-8", "POST", COMPLETIONS, b'{"model": "\xff"}', (400,), None),
        (
            "no prompt",
            "POST",
            COMPLETIONS,
            json.dumps({"model": probe.model}).encode(),
            (400,),
            "prompt",
        ),
        ("a number as prompt", "POST", COMPLETIONS, completion(prompt=5), (400,), "prompt"),
        ("max_tokens -1", "POST", COMPLETIONS, completion(max_tokens=-1), (400,), "max_tokens"),
        (
            "max_tokens as text",
            "POST",
            COMPLETIONS,
            completion(max_tokens="many"),
            (400,),
            "max_tokens",
        ),
        (
            "max_tokens beyond the context",
            "POST",
            COMPLETIONS,
            completion(max_tokens=10**9),
            (400,),
            None,
        ),
        ("temperature -1", "POST", COMPLETIONS, completion(temperature=-1), (400,), "temperature"),
        (
            "no messages",
            "POST",
            CHAT_COMPLETIONS,
            json.dumps({"model": probe.model}).encode(),
            (400,),
            "messages",
        ),
        ("messages as text", "POST", CHAT_COMPLETIONS, chat("baba"), (400,), "messages"),
        ("an unknown model", "POST", COMPLETIONS, completion(model="no-such-model"), (404,), None),
        ("an unknown path", "GET", "/v1/nothing", None, (404,), None),
        ("GET where POST is meant", "GET", COMPLETIONS, None, (405,), None),
        (
            "a body of 5 MB",
            "POST",
            COMPLETIONS,
            completion(prompt="baba " * 1_000_000),
            (400, 413),
            None,
        ),
    ]
    for what, method, path, body, statuses, names in cases:
        reply = probe.ask(method, path, body)
        if reply.status not in statuses:
            raise CheckFailed(
                f"{what}: status {reply.status}, expected {' or '.join(map(str, statuses))}"
            )
        if b"Traceback" in reply.body:
            raise CheckFailed(f"{what}: the answer shows a stack trace")
        if method == "POST":
            error = reply.json().get("error")
            if not isinstance(error, dict) or not isinstance(error.get("message"), str):
                raise CheckFailed(f"{what}: no error.message in {reply.body[:80]!r}")
            if names and names not in error["message"] and error.get("param") != names:
                raise CheckFailed(
                    f"{what}: the error does not name {names!r}: {error['message'][:80]!r}"
                )
    return f"{len(cases)} kinds refused as they should be"


def vanished_client(probe: ConformanceClient) -> str:
    _, stream = probe.sample
    step = (stream.tokens[-1][0].at_s - stream.tokens[0][0].at_s) / STREAMED_TOKENS
    # well before it would end by itself
    bound = min(VANISHED_BOUND_S, max(1.0, 0.5 * VANISHED_TOKENS * step))
    path, body = probe.request(probe.prompt(), VANISHED_TOKENS, stream=True)
    with probe.connected() as connection:
        connection.request("POST", path, json.dumps(body), probe.headers)
        response = connection.getresponse()
        if response.status != 200:
            raise CheckFailed(f"status {response.status}: {response.read(200)!r}")
        response.read1(65536)
    response.close()
    began = time.perf_counter()
    while (busy := _in_flight(probe)) and time.perf_counter() - began < bound:
        time.sleep(0.1)
    took_s = time.perf_counter() - began
    # a server that stands still meanwhile says so only when the answer has ended by itself
    if busy or took_s > 1.5 * bound:
        raise CheckFailed(
            f"a request is in flight until {took_s:.1f} s after its client had gone, or longer"
        )
    probe.complete(probe.prompt(), 1)
    if busy is None:
        return (
            "the next request is answered (no serveoff_requests_in_flight in /metrics to see more)"
        )
    return f"slot free after {took_s:.1f} s"


def websocket(probe: ConformanceClient) -> str:
    for what, chat in (("completion", False), ("chat", True)):
        prompt = probe.prompt()
        path, body = probe.request(
            prompt, STREAMED_TOKENS, chat, stream_options={"include_usage": True}
        )
        expected = probe.expected(prompt, STREAMED_TOKENS, chat)
        with probe.websocket(path) as connection:
            stream = _over(connection, body)
            _same(f"the {what} over a WebSocket", stream.text, expected)
            _usage(f"the {what} over a WebSocket", stream.last_of("usage"), STREAMED_TOKENS, None)
            _trickles(f"the {what} over a WebSocket", stream, partial(_over, connection, body))
            for wrong, status in (
                ({"max_tokens": -1}, 400),
                ({"model": "no-such-model"}, 404),
                ({"temperature": "warm"}, 400),
            ):
                said, payloads = connection.ask(body | wrong)
                if (
                    said != status
                    or len(payloads) != 1
                    or not read_events(payloads).last_of("error")
                ):
                    raise CheckFailed(
                        f"{wrong} over a WebSocket: not one message with an error and status"
                        f" {status} but {payloads[:2]}"
                    )
            _same(
                f"the {what} after refused ones on the same WebSocket",
                _over(connection, body).text,
                expected,
            )
    return "streams exactly, as tokens are made, and serves on after a refusal"


def _over(connection: WebSocket, body: dict[str, Any]) -> StreamedReply:
    status, payloads = connection.ask(body)
    if status != 200:
        raise CheckFailed(f"over a WebSocket a request is refused: {payloads[-1:]}")
    return read_events(payloads)


def _in_flight(probe: ConformanceClient) -> float | None:
    """Requests that hold anything, in the server or in its engine; None if it does not say."""
    lines = probe.ask("GET", "/metrics").body.decode(errors="replace").splitlines()
    values = [
        float(line.split()[-1])
        for line in lines
        if line.startswith(("serveoff_requests_in_flight", "serveoff_requests_running"))
    ]
    return sum(values) if values else None


Checks = tuple[Callable[[ConformanceClient], str], ...]
CHECKS: Checks = (
    health,
    models,
    metrics,
    plain_answers,
    max_tokens,
    framing,
    stream_exact,
    trickles,
    first_chunk,
    no_cross_talk,
    bad_input,
    vanished_client,
)

# After a load: what load could have broken. And all that is asked of a server that is not ours: it
# need not have our /health or /metrics, and how it words its errors is its own business.
AFTER_LOAD: Checks = (plain_answers, framing, stream_exact, trickles, no_cross_talk)
FOREIGN: Checks = (
    models,
    plain_answers,
    max_tokens,
    framing,
    stream_exact,
    trickles,
    first_chunk,
    no_cross_talk,
)


def select_checks(
    foreign: bool, waived: Sequence[str] = (), transports: Sequence[str] = ()
) -> Checks:
    asked = (*(FOREIGN if foreign else CHECKS), *([websocket] if "websocket" in transports else []))
    return tuple(check for check in asked if check.__name__ not in waived)


def verify_server(
    url: str, *, model: str | None = None, planted: bool | None = None, checks: Checks = CHECKS
) -> list[ConformanceCheck]:
    """One Check for each; none after one in which the server stood still. `model`: the first of
    /v1/models if not given; `planted`: by the model's name if not given.
    """
    probe = ConformanceClient(url.rstrip("/"), model or "", False)
    if model is None:
        try:
            probe.model = probe.ask("GET", "/v1/models").json()["data"][0]["id"]
        except (CheckFailed, LookupError, TypeError) as error:
            return [
                ConformanceCheck(
                    "models",
                    False,
                    f"GET /v1/models names no model ({error}): give one with --model",
                )
            ]
    probe.planted = probe.model in oracle.PLANTED_MODELS if planted is None else planted
    results = []
    for check in checks:
        try:
            results.append(ConformanceCheck(check.__name__, True, check(probe)))
        except CheckFailed as error:
            results.append(ConformanceCheck(check.__name__, False, str(error)))
            if isinstance(error, NoResponse):
                break
        # answers of a strange shape
        except (
            OSError,
            http.client.HTTPException,
            LookupError,
            TypeError,
            AttributeError,
        ) as error:
            results.append(
                ConformanceCheck(check.__name__, False, f"{type(error).__name__}: {error}")
            )
    return results


def ask_fixed_prompts(url: str, model: str, count: int = 4, tokens: int = 16) -> list[str]:
    """Greedy answers to fixed prompts, to compare servers with each other where no rule says what
    is right. Raises Failed.
    """
    probe = ConformanceClient(url.rstrip("/"), model, False)
    return [probe.complete(probe.prompt(), tokens).text for _ in range(count)]


def format_checks(checks: list[ConformanceCheck]) -> str:
    return "\n".join(
        f"{'ok  ' if check.ok else 'FAIL'}  {check.name:16} {check.detail}" for check in checks
    )
