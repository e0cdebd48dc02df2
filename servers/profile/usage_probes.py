"""Finds out how an endpoint reports usage, and how many tokens its chunks hold."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from servers.contract.token_counts import count_bytes, is_credible
from servers.profile.client import Completion, ProfileError, read_completion
from servers.profile.prober import Prober
from servers.profile.profile import CONTINUOUS, IN_STREAM, NEVER, PLAIN_ONLY

FEWEST_REPEATS = 8  # chunks that show that a stream is cumulative
HALF = (0.35, 0.65)  # range of the length of a response to half of max_tokens


@dataclass
class Sample:
    """A prompt and its completion, alone and with others in flight."""

    prompt: str
    alone: Completion
    again: Completion | None = None
    under_load: Completion | None = None


def complete_plain(prober: Prober, kind: str, prompt: str) -> Completion | None:
    """Return a plain completion; None if the server does not support it."""
    response = prober.ask(kind, prompt, prober.tokens, prober.dialect)
    completion = read_completion(response) if response.is_ok else None
    whole = completion is not None and completion.problem is None
    prober.fields["stream=false"] = "accepted" if whole else "refused"
    return completion if whole else None


def raise_if_cumulative(url: str, samples: Sequence[Sample]) -> None:
    """Raise ProfileError if each chunk of all samples repeats the text of the chunk before it."""
    for sample in samples:
        texts = [chunk.reasoning + chunk.text for _, chunk in sample.alone.tokens]
        grows = (b.startswith(a) and len(b) > len(a) for a, b in itertools.pairwise(texts))
        if len(texts) < FEWEST_REPEATS or not all(grows):
            return
    raise ProfileError(
        f"POST {url}: each chunk repeats the whole text before it, so its tokens cannot be counted:"
        " let the server stream only what is new"
    )


def raise_if_prompt_counted(url: str, samples: Sequence[Sample], max_tokens: int) -> None:
    """Raise ProfileError if usage counts the prompt among the tokens of each response, which ended
    at `max_tokens`.
    """
    for sample in samples:
        completion = sample.alone
        count, prompt = completion.count("completion_tokens"), completion.count("prompt_tokens")
        added = prompt and count == max_tokens + prompt and len(completion.tokens) <= max_tokens
        if not added or completion.finish_reason != "length":
            return
    raise ProfileError(
        f"POST {url}: usage.completion_tokens is {count}, which is max_tokens ({max_tokens}) and"
        f" usage.prompt_tokens ({prompt}) together: correct the server's usage, which must not"
        " count the prompt among the tokens of a response"
    )


def find_usage(
    prober: Prober, kind: str, samples: Sequence[Sample], plain: Completion | None
) -> tuple[str, float | None, float | None]:
    """Return how the server reports usage, its tokens per chunk, and, if streams have no usage, per
    byte of text.
    """
    chunks, tokens = 0, 0
    for sample in samples:
        count = sample.alone.count("completion_tokens")
        size = count_bytes(sample.alone.text)
        if count is None or not is_credible(count, size):
            break
        held = len(sample.alone.tokens)
        # the end of text has no chunk of its own
        is_end = sample.alone.finish_reason == "stop" and count == held + 1
        chunks, tokens = chunks + held, tokens + count - is_end
    else:
        continuous = _counts_continuously(prober, kind)
        return CONTINUOUS if continuous else IN_STREAM, tokens / chunks, None
    usage, per_byte = PLAIN_ONLY, _count_per_byte([plain])
    if per_byte is not None:  # more text: its tokens per byte vary
        more = [complete_plain(prober, kind, sample.prompt) for sample in samples[1:]]
        per_byte = _count_per_byte([plain, *more])
    else:
        usage, per_byte = NEVER, _count_by_max_tokens(prober, kind, samples)
    if per_byte is None:
        return usage, None, None
    size = sum(count_bytes(sample.alone.text) for sample in samples)
    chunks = sum(len(sample.alone.tokens) for sample in samples)
    return usage, per_byte * size / chunks, per_byte


def _count_by_max_tokens(prober: Prober, kind: str, samples: Sequence[Sample]) -> float | None:
    """Return the tokens per byte of responses that end at max_tokens. A response to half of it must
    be half as long: otherwise something else ends them.
    """
    whole = [sample.alone for sample in samples]
    half = prober.complete(kind, samples[0].prompt, prober.tokens // 2)
    size, part = count_bytes(whole[0].text), count_bytes(half.text)
    ended = {completion.finish_reason for completion in (*whole, half)}
    if ended != {"length"} or not HALF[0] * size < part < HALF[1] * size:
        return None
    return prober.tokens * len(whole) / sum(count_bytes(completion.text) for completion in whole)


def _count_per_byte(responses: Sequence[Completion | None]) -> float | None:
    """Return the tokens per byte of plain responses' texts, by their usage."""
    tokens, size = 0, 0
    for plain in responses:
        count = plain.count("completion_tokens") if plain else None
        own = count_bytes(plain.text) if plain else 0
        if count and own and is_credible(count, own):
            tokens, size = tokens + count, size + own
    return tokens / size if size else None


def _counts_continuously(prober: Prober, kind: str) -> bool:
    dialect = replace(prober.dialect, usage=CONTINUOUS)
    response = prober.ask(kind, prober.make_prompt(), prober.tokens, dialect, stream=True)
    if not response.is_ok:
        prober.fields["continuous_usage_stats"] = "refused"
        return False
    counts = [
        (chunk.usage or {}).get("completion_tokens")
        for _, chunk in read_completion(response).tokens
    ]
    rising = [count for count in counts if type(count) is int]
    works = len(rising) == len(counts) and sorted(set(rising)) == rising and len(rising) > 1
    prober.fields["continuous_usage_stats"] = "accepted" if works else "ignored"
    return works
