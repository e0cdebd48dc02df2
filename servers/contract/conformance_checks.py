"""The checks of the contract, one function each. A check returns what it found, or raises
CheckFailed.

With the known-answer model, every text is compared with the closed form of
`servers/contract/oracle.py`. Other models are compared as `servers/contract/text_checks.py`
describes.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from servers.contract import oracle
from servers.contract.api import CHAT_COMPLETIONS, COMPLETIONS
from servers.contract.chunks import Chunk
from servers.contract.conformance_client import (
    STREAMED_TOKENS,
    CheckFailed,
    ConformanceClient,
    StreamedReply,
    WebSocket,
    read_events,
)
from servers.contract.text_checks import expect_same_alone, expect_text
from servers.runtime.schedstat import read_machine_wait_s

VANISHED_TOKENS = 3000
VANISHED_BOUND_S = 10.0
# how long to retry while too few cores for all may be why the timing is wrong
UNDECIDED_S = 30.0
# of a stream's time in which some thread of the machine waited for a core: with less, the machine
# did not delay the server
BUSY_SHARE = 0.1


def _length(
    client: ConformanceClient,
    what: str,
    response: Chunk | StreamedReply,
    completion: int,
    prompt: int | None = None,
) -> None:
    """Check usage and finish_reason of a response of `completion` tokens; fewer are right if the
    model ended it, where the server lets it.
    """
    if isinstance(response, StreamedReply):
        usage, reason = response.last_of("usage"), response.last_of("finish_reason")
    else:
        usage, reason = response.usage, response.finish_reason
    if usage is None:
        raise CheckFailed(f"{what} has no usage")
    counted = usage.get("completion_tokens")
    ended = client.may_end and reason == "stop" and 0 < counted < completion
    if not ended and counted != completion:
        raise CheckFailed(
            f"{what}: usage reports {counted} completion tokens, not the {completion} requested"
        )
    if prompt is not None and usage.get("prompt_tokens") != prompt:
        raise CheckFailed(
            f"{what}: usage reports {usage.get('prompt_tokens')} prompt tokens, not the {prompt}"
            " sent"
        )
    if not ended and reason != "length":
        raise CheckFailed(f"{what}: finish_reason is {reason!r}, not 'length'")


def health(client: ConformanceClient) -> str:
    if (status := client.send("GET", "/health").status) != 200:
        raise CheckFailed(f"GET /health returns {status}")
    return "200"


def models(client: ConformanceClient) -> str:
    names = [entry.get("id") for entry in client.send("GET", "/v1/models").json().get("data", [])]
    if client.model not in names:
        raise CheckFailed(f"GET /v1/models lists {names}, not {client.model!r}")
    return client.model


def metrics(client: ConformanceClient) -> str:
    reply = client.send("GET", "/metrics")
    if reply.status != 200 or b"# TYPE " not in reply.body:
        raise CheckFailed(f"GET /metrics returns {reply.status} and no Prometheus text")
    return f"{reply.body.count(b'# TYPE ')} metrics"


def plain_answers(client: ConformanceClient) -> str:
    for chat in (False, True):
        prompt = client.prompt()
        response = client.complete(prompt, 8, chat)
        what = "chat completion" if chat else "completion"
        if client.planted:
            expect_text(what, response.text, oracle.continuation(prompt, 8))
        counted = oracle.count_tokens(prompt) + chat if client.planted else None
        _length(client, what, response, 8, counted)
    return "completion and chat exact"


def max_tokens(client: ConformanceClient) -> str:
    for count in (1, 7, 19):
        prompt = client.prompt()
        response = client.complete(prompt, count)
        _length(client, f"max_tokens={count}", response, count)
        if client.planted and len(response.text.split()) != count:
            raise CheckFailed(f"max_tokens={count} returned {len(response.text.split())} tokens")
    return "1, 7 and 19 tokens exact"


def framing(client: ConformanceClient) -> str:
    for what, (_, stream) in (("completion", client.sample), ("chat", client.chat_sample)):
        _length(client, f"streamed {what}", stream, STREAMED_TOKENS)
        if client.planted and len(stream.tokens) < STREAMED_TOKENS / 2:
            raise CheckFailed(
                f"streamed {what}: {len(stream.tokens)} events for {STREAMED_TOKENS} tokens; the"
                " contract is one event per token"
            )
    return "SSE, one event per token, usage" + (", [DONE]" if client.adapt is None else "")


def trickles(client: ConformanceClient) -> str:
    for what, chat in (("completion", False), ("chat", True)):
        _, stream = client.chat_sample if chat else client.sample
        _trickles(f"the streamed {what}", stream, partial(client.fresh, chat))
    return "tokens arrive as they are generated"


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
            f"{what} is buffered: its {STREAMED_TOKENS} tokens arrived within"
            f" {1e3 * (last_s - first_s):.1f} ms, after {1e3 * first_s:.0f} ms of silence"
        )


def first_chunk(client: ConformanceClient) -> str:
    for what, chat in (("completion", False), ("chat", True)):
        _, stream = client.chat_sample if chat else client.sample
        _nothing_before_the_first_token(f"the streamed {what}", stream, partial(client.fresh, chat))
    return "nothing arrives before the first token"


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
            f"{what} starts with a chunk without a token, {1e3 * before_s:.0f} ms before the first"
            " token; load tools would count it as the first token"
        )


class ExpectedResponse(NamedTuple):
    """Whether a stream arrived as it should: `surely`, or only `maybe` if its reader had to wait
    for a processor.
    """

    surely: bool
    maybe: bool


def _always_wrong(
    what: str,
    stream: StreamedReply,
    again: Callable[[], StreamedReply],
    is_right: Callable[[StreamedReply], ExpectedResponse],
) -> StreamedReply | None:
    """Return a stream that is surely wrong, or None after one that is surely right. A server that
    lost the processor may fail: wrong are three streams, the last on a machine with free cores, or
    all in UNDECIDED_S. Raises CheckFailed if this client is too starved to decide.
    """
    wrong, has_free_cores, ends_s = 0, False, time.monotonic() + UNDECIDED_S
    while not (right := is_right(stream)).surely:
        wrong += not right.maybe
        is_late = time.monotonic() > ends_s
        if wrong >= 3 and not right.maybe and (has_free_cores or is_late):
            return stream
        if right.maybe and is_late:
            last = stream.events[-1][0]
            raise CheckFailed(
                f"the timing of {what} cannot be judged: this client waited"
                f" {1e3 * last.waited_s:.0f} of the last {1e3 * last.at_s:.0f} ms for a processor;"
                " stop other programs on this machine"
            )
        if wrong >= 3:
            time.sleep(min(1.0, UNDECIDED_S / 10))
        began_s, waited_s = time.monotonic(), read_machine_wait_s()
        stream = again()
        took_s, now_s = time.monotonic() - began_s, read_machine_wait_s()
        has_free_cores = (
            waited_s is not None and now_s is not None and now_s - waited_s < BUSY_SHARE * took_s
        )
    return None


def bad_input(client: ConformanceClient) -> str:
    def completion(**fields: Any) -> bytes:
        return json.dumps(
            {"model": client.model, "prompt": "baba", "max_tokens": 1, **fields}
        ).encode()

    def chat(messages: Any) -> bytes:
        return json.dumps({"model": client.model, "messages": messages, "max_tokens": 1}).encode()

    cases: list[tuple[str, str, str, bytes | None, tuple[int, ...], str | None]] = [
        ("broken JSON", "POST", COMPLETIONS, b'{"model": ', (400,), None),
        ("a JSON array", "POST", COMPLETIONS, b"[1]", (400,), None),
        ("invalid UTF-8", "POST", COMPLETIONS, b'{"model": "\xff"}', (400,), None),
        (
            "no prompt",
            "POST",
            COMPLETIONS,
            json.dumps({"model": client.model}).encode(),
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
            json.dumps({"model": client.model}).encode(),
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
        reply = client.send(method, path, body)
        if reply.status not in statuses:
            raise CheckFailed(
                f"{what}: status {reply.status}, expected {' or '.join(map(str, statuses))}"
            )
        if b"Traceback" in reply.body:
            raise CheckFailed(f"{what}: the response shows a stack trace")
        if method == "POST":
            error = reply.json().get("error")
            if not isinstance(error, dict) or not isinstance(error.get("message"), str):
                raise CheckFailed(f"{what}: no error.message in {reply.body[:80]!r}")
            if names and names not in error["message"] and error.get("param") != names:
                raise CheckFailed(
                    f"{what}: the error does not name {names!r}: {error['message'][:80]!r}"
                )
    return f"{len(cases)} kinds of bad requests refused correctly"


def vanished_client(client: ConformanceClient) -> str:
    _, stream = client.sample
    step = (stream.tokens[-1][0].at_s - stream.tokens[0][0].at_s) / STREAMED_TOKENS
    tokens = VANISHED_TOKENS
    while (status := _vanish(client, tokens)) != 200:
        if status != 400 or tokens < 4 * STREAMED_TOKENS:
            raise CheckFailed(f"a stream of {tokens} tokens is refused with status {status}")
        tokens //= 2  # the model has a short context
    # well before the generation would end by itself
    bound = min(VANISHED_BOUND_S, max(1.0, 0.5 * tokens * step))
    began = time.perf_counter()
    while (busy := _in_flight(client)) and time.perf_counter() - began < bound:
        time.sleep(0.1)
    took_s = time.perf_counter() - began
    # a server that blocks meanwhile reports its count only after the response has ended by itself
    if busy or took_s > 1.5 * bound:
        raise CheckFailed(
            f"the request was still in flight {took_s:.1f} s after its client had disconnected"
        )
    client.complete(client.prompt(), 1)
    if busy is None:
        return "the next request succeeds (/metrics has no serveoff_requests_in_flight to check)"
    return f"slot free after {took_s:.1f} s"


def _vanish(client: ConformanceClient, tokens: int) -> int:
    """Disconnect after the first piece of a stream; return the response's status."""
    path, body = client.build_request(client.prompt(), tokens, stream=True)
    with client.connected() as connection:
        connection.request("POST", path, json.dumps(body), client.headers)
        response = connection.getresponse()
        response.read1(65536)
    response.close()
    return response.status


