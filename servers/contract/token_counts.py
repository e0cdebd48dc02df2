"""Counts the tokens of a response and of each of its chunks.

`usage` counts the tokens. A chunk may hold several (speculative decoding) or a part of one, so
counting chunks is not enough.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

# Sources of the token counts of chunks.
CONTINUOUS, USAGE, COUNTED = "continuous", "usage", "counted"
# Tokens without a byte of text: the end of text, and those that a tokenizer adds.
TOKENS_WITHOUT_TEXT = 4
# An upper limit for any text; English has 4 to 5.
MOST_BYTES_PER_TOKEN = 48


def read_count(usage: Any, name: str) -> int | None:
    """Return a count of `usage`; None if it is missing or not a whole number from 0."""
    value = usage.get(name) if isinstance(usage, dict) else None
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < 2**63 else None


def read_reasoning_count(usage: Any) -> int | None:
    """Return the reasoning tokens among the completion tokens of `usage`; None if missing."""
    details = usage.get("completion_tokens_details") if isinstance(usage, dict) else None
    count = read_count(details, "reasoning_tokens")
    return count if count is not None else read_count(usage, "reasoning_tokens")


class TokenCounts(NamedTuple):
    """The tokens of each chunk. `source`: CONTINUOUS, USAGE, or COUNTED if `usage` is missing or
    not credible. `reasoning`: the number of reasoning tokens.
    """

    numbers: list[int]
    source: str
    reasoning: int


def is_credible(tokens: int, text_bytes: int, hidden: int = 0) -> bool:
    """Return whether a text can have this many tokens, `hidden` of which never arrive. Except for a
    few special ones, a token has at least one byte, and on average at most MOST_BYTES_PER_TOKEN.
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
    """Distribute the `tokens` of usage over the chunks that carried them.

    `texts`: the text of each chunk. `units`: our own count of each chunk, used without a credible
    usage. `reasoning_chunks`: positions of the chunks that carry reasoning. `reasoning_tokens`:
    usage's count of reasoning. `running`: usage's count so far, of each chunk that had one.

    The running counts decide if each chunk has one. Otherwise each chunk gets one token, if there
    are enough, and the rest is distributed in proportion to the text. The total is then exact; a
    single chunk is off as far as the length of its text misjudges its tokens. One token more than
    there are chunks is the end of text, and counts for the last chunk.
    """
    chunks, is_reasoning = len(texts), set(reasoning_chunks)
    hidden = 0  # reasoning that usage counts but that does not arrive
    if reasoning_tokens and not is_reasoning:
        hidden = reasoning_tokens
    if tokens is None or not chunks or not is_credible(tokens, count_bytes("".join(texts)), hidden):
        own = list(units)
        return TokenCounts(own, COUNTED, sum(own[i] for i in is_reasoning))
    if len(running) == chunks and None not in running:
        counts = [count or 0 for count in running]
        numbers = [b - a for a, b in itertools.pairwise([0, *counts])]
        # a count that never rises is the chunk's own, or meaningless
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
        # hidden tokens are generated before any visible one
        numbers[0] += hidden
    counted = sum(numbers[i] for i in is_reasoning)
    return TokenCounts(numbers, USAGE, hidden or (reasoning_tokens or counted))


def estimate_tokens(texts: Sequence[str], per_byte: float) -> list[int]:
    """Estimate the tokens of each chunk from the length of its text."""
    total = round(per_byte * sum(count_bytes(text) for text in texts))
    return _spread(max(1, total), texts) if texts else []


def count_bytes(text: str) -> int:
    return len(text.encode(errors="replace"))


def _spread(total: int, texts: Sequence[str]) -> list[int]:
    """Distribute `total` in proportion to the bytes of the texts, as whole numbers; at least 1 each
    if possible.
    """
    sizes = [count_bytes(text) for text in texts]
    least = 1 if total >= len(sizes) else 0
    rest = total - least * len(sizes)
    whole = sum(sizes)
    # the expected tokens of each chunk beyond its first
    weights = (
        [max(0.0, total * size / whole - least) for size in sizes] if whole else [1.0] * len(sizes)
    )
    weight_sum = sum(weights) or 1.0
    ends = [round(rest * end / weight_sum) for end in itertools.accumulate(weights)]
    ends[-1] = rest
    return [least + b - a for a, b in itertools.pairwise([0, *ends])]
