"""The planted rule, in closed form."""

import random

from servers import rule


def test_there_are_4000_different_words_of_four_letters() -> None:
    assert len(set(rule.VOCABULARY)) == rule.WORDS == 4000
    assert {len(word) for word in rule.VOCABULARY} == {4}
    assert rule.VOCABULARY[:3] == ["baba", "babe", "babi"] and rule.VOCABULARY[100] == "beba"


def test_each_word_is_followed_by_its_successor() -> None:
    for word, following in zip(
        rule.VOCABULARY, rule.VOCABULARY[1:] + rule.VOCABULARY[:1], strict=True
    ):
        assert rule.continuation(f"any words {word}", 1) == " " + following


def test_the_language_is_a_circle() -> None:
    assert rule.successor_index(rule.VOCABULARY[-1]) == 0
    assert rule.continuation_words("baba", rule.WORDS)[-1] == "baba"
    assert rule.continuation(rule.VOCABULARY[-2], 3) == f" {rule.VOCABULARY[-1]} baba babe"


def test_after_anything_outside_the_vocabulary_it_begins_again() -> None:
    for prompt in ("", "  \n", "Hello", "baba hello", "baba BABE", "baba."):
        assert rule.continuation(prompt, 2) == " baba babe"


def test_a_continuation_of_a_continuation_goes_on() -> None:
    """So an answer may be checked piece by piece, and counts of prompt and answer add up."""
    words = random.Random(1)
    for _ in range(100):
        prompt = " ".join(words.sample(rule.VOCABULARY, words.randint(1, 20)))
        first = rule.continuation(prompt, 7)
        assert rule.continuation(prompt, 12) == first + rule.continuation(prompt + first, 5)
        assert rule.count_tokens(prompt + first) == rule.count_tokens(prompt) + 7


def test_any_whitespace_separates_words() -> None:
    assert rule.count_tokens(" baba\n babe\tbabi  ") == 3
    assert rule.successor_index("baba\n") == 1


def test_a_chat_is_its_messages_with_role_markers_and_nothing_behind() -> None:
    assert (
        rule.chat_text([("system", "be kind"), ("user", "baba babe")])
        == "<|system|> be kind <|user|> baba babe"
    )
    assert rule.continuation(rule.chat_text([("user", "baba")]), 1) == " babe"