def websocket(client: ConformanceClient) -> str:
    for what, chat in (("completion", False), ("chat", True)):
        prompt = client.prompt()
        path, body = client.build_request(
            prompt, STREAMED_TOKENS, chat, stream_options={"include_usage": True}
        )
        with client.websocket(path) as connection:
            again = partial(_text_over, connection, body)
            stream = _over(connection, body)
            expect_same_alone(
                client, f"the {what} over a WebSocket", prompt, chat, stream.text, again
            )
            _length(client, f"the {what} over a WebSocket", stream, STREAMED_TOKENS)
            _trickles(f"the {what} over a WebSocket", stream, partial(_over, connection, body))
            for wrong, status in (
                ({"max_tokens": -1}, 400),
                ({"model": "no-such-model"}, 404),
                ({"temperature": "warm"}, 400),
            ):
                ended, payloads = connection.send(body | wrong)
                if (
                    ended != status
                    or len(payloads) != 1
                    or not read_events(payloads).last_of("error")
                ):
                    raise CheckFailed(
                        f"{wrong} over a WebSocket: expected one message with an error and status"
                        f" {status}, not {payloads[:2]}"
                    )
            after = f"the {what} after refused ones on the same WebSocket"
            expect_same_alone(client, after, prompt, chat, again(), again)
    return "streams exact text token by token, and keeps serving after a refusal"


def _over(connection: WebSocket, body: dict[str, Any]) -> StreamedReply:
    status, payloads = connection.send(body)
    if status != 200:
        raise CheckFailed(f"a request over a WebSocket is refused: {payloads[-1:]}")
    return read_events(payloads)


def _text_over(connection: WebSocket, body: dict[str, Any]) -> str:
    return _over(connection, body).text


def _in_flight(client: ConformanceClient) -> float | None:
    """Return the requests in the server or its engine; None if /metrics does not count them."""
    lines = client.send("GET", "/metrics").body.decode(errors="replace").splitlines()
    values = [
        float(line.split()[-1])
        for line in lines
        if line.startswith(("serveoff_requests_in_flight", "serveoff_requests_running"))
    ]
    return sum(values) if values else None
