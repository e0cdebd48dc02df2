"""The planted rule: what the default model must answer, in closed form.

The default model (`servers/engines/checkpoint.py`) speaks a language of `WORDS` four-letter words
in a fixed order, and its output head is planted so that greedy decoding always continues with the
next word: "bade" is followed by "badi". So every answer under load can be checked token by token,
without a model at hand. One word is one token, and the text of a token is a space and the word.

    >>> continuation("any words at all and then baba", 3)
    ' babe babi babo'
"""

CONSONANTS = "bcdfghjklmnprstvwxyz"
VOWELS = "aeiou"
SYLLABLES = [c + v for c in CONSONANTS for v in VOWELS]
WORDS = 4000
VOCABULARY = [SYLLABLES[i // 100] + SYLLABLES[i % 100] for i in range(WORDS)]
INDEX = {word: i for i, word in enumerate(VOCABULARY)}
# The model names under which the rule holds; checkpoint.py gives the shapes.
PLANTED_MODELS = ("serveoff-tiny", "serveoff-small", "serveoff-1b", "serveoff-8b")


def count_tokens(text: str) -> int:
    """Tokens of a text in the default model's tokenizer: one a word, known or not."""
    return len(text.split())


def successor_index(prompt: str) -> int:
    """Index of the first word of the answer. After a word outside the vocabulary the language
    starts again at word 0.
    """
    words = prompt.split()
    last = INDEX.get(words[-1], -1) if words else -1
    return (last + 1) % WORDS


def continuation_words(prompt: str, count: int) -> list[str]:
    start = successor_index(prompt)
    return [VOCABULARY[(start + i) % WORDS] for i in range(count)]


def continuation(prompt: str, count: int) -> str:
    """The exact text of the first `count` tokens that greedy decoding gives after `prompt`."""
    return "".join(" " + word for word in continuation_words(prompt, count))


def chat_text(messages: list[tuple[str, str]]) -> str:
    """(role, content) pairs as the default model's chat template renders them: a role marker before
    each message.

    Nothing follows the last message, so that the answer depends on what the user wrote and not on a
    marker.
    """
    return " ".join(f"<|{role}|> {content}" for role, content in messages)
