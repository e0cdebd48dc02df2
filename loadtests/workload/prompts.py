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


@dataclass(frozen=True)
class PromptMessage:
    role: str
    text: str


@dataclass(frozen=True)
class Prompt:
    """`text` is the user's message; `history` holds the messages before it in a chat. `tokens`
    counts both.
    """

    text: str
    tokens: int  # exact with the default model's tokenizer, approximate with others
    max_tokens: int
    history: tuple[PromptMessage, ...] = ()


def make_prompt(
    seed: str,
    scenario: Mapping[str, Any],
    user: int,
    turn: int,
    arrival: Arrival | None = None,
    history: Sequence[PromptMessage] = (),
) -> Prompt:
    """Makes the `turn`-th request of a user; `history` is the conversation so far.

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
    chat = scenario["endpoint"] == "chat"
    if arrival is None or arrival.prompt_tokens is None or arrival.output_tokens is None:
        tokens, max_tokens = (
            source.randint(*scenario["prompt_tokens"]),
            source.randint(*scenario["output_tokens"]),
        )
    else:
        tokens, max_tokens = arrival.prompt_tokens, arrival.output_tokens
    count = max(1, tokens - 1 if chat else tokens)  # the chat template adds the role's marker
    words: list[str] = []
    if arrival is not None:
        for block, size in zip(arrival.blocks, arrival.block_tokens, strict=True):
            if len(words) < count:
                words += _block_words(seed, block, size)
    words = (words + source.choices(oracle.VOCABULARY, k=max(0, count - len(words))))[:count]
    if (shared := scenario.get("shared_tokens", 0)) and not history:
        which = source.randrange(scenario.get("shared_prefixes", 1))
        prefix = random.Random(f"{seed}/prefix/{which}").choices(
            oracle.VOCABULARY, k=max(1, shared - 1 if chat else shared)
        )
        tokens += shared
        if chat:
            history = (PromptMessage("system", " ".join(prefix)),)
        else:
            words = prefix + words
    elif history:
        tokens += sum(1 + oracle.count_tokens(message.text) for message in history)
    return Prompt(" ".join(words), tokens, max_tokens, tuple(history))


@functools.lru_cache(maxsize=4096)
def _block_words(seed: str, block: int, count: int) -> tuple[str, ...]:
    """Returns the text of a block. A prompt can have hundreds of them, and a generator takes 20 us
    to seed.
    """
    drawn = hashlib.shake_128(f"{seed}/block/{block}".encode()).digest(4 * count)
    return tuple(
        oracle.VOCABULARY[number % len(oracle.VOCABULARY)]
        for number in struct.unpack(f"<{count}I", drawn)
    )


def longest_request(scenario: Mapping[str, Any]) -> tuple[int, int]:
    """Returns (tokens of the prompt, of the response) of a scenario's longest request, with the
    default model's tokenizer. The history of a conversation is part of the prompt.
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
