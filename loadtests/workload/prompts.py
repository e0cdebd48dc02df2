"""Prompts: seeded, the same for every server, and unique within a campaign unless the scenario
shares prefixes or repeats prompts.
"""

import functools
import hashlib
import itertools
import json
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.workload.arrivals import CONTEXT, Arrival
from servers.contract import oracle
from servers.profile.profile import Dialect
from servers.profile.prompt_lengths import PromptLengths

KNOWN_ANSWER = PromptLengths()
UNIQUE_WORDS = 6  # fewer could repeat by chance, and a cache would answer


@dataclass(frozen=True)
class PromptMessage:
    role: str
    text: str
    tokens: int | None = None  # of the text alone; None: as many as its words have


@dataclass(frozen=True)
class Prompt:
    """`text` is the user's message; `history` holds the messages before it in a chat. `tokens`
    counts both and what the server adds, in the server's tokens; None if it is unknown.
    `text_tokens` counts only the text.
    """

    text: str
    tokens: int | None
    max_tokens: int
    history: tuple[PromptMessage, ...] = ()
    text_tokens: int | None = None


def make_prompt(
    seed: str,
    scenario: Mapping[str, Any],
    user: int,
    turn: int,
    arrival: Arrival | None = None,
    history: Sequence[PromptMessage] = (),
    lengths: PromptLengths = KNOWN_ANSWER,
) -> Prompt:
    """Makes the `turn`-th request of a user; `history` is the conversation so far. `lengths`: of
    words in the server's tokens.

    Words are random: no two prompts of a campaign share a prefix that a cache could use, unless the
    scenario has `shared_tokens` or the arrival has shared blocks from a trace. With
    `distinct_prompts`, prompts and lengths are drawn from that many, so responses repeat as well.
    """
    source = random.Random(f"{seed}/{user}/{turn}")
    if distinct := scenario.get("distinct_prompts", 0):
        [which] = source.choices(
            range(distinct), cum_weights=_zipf(distinct, scenario.get("zipf", 0))
        )
        source = random.Random(f"{seed}/distinct/{which}")
    if arrival is None or arrival.prompt_tokens is None or arrival.output_tokens is None:
        tokens, max_tokens = (
            source.randint(*scenario["prompt_tokens"]),
            source.randint(*scenario["output_tokens"]),
        )
    else:
        tokens, max_tokens = arrival.prompt_tokens, arrival.output_tokens
    chat = scenario["endpoint"] == "chat"
    vocabulary = lengths.words or oracle.VOCABULARY
    shared = 0 if history else scenario.get("shared_tokens", 0)
    added = lengths.added(scenario["endpoint"]) + (lengths.system if chat and shared else 0)
    before = count_history(history, lengths)
    # a system message may replace one of the server's own, whose tokens `chat` includes
    of_prefix = max(0, lengths.system) if chat else 0
    prefix_words = lengths.words_of(shared - of_prefix) if shared else 0
    count = lengths.words_of(tokens + shared - added - lengths.tokens_of(prefix_words))
    if lengths.words:  # the server may add more tokens than were asked for
        count = max(count, min(UNIQUE_WORDS, lengths.words_of(tokens)))
    room = (lengths.context or 0) - max_tokens
    if lengths.context and tokens + shared + before <= room:  # then no miscount may exceed it
        most = lengths.most_words(room - added - before) - prefix_words
        count = max(1, min(count, most))
    words: list[str] = []
    if arrival is not None:
        end = 0
        for block, size in zip(arrival.blocks, arrival.block_tokens, strict=True):
            end += size
            if len(words) < count:  # up to the words of all tokens so far: no rounding adds up
                more = lengths.words_of(end) - len(words)
                words += _draw_block(seed, block, vocabulary, more)
    words = (words + source.choices(vocabulary, k=max(0, count - len(words))))[:count]
    if shared:
        which = source.randrange(scenario.get("shared_prefixes", 1))
        prefix = random.Random(f"{seed}/prefix/{which}").choices(vocabulary, k=prefix_words)
        if chat:
            text = " ".join(prefix)
            history = (PromptMessage("system", text, lengths.tokens_of(prefix_words)),)
        else:
            words = prefix + words
    return Prompt(
        " ".join(words),
        before + added + lengths.tokens_of(prefix_words + count),
        max_tokens,
        tuple(history),
        lengths.tokens_of(count),
    )


