"""Seeded prompts and arrivals: the same seed gives every server the same requests at the same times, in the same order."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from servers import contract, rule


@dataclass(frozen=True)
class Prompt:
    text: str
    tokens: int  # exact with the default model's tokenizer, else about that many
    max_tokens: int


def prompt(seed: str, scenario: dict[str, Any], user: int, turn: int) -> Prompt:
    """The `turn`-th request of a user. Random words: no two prompts of a campaign share a prefix that a cache could use."""
    source = random.Random(f"{seed}/{user}/{turn}")
    tokens = source.randint(*scenario["prompt_tokens"])
    max_tokens = source.randint(*scenario["output_tokens"])
    words = tokens - 1 if scenario["endpoint"] == "chat" else tokens  # the chat template adds the role's marker
    return Prompt(" ".join(source.choices(rule.VOCABULARY, k=max(1, words))), tokens, max_tokens)


def request_body(scenario: dict[str, Any], model: str, wanted: Prompt) -> tuple[str, bytes]:
    """(path, body) of a streamed, greedy request of exact length."""
    chat = scenario["endpoint"] == "chat"
    body = {"model": model, "max_tokens": wanted.max_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}}
    body |= {"messages": [{"role": "user", "content": wanted.text}]} if chat else {"prompt": wanted.text}
    return contract.CHAT_COMPLETIONS if chat else contract.COMPLETIONS, json.dumps(body).encode()


def poisson_arrivals(seed: str, rate: float, duration_s: float) -> Iterator[float]:
    """Seconds since the start of the load; exponential gaps of mean 1/rate."""
    source = random.Random(f"{seed}/arrivals")
    at = source.expovariate(rate)
    while at < duration_s:
        yield at
        at += source.expovariate(rate)
