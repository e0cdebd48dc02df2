"""The lengths of generated prompts in a server's tokens: the words that they are made from, and the
tokens that the server counts for them.

A server's tokenizer is found out without its name. Two groups of words and both groups in one
prompt give the tokens that the server adds itself: count(A) + count(B) - count(A and B). What is
left of a group's count are the tokens of its words, and each word has at least one. So in a group
with as many tokens as words every word is one token, and prompts of such words are exact. Words of
one length differ least in their tokens, so the groups are made by length.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

# the sources of lengths
KNOWN_ANSWER = "known-answer model"  # one word is one token, by construction
TOKENIZER = "tokenizer"  # the model's
TOKENIZE = "/tokenize"  # of the server
USAGE = "usage.prompt_tokens"
ASSUMED = "assumed"  # one token per word: the server reports no count

# Frequent English words. Each is one token in the tokenizers of most models, with and without a
# space before it.
WORDS = tuple(Path(__file__).with_name("prompt_words.txt").read_text().split())
SHORT, GROUP = 16, 128  # words of a probe
TYPICAL_TURN = 8  # tokens around a question and its response, in most chat templates
MARGIN = 0.03  # of lengths that are not exact

Messages = Sequence[tuple[str, str]]  # (role, text)
CountText = Callable[[str], int]  # tokens of a text, without special tokens
# Tokens of a prompt as the server counts it, by the kind of endpoint; None if it does not.
CountPrompt = Callable[[str, Messages], int | None]


@dataclass(frozen=True)
class PromptLengths:
    """How many tokens a generated prompt has. `words`: those that prompts are made from; empty: the
    oracle's. `per_word`: tokens of a word. Added tokens: `chat` to a user's message, `completion`
    to a prompt, `system` further ones to a system message (below 0 if it replaces the server's
    own), `turn` further ones to each question and response before the last. `context`: most tokens
    of prompt and response; None: unknown. The default is the known-answer model's.
    """

    source: str = KNOWN_ANSWER
    words: tuple[str, ...] = ()
    per_word: float = 1.0
    chat: int = 1
    completion: int = 0
    system: int = 1
    turn: int = 2
    context: int | None = None

    @property
    def is_exact(self) -> bool:
        """Whether each word has the same whole number of tokens."""
        return self.source != ASSUMED and float(self.per_word).is_integer()

    def added(self, kind: str) -> int:
        """Return the tokens that are added to a single message or prompt."""
        return self.chat if kind == "chat" else self.completion

    def words_of(self, tokens: int) -> int:
        """Return how many words have about this many tokens, at least 1."""
        return max(1, round(tokens / self.per_word))

    def tokens_of(self, words: int) -> int:
        return round(words * self.per_word)

    def most_words(self, tokens: int) -> int:
        """Return how many words certainly have no more than this many tokens, at least 1."""
        return max(1, int(tokens / self.per_word / (1 if self.is_exact else 1 + MARGIN)))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{**data, "words": tuple(data["words"])})


class TokenizerError(Exception):
    """An unusable tokenizer. The message is one sentence with the remedy."""


def load_tokenizer(text: str) -> CountText:
    """Load a tokenizer.json: a file, a folder that holds it, or a name on the Hugging Face Hub.
    Raises TokenizerError.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise TokenizerError(
            "--tokenizer needs the Python package tokenizers: install it, or leave the option out"
        ) from None
    file = Path(text).expanduser()
    if file.is_dir():
        file = file / "tokenizer.json"
    is_name = not file.exists() and text.count("/") == 1 and not text.startswith((".", "/", "~"))
    if not (file.is_file() or is_name):
        raise TokenizerError(
            f"--tokenizer {text}: there is no file {file.name} there: give a tokenizer.json, its"
            " folder, or a name on the Hugging Face Hub such as org/name"
        )
    try:
        tokenizer = Tokenizer.from_pretrained(text) if is_name else Tokenizer.from_file(str(file))
    except Exception:  # the library raises no other class
        raise TokenizerError(
            f"--tokenizer {text}: it could not be loaded: give the path of a tokenizer.json"
            if is_name
            else f"--tokenizer {text}: {file} is not a tokenizer.json of the library tokenizers"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda words: len(tokenizer.encode(words, add_special_tokens=False).ids)


def in_words_of(tokens: int) -> PromptLengths:
    """Return the lengths of a known-answer model whose words have this many tokens each."""
    return PromptLengths(per_word=tokens, chat=tokens, system=tokens, turn=2 * tokens)


def measure_lengths(
    kinds: Sequence[str],
    count: CountPrompt,
    *,
    source: str = USAGE,
    count_text: CountText | None = None,
    words: Sequence[str] = WORDS,
    has_system_role: bool = True,
) -> PromptLengths:
    """Measure the lengths at a server. `kinds`: its endpoints, chat or completions; `count` sends a
    prompt to one of them. `count_text`: an exact tokenizer, instead of groups of words.
    """
    found = (
        _choose_groups(kinds[0], count, words, source)
        if count_text is None
        else choose_words(words, count_text, source)
    )
    if found is None:
        return PromptLengths(ASSUMED, tuple(words), chat=0, system=0, turn=0)
    probe = " ".join(found.words[:SHORT])
    own = count_text(probe) if count_text else found.tokens_of(SHORT)
    added = {}
    for kind in kinds:
        counted = count(kind, [("user", probe)])
        added[kind] = 0 if counted is None else max(0, counted - own)
    found = replace(found, chat=added.get("chat", 0), completion=added.get("completions", 0))
    if "chat" not in kinds:
        return replace(found, system=0, turn=0)
    question = ("user", probe)
    system = count("chat", [("system", probe), question]) if has_system_role else None
    turn = count("chat", [question, ("assistant", probe), question])
    return replace(
        found,
        system=0 if system is None else system - 2 * own - found.chat,
        turn=TYPICAL_TURN if turn is None else max(0, turn - 3 * own - found.chat),
    )


def choose_words(
    words: Sequence[str], count_text: CountText, source: str = TOKENIZER
) -> PromptLengths:
    """Choose words with the same number of tokens each: the smallest number that enough words
    have. Without enough of them take all, with their mean.
    """
    alone = {word: count_text(word) for word in words}
    after_space = {word: count_text(f"{words[0]} {word}") - alone[words[0]] for word in words}
    for tokens in sorted(set(after_space.values())):
        same = tuple(w for w in words if alone[w] == after_space[w] == tokens)
        is_same = tokens > 0 and len(same) >= GROUP
        if is_same and count_text(" ".join(same)) == tokens * len(same):
            return PromptLengths(source, same, tokens)
    mean = count_text(" ".join(words)) / len(words)
    return PromptLengths(source, tuple(words), max(mean, 1e-3))


def _choose_groups(
    kind: str, count: CountPrompt, words: Sequence[str], source: str
) -> PromptLengths | None:
    """Choose the groups of words in which every word is one token; without one, the group whose
    words are most alike in length, with their mean. None if the server's counts are no measure of a
    prompt.
    """
    words = sorted(words, key=len)  # the words of a group then have similar numbers of tokens
    groups = [words[start : start + GROUP] for start in range(0, len(words) - GROUP + 1, GROUP)]
    first, rest = groups[0][:SHORT], groups[0][SHORT:]
    # in reverse, because a server may leave out what it has seen as the start of another prompt
    probes = [first, rest, *(group[::-1] for group in groups)]
    counts = [count(kind, [("user", " ".join(probe))]) for probe in probes]
    if any(each is None for each in counts[:3]):
        return None
    short, long, both = (each or 0 for each in counts[:3])
    added = max(0, short + long - both)
    if both - short < (GROUP - SHORT) / 4:
        return None
    sizes = [None if each is None else each - added for each in counts[2:]]
    single = tuple(
        word
        for group, size in zip(groups, sizes, strict=True)
        if size == len(group)
        for word in group
    )
    if single:
        return PromptLengths(source, single)
    known = [(group, size) for group, size in zip(groups, sizes, strict=True) if size]
    alike, size = min(known, key=lambda each: len(each[0][-1]) - len(each[0][0]))
    return PromptLengths(source, tuple(alike), size / GROUP)
