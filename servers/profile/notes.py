"""Sentences for the report about the findings of a profile, above all about what is inexact."""

from collections.abc import Iterator, Sequence

from servers.profile.client import Completion
from servers.profile.profile import CONTINUOUS, NEVER, PLAIN_ONLY, Profile
from servers.profile.prompt_lengths import ASSUMED

AT_ONCE_S = 0.002  # a whole response within this time arrived at once


def make_notes(
    profile: Profile, completions: Sequence[Completion], texts: Sequence[tuple[str, str]]
) -> Iterator[str]:
    """Yield the notes. `completions`: the samples, each sent alone. `texts`: the text of each
    sample, alone and under load.
    """
    if profile.models and profile.model not in profile.models:
        yield f"the server does not list the model {profile.model!r}, but accepts it"
    ignore_eos = profile.fields.get("ignore_eos")
    if ignore_eos in ("refused", "ignored"):
        how = "refuses" if ignore_eos == "refused" else "ignores"
        yield (
            f"the server {how} ignore_eos: its model decides where a response ends, so responses"
            " may be shorter than requested"
        )
    if "ignored" in (profile.fields.get("max_tokens"), profile.fields.get("max_completion_tokens")):
        yield "the server ignores max_tokens: responses are longer than planned"
    if profile.fields.get("temperature") == "refused" and not profile.dialect.is_sampled:
        yield "the server refuses temperature 0: its texts are sampled and cannot be compared"
    if profile.usage == NEVER:
        yield (
            "the server reports no credible usage: each chunk counts as one token, which may be"
            " wrong"
        )
    if profile.usage == PLAIN_ONLY:
        per_chunk = profile.tokens_per_chunk
        shown = "" if per_chunk is None else f"; a plain response had {per_chunk:.2f} per chunk"
        yield f"the server reports no usage in streams: each chunk counts as one token{shown}"
    elif profile.tokens_per_chunk is not None and abs(profile.tokens_per_chunk - 1) > 0.05:
        how = (
            "usage in each chunk counts them"
            if profile.usage == CONTINUOUS
            else "they are distributed over the chunks in proportion to the text; totals are exact,"
            " single chunks are not"
        )
        yield f"a chunk holds {profile.tokens_per_chunk:.2f} tokens on average: {how}"
    if profile.lengths.source == ASSUMED:
        yield (
            "the server does not count the tokens of prompts: prompts have the requested length in"
            " words: give --tokenizer to count them in tokens"
        )
    if profile.reasoning:
        yield (
            f"the model reasons before it responds ({profile.reasoning}): TTFT is the time to the"
            " first reasoning token; the time to the first visible token is shown beside it"
        )
    if profile.early_chunks:
        chunks = "chunk" if profile.early_chunks == 1 else "chunks"
        yield (
            f"{profile.early_chunks} {chunks} without a token before the first token: TTFT is the"
            " time to the first token"
        )
    spans = [c.tokens[-1][0] - c.tokens[0][0] for c in completions if len(c.tokens) > 1]
    if spans and max(spans) < AT_ONCE_S:
        yield "whole responses arrive at once: TPOT measures the network, not the model"
    if profile.dialect.is_sampled:
        yield "--body temperature: the texts are sampled and cannot be compared"
    elif profile.fields.get("temperature") != "refused":
        yield from _describe_stability(profile, texts)


def _describe_stability(profile: Profile, texts: Sequence[tuple[str, str]]) -> Iterator[str]:
    if profile.repeats_alone is False:
        yield "greedy text is not stable: the same prompt, sent alone, returned a different text"
    differing = [(a, b) for a, b in texts if a != b]
    if differing and profile.repeats_alone is not False:
        first = min(_first_difference(a, b) for a, b in differing)
        yield (
            f"greedy text is not stable under load: {len(differing)} of {len(texts)} responses with"
            " others in flight differ from those to the same prompts alone, the earliest at word"
            f" {first}"
        )


def _first_difference(a: str, b: str) -> int:
    ours, theirs = a.split(), b.split()
    pairs = enumerate(zip(ours, theirs, strict=False), 1)
    return next((n for n, (x, y) in pairs if x != y), min(len(ours), len(theirs)) + 1)
