"""Options that make the simulated engine behave like others: the end of text, chunks of several
tokens, reasoning, early chunks, words of several tokens, and usage per chunk.

Times are only checked from below and by order, as in test_engines.py.
"""

from typing import Any

from servers.contract import oracle
from servers.contract.api import ChatCompletionRequest, ChatMessage, Piece
from servers.engines import simulated
from tests.helpers.heard_generation import completion
from tests.helpers.simulated_engine import QUICK, both, hear


def chat(text: str = "baba", **more: Any) -> ChatCompletionRequest:
    message = ChatMessage(role="user", content=text)
    return ChatCompletionRequest(model="m", messages=[message], temperature=0, **more)


@both
def test_a_chat_without_max_tokens_ends_by_itself(kind: str) -> None:
    for more, reason in (({}, "stop"), ({"ignore_eos": True}, "length")):
        (heard,) = hear(kind, chat(**more), prefill_ms=0, step_ms=0)
        assert heard.outcome and heard.outcome.finish_reason == reason
        assert heard.text == oracle.continuation("baba", simulated.OPEN_TOKENS)


@both
def test_the_text_ends_where_the_option_puts_the_end(kind: str) -> None:
    for max_tokens, more, tokens, reason in (
        (20, {}, 7, "stop"),
        (None, {}, 7, "stop"),
        (7, {}, 7, "length"),
        (5, {}, 5, "length"),
        (20, {"ignore_eos": True}, 20, "length"),
    ):
        request = chat(max_tokens=max_tokens, **more)
        (heard,) = hear(kind, request, prefill_ms=0, step_ms=0, end_of_text=7)
        assert heard.outcome and heard.text == oracle.continuation("baba", tokens)
        assert (heard.outcome.completion_tokens, heard.outcome.finish_reason) == (tokens, reason)


@both
def test_several_tokens_arrive_in_one_chunk_after_as_many_steps(kind: str) -> None:
    (heard,) = hear(kind, completion("baba", 10), prefill_ms=20, step_ms=5, tokens_per_chunk=4)
    assert [len(piece.split()) for piece in heard.pieces] == [4, 4, 2]
    assert heard.text == oracle.continuation("baba", 10)
    for i, at in enumerate(heard.times):
        assert at - heard.asked >= 0.020 + i * 4 * 0.005
    assert heard.outcome and heard.outcome.completion_tokens == 10
    (heard,) = hear(kind, completion("baba", 10, stop="babu"), step_ms=0, tokens_per_chunk=4)
    assert heard.text == " babe babi babo " and heard.outcome
    assert (heard.outcome.completion_tokens, heard.outcome.finish_reason) == (4, "stop")


@both
def test_a_share_of_a_chats_tokens_is_reasoning(kind: str) -> None:
    times = {"prefill_ms": 0, "step_ms": 0, "reasoning_share": 0.7, "tokens_per_chunk": 2}
    (heard,) = hear(kind, chat(max_tokens=10), **times)
    pieces = [(len(piece.split()), getattr(piece, "reasoning", False)) for piece in heard.pieces]
    assert pieces == [(2, True), (2, True), (2, True), (1, True), (2, False), (1, False)]
    assert heard.outcome and heard.text == oracle.continuation("baba", 10)
    assert heard.outcome.reasoning == oracle.continuation("baba", 7)
    assert heard.outcome.usage()["completion_tokens_details"] == {"reasoning_tokens": 7}
    (heard,) = hear(kind, completion("baba", 10), **times)
    assert heard.outcome and not heard.outcome.reasoning_tokens


@both
def test_an_early_chunk_arrives_before_the_slot(kind: str) -> None:
    asked = [chat(max_tokens=5, stream=True)] * 2
    first, second = hear(kind, *asked, prefill_ms=40, step_ms=2, max_batch=1, early_chunk=1)
    assert first.pieces[0] == second.pieces[0] == "" and len(first.pieces) == 6
    assert second.times[0] < first.times[1], "it waited for its slot"
    (plain,) = hear(kind, chat(max_tokens=5), early_chunk=1, **QUICK)
    assert len(plain.pieces) == 5


@both
def test_a_word_may_be_several_tokens(kind: str) -> None:
    (heard,) = hear(kind, chat("bebe baba", max_tokens=7), tokens_per_word=2, **QUICK)
    assert heard.pieces == [" b", "abe", " b", "abi", " b", "abo", " b"]
    assert heard.outcome and heard.outcome.prompt_tokens == 6
    assert heard.outcome.completion_tokens == 7


@both
def test_each_chunk_has_the_tokens_so_far_on_request(kind: str) -> None:
    asked = {"include_usage": True, "continuous_usage_stats": True}
    request = completion("baba", 7, stream_options=asked, stop="babu baba")
    (heard,) = hear(kind, request, prefill_ms=0, step_ms=0, tokens_per_chunk=2)
    assert heard.text == oracle.continuation("baba", 7)
    # " babu" is held back until the following text is known
    usages = [piece.usage for piece in heard.pieces if isinstance(piece, Piece)]
    assert [usage and usage["completion_tokens"] for usage in usages] == [2, 4, 6, 7]
    assert usages[0] and usages[0]["prompt_tokens"] == 1
