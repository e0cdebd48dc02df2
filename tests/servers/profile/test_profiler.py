"""The profiler's checks of completions, without a server."""

import pytest

from servers.contract.chunks import Chunk
from servers.profile.client import Completion, ProfileError
from servers.profile.profiler import find_mixed_up, raise_if_truncated
from servers.profile.usage_probes import Sample

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "and",
    "runs",
    "away",
    "from",
    "here",
]
OTHER = [
    "walrus",
    "violin",
    "lantern",
    "cactus",
    "tractor",
    "pelican",
    "saffron",
    "granite",
    "teapot",
    "harbor",
]


def completion(words, tokens=None, reasoning=()):
    usage = {"completion_tokens": len(words) if tokens is None else tokens}
    hidden = [Chunk("", None, None, None, None, f" {word}") for word in reasoning]
    chunks = [*hidden, *(Chunk(f" {word}", None, None, None, None) for word in words)]
    return Completion(
        [(0.0, chunk) for chunk in [*chunks, Chunk("", "length", usage, None, None)]], done=True
    )


@pytest.mark.parametrize("lost", [[*WORDS[:7], *WORDS[8:]], WORDS[:9], WORDS[1:]])
def test_a_stream_that_loses_words_is_refused(lost):
    sample = Sample("", completion(lost, tokens=len(WORDS)))
    with pytest.raises(ProfileError, match="the stream loses text"):
        raise_if_truncated("URL", sample, completion(WORDS))


def test_other_differences_are_no_loss():
    for stream in (
        completion(WORDS),
        completion(WORDS[:9]),  # its usage is also shorter
        completion([*WORDS[:7], "cow", *WORDS[8:]]),  # a near tie
        completion(WORDS, reasoning=["hm"]),
    ):
        raise_if_truncated("URL", Sample("", stream), completion(WORDS))
    raise_if_truncated("URL", Sample("", completion(WORDS[:9])), None)
    hidden = completion(WORDS, tokens=20, reasoning=["hm"] * 6)
    raise_if_truncated("URL", Sample("", completion(WORDS, tokens=20)), hidden)


def test_texts_that_are_mixed_up_from_the_middle_on_are_found():
    samples = [Sample("", completion(WORDS)), Sample("", completion(OTHER))]
    samples[0].under_load = completion([*WORDS[:3], *OTHER[1:9]])
    samples[1].under_load = completion(OTHER)
    assert find_mixed_up(samples) == (0, 1)
    samples[0].under_load = completion([*WORDS[:3], "cow", *WORDS[4:]])
    assert find_mixed_up(samples) is None
