"""How many tokens a response has, and in which chunks they arrived.

`usage` counts the tokens. A chunk may hold several (speculative decoding), or a part of one, so
that chunks alone say nothing.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

# Where the tokens of chunks are from.
CONTINUOUS, USAGE, COUNTED = "continuous", "usage", "counted"
# Tokens without a byte of text: end of text, and what a tokenizer adds.
TOKENS_WITHOUT_TEXT = 4
# No text has so many bytes for each of its tokens; English has 4 to 5.
MOST_BYTES_PER_TOKEN = 48


def read_count(usage: Any, name: str) -> int | None:
    """A count of `usage`, None if it is missing or no whole number that a count can be."""
    value = usage.get(name) if isinstance(usage, dict) else None
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < 2**63 else None


def read_reasoning_count(usage: Any) -> int | None:
    """The reasoning tokens that `usage` counts among its completion tokens."""
    details = usage.get("completion_tokens_details") if isinstance(usage, dict) else None
    count = read_count(details, "reasoning_tokens")
    return count if count is not None else read_count(usage, "reasoning_tokens")


class TokenCounts(NamedTuple):
    """The tokens of each chunk. `source`: CONTINUOUS, USAGE, or COUNTED if `usage` is missing or
    cannot be true. `reasoning`: those of them that are reasoning.
    """

    numbers: list[int]
    source: str
    reasoning: int


def is_credible(tokens: int, text_bytes: int, hidden: int = 0) -> bool:
    """Whether a text can have so many tokens, `hidden` of which never arrive: a token has at least
    a byte, but for a few special ones, and at most MOST_BYTES_PER_TOKEN on average.
    """
    shown = tokens - hidden
    return (
        tokens > 0
        and shown <= text_bytes + TOKENS_WITHOUT_TEXT
        and text_bytes <= max(1, shown) * MOST_BYTES_PER_TOKEN
    )


def count_tokens(
    texts: Sequence[str],
    units: Sequence[int],
    *,
    tokens: int | None,
    reasoning_tokens: int | None = None,
    reasoning_chunks: Sequence[int] = (),
    running: Sequence[int | None] = (),
) -> TokenCounts:
    """Spreads the `tokens` of usage over the chunks that carried them.

    `texts`: of each chunk. `units`: our own count of each, which is taken without a
    credible usage. `reasoning_chunks`: positions of those that carry reasoning; `reasoning_tokens`:
    usage's count of it. `running`: usage's count so far, of each chunk that had one.

    By the running counts where each chunk has one. Else each chunk gets one token, if there are as
    many, and the rest goes in proportion to the text: the total is exact, and a single chunk is off
    by what the length of its text says wrongly of its tokens. A token more than there are chunks is
    the end of text, and goes to the last one.
    """
    chunks, is_reasoning = len(texts), set(reasoning_chunks)
    hidden = 0  # reasoning that is counted, but does not arrive
    if reasoning_tokens and not is_reasoning:
        hidden = reasoning_tokens
    if tokens is None or not chunks or not is_credible(tokens, count_bytes("".join(texts)), hidden):
        own = list(units)
        return TokenCounts(own, COUNTED, sum(own[i] for i in is_reasoning))
    if len(running) == chunks and None not in running:
        counts = [count or 0 for count in running]
        numbers = [b - a for a, b in itertools.pairwise([0, *counts])]
        # a count that never rises is of the chunk, or of nothing
        rises = chunks == 1 or numbers[0] < counts[-1]
        if min(numbers) >= 0 and rises and counts[-1] <= tokens:
            numbers[-1] += tokens - counts[-1]
            return TokenCounts(numbers, CONTINUOUS, sum(numbers[i] for i in is_reasoning))
    if tokens == sum(units):
        numbers = list(units)
    elif tokens == chunks + 1 and sum(units) == chunks:
        numbers = [*[1] * (chunks - 1), 2]
    elif is_reasoning and reasoning_tokens is not None and len(is_reasoning) < chunks:
        numbers = [0] * chunks
        visible = [i for i in range(chunks) if i not in is_reasoning]
        for which, total in (
            (sorted(is_reasoning), min(reasoning_tokens, tokens)),
            (visible, max(0, tokens - reasoning_tokens)),
        ):
            for i, number in zip(which, _spread(total, [texts[i] for i in which]), strict=True):
                numbers[i] = number
    else:
        numbers = _spread(tokens - hidden, texts)
        # they were generated before anything was visible
        numbers[0] += hidden
    counted = sum(numbers[i] for i in is_reasoning)
    return TokenCounts(numbers, USAGE, hidden or (reasoning_tokens or counted))


def count_bytes(text: str) -> int:
    return len(text.encode(errors="replace"))


def _spread(total: int, texts: Sequence[str]) -> list[int]:
    """`total` in proportion to the bytes of the texts, as whole numbers; at least 1 each if that is
    possible.
    """
    sizes = [count_bytes(text) for text in texts]
    least = 1 if total >= len(sizes) else 0
    rest = total - least * len(sizes)
    whole = sum(sizes)
    # what a chunk of average tokens would have beyond its first
    weights = (
        [max(0.0, total * size / whole - least) for size in sizes] if whole else [1.0] * len(sizes)
    )
    weight_sum = sum(weights) or 1.0
    ends = [round(rest * end / weight_sum) for end in itertools.accumulate(weights)]
    ends[-1] = rest
    return [least + b - a for a, b in itertools.pairwise([0, *ends])]
