"""One request to a scripted endpoint of each kind: the client reads its tokens, and on time."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from loadtests.client import http, response
from loadtests.client.blocking import make_blocking_connection
from tests.helpers.endpoint_kinds import FRAMES, NO_SUCCESS, SHAPES, THINKS
from tests.helpers.endpoint_script import Failure, Script, Served, serve_script, words_of

PROMPT, TOKENS = "baba bebe", 24
PATIENCE_S = 30.0  # against hanging; not a measurement
LATE_S = 0.005


def ask(
    folder: Path, script: Script, requests: int = 1
) -> tuple[list[http.Exchange], list[response.ParsedResponse], list[Served]]:
    """Sends chats one after the other, on one connection if it stays open."""
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    exchanges = [http.Exchange() for _ in range(requests)]
    with serve_script(folder, script) as endpoint:
        connection = make_blocking_connection(endpoint.url, PATIENCE_S)
        for exchange in exchanges:
            connection.post("/v1/chat/completions", json.dumps(body).encode(), exchange)
        connection.close()
    parsed = [response.parse_response(exchange) for exchange in exchanges]
    return exchanges, parsed, endpoint.completions()


@pytest.mark.parametrize("kind", [*FRAMES, *SHAPES])
def test_a_whole_response(tmp_path: Path, kind: str) -> None:
    script: dict[str, Any] = FRAMES.get(kind) or SHAPES[kind]
    _, [parsed], [served] = ask(tmp_path, Script(first_s=0.02, step_s=0.004, **script))
    assert parsed.error is None and parsed.error_detail is None
    assert "".join(parsed.token_text).split() == words_of(PROMPT, TOKENS)
    assert len(parsed.token_s) == TOKENS
    if "one" not in kind and script.get("usage") != "never":
        assert parsed.tokens == TOKENS
    sent_s = [at for at, n in served.sent for _ in range(n)]
    late_s = [seen - sent for seen, sent in zip(parsed.token_s, sent_s, strict=True)]
    assert 0 <= statistics.median(late_s) < LATE_S and min(late_s) > -0.001


@pytest.mark.parametrize("kind", THINKS)
def test_reasoning(tmp_path: Path, kind: str) -> None:
    """16 tokens are reasoning, then 8 are visible."""
    script = Script(first_s=0.02, step_s=0.004, **THINKS[kind] | {"reasoning": 16})
    _, [parsed], [served] = ask(tmp_path, script)
    assert "".join(parsed.token_text).split() == words_of(PROMPT, TOKENS)
    hidden = set(parsed.reasoning_chunks)
    visible = [text for i, text in enumerate(parsed.token_text) if i not in hidden]
    assert "".join(visible).split() == words_of(PROMPT, TOKENS)[16:]
    assert parsed.first_visible_s is not None and served.first_visible_s is not None
    assert -0.001 < parsed.first_visible_s - served.first_visible_s < 4 * LATE_S


@pytest.mark.parametrize("kind", NO_SUCCESS)
def test_no_success(tmp_path: Path, kind: str) -> None:
    events, after, words = NO_SUCCESS[kind]
    content_type = "text/html" if kind == "HTML" else "text/event-stream"
    failure = Failure(events=events, after_tokens=after, content_type=content_type)
    _, [parsed], _ = ask(tmp_path, Script(failure=failure))
    assert parsed.error
    for word in words:
        assert word in f"{parsed.error} {parsed.error_detail}"
    assert len(f"{parsed.error_detail}") <= 200


@pytest.mark.parametrize("count", [1, 2])
def test_a_request_on_a_reused_connection_that_closes_is_sent_once_more(
    tmp_path: Path, count: int
) -> None:
    exchanges, parsed, served = ask(tmp_path, Script(serves=count), requests=4)
    assert [each.error for each in parsed] == [None] * 4
    assert [each.resent for each in exchanges].count(True) == (3 if count == 1 else 1)
    assert len(served) == 4


def test_a_request_on_a_new_connection_that_closes_is_not_sent_again(tmp_path: Path) -> None:
    [exchange], [parsed], _ = ask(tmp_path, Script(serves=0))
    assert parsed.error and not exchange.resent


def test_secrets_are_not_kept(tmp_path: Path) -> None:
    words = "Incorrect API key provided: sk-abcdefghijklmnop. " + 50 * "More words. "
    _, [parsed], _ = ask(tmp_path, Script(failure=Failure(401, words)))
    assert parsed.error == "http 401"
    assert "Incorrect API key" in f"{parsed.error_detail}"
    assert "abcdefghijklmnop" not in f"{parsed.error_detail}"
    assert len(f"{parsed.error_detail}") <= 200
