"""Seeded prompts: the same seed gives every server the same requests, in the same order."""

import json
import random
from dataclasses import dataclass
from typing import Any

from loadtests.arrivals import Arrival
from loadtests.traces import BLOCK_TOKENS
from servers import contract, rule


@dataclass(frozen=True)
class Prompt:
    text: str
    tokens: int  # exact with the default model's tokenizer, else about that many
    max_tokens: int


def prompt(seed: str, scenario: dict[str, Any], user: int, turn: int, arrival: Arrival | None = None) -> Prompt:
    """The `turn`-th request of a user. Random words: no two prompts of a campaign share a prefix that a cache could use, unless
    the arrival, from a trace, says which blocks they share."""
    source = random.Random(f"{seed}/{user}/{turn}")
    if arrival is None or arrival.prompt_tokens is None or arrival.output_tokens is None:
        tokens, max_tokens = source.randint(*scenario["prompt_tokens"]), source.randint(*scenario["output_tokens"])
    else:
        tokens, max_tokens = arrival.prompt_tokens, arrival.output_tokens
    count = max(1, tokens - 1 if scenario["endpoint"] == "chat" else tokens)  # the chat template adds the role's marker
    words: list[str] = []
    for block in arrival.blocks if arrival else ():
        if len(words) < count:
            words += random.Random(f"{seed}/block/{block}").choices(rule.VOCABULARY, k=BLOCK_TOKENS)
    words += source.choices(rule.VOCABULARY, k=max(0, count - len(words)))
    return Prompt(" ".join(words[:count]), tokens, max_tokens)


def request_body(scenario: dict[str, Any], model: str, wanted: Prompt) -> tuple[str, bytes]:
    """(path, body) of a streamed, greedy request of exact length."""
    chat = scenario["endpoint"] == "chat"
    body = {"model": model, "max_tokens": wanted.max_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}}
    body |= {"messages": [{"role": "user", "content": wanted.text}]} if chat else {"prompt": wanted.text}
    return contract.CHAT_COMPLETIONS if chat else contract.COMPLETIONS, json.dumps(body).encode()
