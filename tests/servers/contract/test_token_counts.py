"""Distributing the tokens of usage over the chunks that carried them."""

import random

import pytest

from servers.contract.token_counts import (
    CONTINUOUS,
    COUNTED,
    USAGE,
    count_tokens,
    estimate_tokens,
    is_credible,
    read_count,
    read_reasoning_count,
)


def texts(*sizes):
    return ["x" * size for size in sizes]


def test_one_chunk_per_token_stays_one():
    assert count_tokens(texts(5, 1, 9), [1, 1, 1], tokens=3) == ([1, 1, 1], USAGE, 0)


def test_the_end_of_text_has_no_chunk_of_its_own():
    assert count_tokens(texts(5, 5, 5), [1, 1, 1], tokens=4) == ([1, 1, 2], USAGE, 0)


def test_tokens_go_to_chunks_in_proportion_to_their_text():
    assert count_tokens(texts(20, 20, 10), [1, 1, 1], tokens=10).numbers == [4, 4, 2]
    assert count_tokens(texts(1, 30), [1, 1], tokens=6).numbers == [1, 5]


def test_fewer_tokens_than_chunks_are_distributed():
    numbers = count_tokens(texts(3, 3, 3, 3), [1] * 4, tokens=2).numbers
    assert sum(numbers) == 2 and min(numbers) == 0


def test_the_total_is_always_that_of_usage():
    source, distributed = random.Random(1), 0
    for _ in range(2000):
        sizes = [source.randint(1, 40) for _ in range(source.randint(1, 30))]
        tokens = source.randint(max(1, sum(sizes) // 40), sum(sizes))
        reasoning = source.sample(range(len(sizes)), source.randint(0, len(sizes)))
        counts = count_tokens(
            texts(*sizes),
            [1] * len(sizes),
            tokens=tokens,
            reasoning_tokens=source.choice([None, source.randint(0, tokens)]),
            reasoning_chunks=reasoning,
        )
        if counts.source == COUNTED:  # too many hidden tokens for this text
            continue
        distributed += 1
        assert sum(counts.numbers) == tokens, (sizes, tokens, reasoning)
        assert min(counts.numbers) >= 0 and 0 <= counts.reasoning <= tokens
    assert distributed > 1500


def test_running_counts_are_exact():
    counts = count_tokens(texts(5, 50, 5), [1, 1, 1], tokens=9, running=[4, 5, 8])
    assert counts == ([4, 1, 4], CONTINUOUS, 0)  # the end of text counts for the last chunk


@pytest.mark.parametrize(
    "running", [[1, 1, 1], [0, 0, 0], [1, 2], [1, None, 3], [5, 4, 6], [9, 9, 9]]
)
def test_counts_that_do_not_rise_are_not_running_counts(running):
    assert count_tokens(texts(5, 5, 5), [1, 1, 1], tokens=6, running=running).source == USAGE


def test_reasoning_has_its_own_tokens():
    counts = count_tokens(
        texts(10, 10, 10, 10), [1] * 4, tokens=20, reasoning_tokens=16, reasoning_chunks=[0, 1]
    )
    assert counts == ([8, 8, 2, 2], USAGE, 16)


def test_reasoning_without_a_count_has_the_tokens_of_its_chunks():
    counts = count_tokens(texts(10, 30), [1, 1], tokens=12, reasoning_chunks=[1])
    assert counts == ([3, 9], USAGE, 9)


def test_reasoning_that_never_arrives_was_generated_before_the_first_chunk():
    counts = count_tokens(texts(5, 5), [1, 1], tokens=102, reasoning_tokens=100)
    assert counts == ([101, 1], USAGE, 100)


@pytest.mark.parametrize("tokens", [None, 0, 32_000, 1])
def test_without_a_credible_usage_our_own_count_is_used(tokens):
    units = [1] * 32
    assert count_tokens(texts(*[6] * 32), units, tokens=tokens) == (units, COUNTED, 0)


def test_how_many_tokens_a_text_can_hold():
    assert is_credible(32, 160) and is_credible(160, 160) and is_credible(33, 29)
    assert not is_credible(1000, 160) and not is_credible(0, 10) and not is_credible(2, 500)
    assert is_credible(1000, 160, hidden=900)


def test_only_whole_numbers_count():
    usage = {"a": 3, "b": 3.0, "c": "3", "d": True, "e": -1, "f": 2**70, "g": 2.5}
    assert [read_count(usage, name) for name in "abcdefgh"] == [3, 3, *[None] * 6]
    assert read_count([1], "a") is None
    assert read_reasoning_count({"completion_tokens_details": {"reasoning_tokens": 7}}) == 7
    assert read_reasoning_count({"reasoning_tokens": 8}) == 8
    assert read_reasoning_count({"completion_tokens_details": None}) is None


def test_tokens_are_estimated_from_the_text():
    assert estimate_tokens([" baba babe", " babi babo baba babe"], 0.2) == [2, 4]
    assert estimate_tokens([], 0.2) == []
    assert estimate_tokens(["é"], 0.001) == [1]
