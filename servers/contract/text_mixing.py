"""Finds concurrent responses that are mixed up, for models without an oracle.

In bfloat16 the same prompt may give another text in another batch: at a near tie the other token
wins, and the text continues differently. So a different text does not prove a mix-up. Two other
things do:

- Foreign words. Most models continue a list of words that is repeated in the prompt. Each such
  prompt has its own words; a response with the words of another prompt was mixed up, wherever they
  start.
- Foreign runs. After leaving its own serial text, a response follows another's for several words
  more than any two serial texts have in common.

Three words of one other prompt are proof, and so is a run of twice the length that chance allows.
To reach those words by a near tie, a model would have to leave its list (a few in a hundred do) and
pick three rare nouns of the same five out of thousands: less than once in 100,000 rounds. Two
words, or a shorter run, may occur by chance, at most once in about a hundred rounds. They count if
it happens again in one of two more rounds with other prompts.

Not found: a mix-up that changes fewer than two words of a list, or less of a text than a run, such
as every other word.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

NOUNS = (
    "walrus violin lantern cactus tractor pelican saffron granite teapot harbor falcon mustard "
    "velvet compass turnip glacier pirate camel dagger orchid barrel lobster marble quilt "
    "saddle trumpet walnut zebra anchor beetle candle donkey ferry goblin hammer igloo jacket "
    "kettle lemon mirror nutmeg oyster pepper rabbit salmon tulip umbrella vinegar wagon yogurt "
    "acorn badger cello dragon emerald fiddle garlic hornet ivory jungle "
)
LISTED_WORDS = 5  # of a prompt; odd, so every other word of the repeated list covers all of them
REPEATS = 3
SHOWN_WORDS = 3  # of a prompt's own words, in a response that continues the list
SUSPICIOUS_WORDS, CERTAIN_WORDS = 2, 3  # of one other prompt
LEAST_RUN = 6  # one word more than two texts of a model may share by chance
MARGIN = 3  # words beyond the longest run that any two serial texts share


@dataclass(frozen=True)
class ListPrompt:
    """A repeated list of rare words; `words` occur in no other prompt of its round."""

    text: str
    words: frozenset[str] = frozenset()

    def is_shown(self, response: str) -> bool:
        """Return whether the model continued the list."""
        return len(self.words & set(split_words(response))) >= SHOWN_WORDS


def list_prompts(source: random.Random) -> Iterator[ListPrompt]:
    """Yield list prompts until the words run out."""
    words = NOUNS.split()
    source.shuffle(words)
    for at in range(0, len(words), LISTED_WORDS):
        own = words[at : at + LISTED_WORDS]
        yield ListPrompt(", ".join(own * REPEATS) + ",", frozenset(own))


def split_words(text: str) -> list[str]:
    """Split into lower-case words; any other character is a word of its own."""
    return re.findall(r"[a-z0-9]+|[^a-z0-9\s]", text.lower())


def shared_prefix(a: Sequence[str], b: Sequence[str]) -> int:
    """Return how many words both start with."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((at for at, (x, y) in pairs if x != y), min(len(a), len(b)))


def longest_run(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest sequence of words that occurs in both."""
    places = defaultdict[str, list[int]](list)
    for at, word in enumerate(b):
        places[word].append(at)
    best, before = 0, dict[int, int]()  # the length of the run that ends at each place of b
    for word in a:
        before = {at: before.get(at - 1, 0) + 1 for at in places.get(word, ())}
        best = max(best, *before.values(), 0)
    return best


def share_run(text: str, others: Sequence[str]) -> bool:
    """Return whether this text shares a run with any of the others."""
    words = split_words(text)
    return any(longest_run(words, split_words(other)) >= LEAST_RUN for other in others)


def run_limit(serial: Sequence[str]) -> int:
    """Return the length at which a run is foreign: more words than these serial texts share."""
    texts = [split_words(text) for text in serial]
    shared = max((longest_run(a, b) for a, b in combinations(texts, 2)), default=0)
    return max(LEAST_RUN, shared + MARGIN)


def are_telling(serial: Sequence[str]) -> bool:
    """Return whether an exchanged text, or its second half, would be a foreign run."""
    return 2 * run_limit(serial) <= min(len(split_words(text)) for text in serial)


@dataclass(frozen=True)
class Foreign:
    """Words of another response: the indices of both, and the words. `is_proof`: no near tie
    explains them.
    """

    response: int
    of: int
    words: tuple[str, ...]
    is_proof: bool


def find_foreign(
    prompts: Sequence[ListPrompt], serial: Sequence[str], concurrent: Sequence[str]
) -> Foreign | None:
    """Return the clearest case of a response with another's text."""
    listed = find_foreign_words(prompts, serial, concurrent)
    return listed if listed and listed.is_proof else find_foreign_run(serial, concurrent) or listed


def find_foreign_words(
    prompts: Sequence[ListPrompt], serial: Sequence[str], concurrent: Sequence[str]
) -> Foreign | None:
    """Return the response with the most listed words of one other prompt that are new to it."""
    found: list[Foreign] = []
    for i, j in permutations(range(len(prompts)), 2):
        known = prompts[i].words | set(split_words(serial[i]))
        words = (prompts[j].words - known) & set(split_words(concurrent[i]))
        if len(words) >= SUSPICIOUS_WORDS:
            found.append(Foreign(i, j, tuple(sorted(words)), len(words) >= CERTAIN_WORDS))
    return max(found, key=lambda foreign: len(foreign.words), default=None)


def find_foreign_run(serial: Sequence[str], concurrent: Sequence[str]) -> Foreign | None:
    """Return the first response that continues like another's serial text where it leaves its
    own.
    """
    limit = run_limit(serial)
    texts = [split_words(text) for text in serial]
    for i, text in enumerate(concurrent):
        words = split_words(text)
        rest = words[shared_prefix(words, texts[i]) :]
        for j, other in enumerate(texts):
            run = longest_run(rest, other) if j != i else 0
            if run >= limit > longest_run(rest, texts[i]):
                return Foreign(i, j, tuple(rest[:limit]), is_proof=run >= 2 * limit)
    return None


def describe_differences(serial: Sequence[str], concurrent: Sequence[str]) -> str:
    """Describe how many texts differ from the serial ones, and from which word on; empty if none
    differs.
    """
    pairs = [(a.split(), b.split()) for a, b in zip(serial, concurrent, strict=True) if a != b]
    if not pairs:
        return ""
    first = 1 + min(shared_prefix(a, b) for a, b in pairs)
    return (
        f"greedy text is not stable under load: {len(pairs)} of {len(serial)} responses"
        f" ({len(pairs) / len(serial):.0%}) differ from those to the same prompts sent alone, the"
        f" earliest at word {first}"
    )