def shortest_prompt(scenario: Mapping[str, Any], lengths: PromptLengths) -> int:
    """Returns the tokens of the shortest prompt: what was asked for, or more if the server adds so
    many itself that too few are left to make prompts unique.
    """
    asked: int = scenario["prompt_tokens"][0] + scenario.get("shared_tokens", 0)
    if not lengths.words:
        return asked
    words = min(UNIQUE_WORDS, lengths.words_of(scenario["prompt_tokens"][0]))
    return max(asked, lengths.added(scenario["endpoint"]) + lengths.tokens_of(words))


def count_history(history: Sequence[PromptMessage], lengths: PromptLengths) -> int:
    """Returns the tokens of the messages before the last one, with those that the server adds."""
    texts = sum(
        lengths.tokens_of(oracle.count_tokens(message.text))
        if message.tokens is None
        else message.tokens
        for message in history
    )
    system = bool(history) and history[0].role == "system"
    questions = sum(message.role == "user" for message in history)
    return texts + lengths.system * system + lengths.turn * questions


def _draw_block(seed: str, block: int, vocabulary: Sequence[str], count: int) -> list[str]:
    """Draws the words of a block. A smaller count gives the first ones. A prompt can have hundreds
    of blocks, and Python's generator takes 20 us to seed.
    """
    drawn = hashlib.shake_128(f"{seed}/block/{block}".encode()).digest(4 * count)
    size = len(vocabulary)
    return [vocabulary[number % size] for number in struct.unpack(f"<{count}I", drawn)]


def longest_request(scenario: Mapping[str, Any]) -> tuple[int, int]:
    """Returns (tokens of the prompt, of the response) of a scenario's longest request. The history
    of a conversation is part of the prompt.
    """
    context = scenario.get("context", CONTEXT)
    if scenario["arrivals"] == "trace":
        return context, 0
    prompt, response = scenario["prompt_tokens"][1], scenario["output_tokens"][1]
    first = scenario.get("shared_tokens", 0) + prompt
    # each further question adds the response before it, behind its role's marker
    later = (scenario.get("turns", (1, 1))[1] - 1) * (1 + response + prompt)
    return (max(first, min(first + later, context - response)), response)


@functools.cache
def _zipf(count: int, exponent: float) -> list[float]:
    """Returns cumulative weights by Zipf's law: number k has the weight 1/k**exponent."""
    return list(itertools.accumulate(k**-exponent for k in range(1, count + 1)))


def conversation_turns(seed: str, scenario: Mapping[str, Any], user: int, first_turn: int) -> int:
    """Returns the number of turns of the conversation that starts with this turn of the user."""
    return random.Random(f"{seed}/{user}/{first_turn}/turns").randint(
        *scenario.get("turns", (1, 1))
    )


def request_body(
    scenario: Mapping[str, Any], model: str, prompt: Prompt, dialect: Dialect | None = None
) -> tuple[str, bytes]:
    """Returns (path, body) of a streamed, greedy request of exact length, as far as the dialect
    allows.
    """
    dialect = dialect or Dialect()
    chat = scenario["endpoint"] == "chat"
    body = dialect.build_fields(model, prompt.max_tokens)
    if chat:
        messages = (*prompt.history, PromptMessage("user", prompt.text))
        if not dialect.has_system_role:
            messages = merge_system_message(messages)
        body["messages"] = [{"role": message.role, "content": message.text} for message in messages]
    else:
        body["prompt"] = prompt.text
    return dialect.path(scenario["endpoint"]), json.dumps(body).encode()


def merge_system_message(messages: Sequence[PromptMessage]) -> tuple[PromptMessage, ...]:
    """Moves the text of a system message to the start of the first user message."""
    if messages[0].role != "system":
        return tuple(messages)
    system, first, *rest = messages
    return (PromptMessage(first.role, f"{system.text} {first.text}"), *rest)
