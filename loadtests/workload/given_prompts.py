"""Prompts from the user's file: which one each request sends. Pure and seeded: the order depends on
the seed of the load alone, so every server gets the same prompts in the same order.

In a closed loop each user holds whole conversations, one after the other: user u of n holds the
conversations u, u + n, u + 2n ... of the order. In an open loop the turns of a conversation are
consecutive arrivals; the warm-up takes the order from its end. A turn's history has the responses
of the file, not those of the server, because otherwise servers would get different prompts. When
all conversations are used up, they are used again, in another order.
"""

import bisect
import functools
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from loadtests.workload.arrivals import Arrival
from loadtests.workload.prompts import Prompt, PromptMessage, count_history
from servers.contract import oracle
from servers.profile.prompt_lengths import PromptLengths


@dataclass(frozen=True)
class Conversation:
    """`ends`: for each request, the number of messages that it sends; the last of them is the
    user's. `max_tokens`: of each response; None: as the scenario has it.
    """

    messages: tuple[PromptMessage, ...]
    ends: tuple[int, ...]
    max_tokens: int | None = None

    def to_json(self) -> list[Any]:
        messages = [(each.role, each.text, each.tokens) for each in self.messages]
        return [messages, self.ends, self.max_tokens]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Self:
        messages, ends, max_tokens = data
        return cls(tuple(PromptMessage(*each) for each in messages), tuple(ends), max_tokens)

    @property
    def size(self) -> int:
        """The length of its texts, in characters."""
        return sum(len(message.text) for message in self.messages)

    def count_tokens(self, end: int, endpoint: str, lengths: PromptLengths) -> int | None:
        """Returns the tokens of a request with this many messages; None if they are unknown."""
        messages = self.messages[:end]
        is_known = not lengths.words or all(each.tokens is not None for each in messages)
        if not is_known:
            return None
        text, tokens = messages[-1].text, messages[-1].tokens
        own = lengths.tokens_of(oracle.count_tokens(text)) if tokens is None else tokens
        return count_history(messages[:-1], lengths) + lengths.added(endpoint) + own


def fit_context(
    sides: Sequence[tuple[Sequence[Conversation], PromptLengths]], scenario: Mapping[str, Any]
) -> tuple[tuple[Conversation, ...], int]:
    """Ends each conversation before a request that, with its response, is longer than the context
    of any target. `sides`: the same conversations as each target counts them. Returns those of the
    first side that have a request, and how many requests were left out. Requests of unknown length
    stay.
    """
    kept, beyond = [], 0
    for counted in zip(*(conversations for conversations, _ in sides), strict=True):
        fitting = min(
            _count_fitting(each, scenario, lengths)
            for each, (_, lengths) in zip(counted, sides, strict=True)
        )
        first = counted[0]
        beyond += len(first.ends) - fitting
        if fitting:
            kept.append(replace(first, ends=first.ends[:fitting]))
    return tuple(kept), beyond


def _count_fitting(
    conversation: Conversation, scenario: Mapping[str, Any], lengths: PromptLengths
) -> int:
    """Returns the number of requests before the first one that is longer than the context."""
    if lengths.context is None:
        return len(conversation.ends)
    room = lengths.context - (conversation.max_tokens or scenario.get("output_tokens", (1, 1))[1])
    for number, end in enumerate(conversation.ends):
        tokens = conversation.count_tokens(end, scenario["endpoint"], lengths)
        if tokens is not None and tokens > room:
            return number
    return len(conversation.ends)


class GivenPrompts:
    """The conversations of one load in their order. `users`: of a closed loop."""

    def __init__(self, conversations: Sequence[Conversation], seed: str, users: int | None):
        self.conversations, self.seed, self.users = conversations, seed, users
        # of each user: the first turn of each conversation that it began, the last one last
        self.begun: dict[int, list[int]] = {}
        self.requests = sum(len(each.ends) for each in conversations)

    def make_prompt(
        self,
        scenario: Mapping[str, Any],
        user: int,
        turn: int,
        arrival: Arrival | None,
        lengths: PromptLengths,
    ) -> Prompt:
        """Makes the `turn`-th request of a user, or of the window or warm-up of an open loop. The
        length of a response is the prompt's own, the arrival's, or the scenario's.
        """
        conversation, index = (
            self._turn_of(user, turn) if arrival is None else self._arrival_of(user, turn)
        )
        max_tokens = conversation.max_tokens
        if max_tokens is None and arrival is not None:
            max_tokens = arrival.output_tokens
        if max_tokens is None:
            source = random.Random(f"{self.seed}/{user}/{turn}")
            max_tokens = source.randint(*scenario["output_tokens"])
        end = conversation.ends[index]
        tokens = conversation.count_tokens(end, scenario["endpoint"], lengths)
        if lengths.context and tokens is not None:
            max_tokens = max(1, min(max_tokens, lengths.context - tokens))
        *history, last = conversation.messages[:end]
        return Prompt(last.text, tokens, max_tokens, tuple(history), last.tokens)

    @functools.cache  # noqa: B019 - it lives as long as the load
    def _order(self, use: int) -> list[Conversation]:
        source = random.Random(f"{self.seed}/prompts/{use}")
        return source.sample(self.conversations, len(self.conversations))

    def _turn_of(self, user: int, turn: int) -> tuple[Conversation, int]:
        begun = self.begun.setdefault(user, [0])
        while True:
            number = bisect.bisect_right(begun, turn) - 1
            use, position = divmod(number * (self.users or 1) + user, len(self.conversations))
            conversation = self._order(use)[position]
            if turn < begun[number] + len(conversation.ends):
                return conversation, turn - begun[number]
            begun.append(begun[number] + len(conversation.ends))

    @functools.cache  # noqa: B019 - it lives as long as the load
    def _arrivals(self, use: int, is_warm_up: bool) -> tuple[list[Conversation], list[int]]:
        """Returns a use's conversations in order, and the number of requests before each."""
        order = self._order(use)[:: -1 if is_warm_up else 1]
        before = itertools.accumulate((len(each.ends) for each in order), initial=0)
        return order, list(before)[:-1]

    def _arrival_of(self, user: int, number: int) -> tuple[Conversation, int]:
        use, position = divmod(number, self.requests)
        order, before = self._arrivals(use, user < 0)
        which = bisect.bisect_right(before, position) - 1
        return order[which], position - before[which]
