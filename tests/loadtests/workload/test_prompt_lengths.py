"""Prompts have the asked length in the server's tokens, whatever its tokenizer and its template."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from loadtests.workload.prompts import Prompt, PromptMessage, make_prompt, shortest_prompt
from servers.profile import prompt_lengths
from servers.profile.prompt_lengths import Messages, PromptLengths, measure_lengths

TEMPLATE, ROLE, DEFAULT_SYSTEM = 9, 4, 21
CONTEXT = 4096

CountText = Callable[[str], int]


def of_factor(factor: float) -> CountText:
    return lambda text: round(factor * len(text.split()))


def in_pieces(longest: int) -> CountText:
    """Words of up to so many letters are one token, longer ones have several."""
    return lambda text: sum(-(-len(word) // longest) for word in text.split())


TOKENIZERS = {
    "one token a word": in_pieces(99),
    "2.1 tokens a word": of_factor(2.1),
    "3 tokens a word": of_factor(3),
    "long words have several": in_pieces(6),
    "2 to 3 tokens a word": in_pieces(2),
    "a letter is a token": len,
}


def server(tokenizer: CountText, has_system_prompt: bool = False) -> Callable[[str, Messages], int]:
    """A server's count of a prompt: of each text and role, and of its template. It may have a
    system message of its own, which one in the request replaces.
    """

    def count(kind: str, messages: Messages) -> int:
        texts = sum(tokenizer(text) for _, text in messages)
        if kind == "completions":
            return texts + 1
        own = DEFAULT_SYSTEM if has_system_prompt and messages[0][0] != "system" else 0
        return texts + TEMPLATE + ROLE * len(messages) + own

    return count


def real(count: Callable[[str, Messages], int], kind: str, prompt: Prompt) -> int:
    history = [(message.role, message.text) for message in prompt.history]
    return count(kind, [*history, ("user", prompt.text)])


def scenario(kind: str, tokens: int, **more: Any) -> dict[str, Any]:
    return {"endpoint": kind, "prompt_tokens": [tokens, tokens], "output_tokens": [8, 8], **more}


@pytest.mark.parametrize("has_system_prompt", [False, True], ids=["plain", "system prompt"])
@pytest.mark.parametrize("way", ["usage", "tokenizer"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_lengths_are_right(tokenizer: CountText, way: str, has_system_prompt: bool) -> None:
    count = server(tokenizer, has_system_prompt)
    lengths = measure_lengths(
        ["chat", "completions"], count, count_text=tokenizer if way == "tokenizer" else None
    )

    def is_near(found: int, asked: int) -> bool:
        return abs(found - asked) <= max(0.03 * asked, math.ceil(lengths.per_word))

    for kind in ("chat", "completions"):
        least = 64 if kind == "chat" else 16  # no chat is shorter than its template
        for tokens in [n for n in (16, 24, 64, 100, 333, 1000, 3000) if n >= least]:
            prompt = make_prompt("1", scenario(kind, tokens), 0, tokens, lengths=lengths)
            found = real(count, kind, prompt)
            assert is_near(found, tokens) and is_near(found, prompt.tokens or 0), (kind, tokens)
        shared = scenario(kind, 100, shared_tokens=500)
        assert is_near(real(count, kind, make_prompt("1", shared, 0, 1, lengths=lengths)), 600)
    history: tuple[PromptMessage, ...] = ()
    for turn in range(4):
        prompt = make_prompt("1", scenario("chat", 90), 0, turn, None, history, lengths)
        assert is_near(real(count, "chat", prompt), prompt.tokens or 0), turn
        response = " ".join(random.Random(turn).choices(prompt_lengths.WORDS, k=30))
        history = (
            *prompt.history,
            PromptMessage("user", prompt.text, prompt.text_tokens),
            PromptMessage("assistant", response, tokenizer(response)),
        )


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_no_prompt_exceeds_the_context_by_a_miscount(tokenizer: CountText) -> None:
    count = server(tokenizer)
    found = measure_lengths(["chat", "completions"], count).to_json() | {"context": CONTEXT}
    lengths = PromptLengths.from_json(found)
    for kind in ("chat", "completions"):
        longest = scenario(kind, CONTEXT - 8)
        for turn in range(20):
            prompt = make_prompt("1", longest, 0, turn, lengths=lengths)
            assert 0.9 * CONTEXT < real(count, kind, prompt) <= CONTEXT - prompt.max_tokens


def test_a_prompt_cannot_be_shorter_than_its_template() -> None:
    count = server(in_pieces(99), has_system_prompt=True)
    lengths = measure_lengths(["chat", "completions"], count)
    for kind, asked, least in (("chat", 16, 40), ("chat", 50, 50), ("completions", 16, 16)):
        table = scenario(kind, asked)
        found = real(count, kind, make_prompt("1", table, 0, 0, lengths=lengths))
        assert shortest_prompt(table, lengths) == least == found, (kind, asked)


def test_a_server_that_counts_nothing_gets_a_token_a_word() -> None:
    for answer in (None, 1):
        lengths = measure_lengths(["chat"], lambda *_, answer=answer: answer)
        assert lengths.source == "assumed" and lengths.per_word == 1
