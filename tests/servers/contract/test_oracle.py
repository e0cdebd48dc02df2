"""The oracle: the known-answer model's text in closed form."""

import random

from servers.contract import oracle


def test_there_are_4000_different_words_of_four_letters() -> None:
    assert len(set(oracle.VOCABULARY)) == oracle.WORDS == 4000
    assert {len(word) for word in oracle.VOCABULARY} == {4}
    assert oracle.VOCABULARY[:3] == ["baba", "babe", "babi"] and oracle.VOCABULARY[100] == "beba"


def test_each_word_is_followed_by_its_successor() -> None:
    for word, following in zip(
        oracle.VOCABULARY, oracle.VOCABULARY[1:] + oracle.VOCABULARY[:1], strict=True
    ):
        assert oracle.continuation(f"any words {word}", 1) == " " + following


def test_the_last_word_is_followed_by_the_first() -> None:
    assert oracle.successor_index(oracle.VOCABULARY[-1]) == 0
    assert oracle.continuation_words("baba", oracle.WORDS)[-1] == "baba"
    assert oracle.continuation(oracle.VOCABULARY[-2], 3) == f" {oracle.VOCABULARY[-1]} baba babe"


def test_after_an_unknown_word_it_starts_again() -> None:
    for prompt in ("", "  \n", "Hello", "baba hello", "baba BABE", "baba."):
        assert oracle.continuation(prompt, 2) == " baba babe"


def test_a_continuation_can_be_continued() -> None:
    """So a response can be checked piece by piece, and counts of prompt and response add up."""
    words = random.Random(1)
    for _ in range(100):
        prompt = " ".join(words.sample(oracle.VOCABULARY, words.randint(1, 20)))
        first = oracle.continuation(prompt, 7)
        assert oracle.continuation(prompt, 12) == first + oracle.continuation(prompt + first, 5)
        assert oracle.count_tokens(prompt + first) == oracle.count_tokens(prompt) + 7


def test_any_whitespace_separates_words() -> None:
    assert oracle.count_tokens(" baba\n babe\tbabi  ") == 3
    assert oracle.successor_index("baba\n") == 1


def test_a_chat_is_its_messages_with_role_markers_and_nothing_after_them() -> None:
    assert (
        oracle.chat_text([("system", "be kind"), ("user", "baba babe")])
        == "<|system|> be kind <|user|> baba babe"
    )
    assert oracle.continuation(oracle.chat_text([("user", "baba")]), 1) == " babe"
