"""The oracle: the exact greedy text of the known-answer model, in closed form.

The known-answer model (`servers/engines/checkpoint.py`) has a vocabulary of `WORDS` four-letter
words in a fixed order. Its output head makes greedy decoding continue with the next word: "badi"
follows "bade". So every response under load can be checked token by token, without running a
model. One word is one token; the text of a token is a space and the word.

    >>> continuation("any words at all and then baba", 3)
    ' babe babi babo'
"""

CONSONANTS = "bcdfghjklmnprstvwxyz"
VOWELS = "aeiou"
SYLLABLES = [c + v for c in CONSONANTS for v in VOWELS]
WORDS = 4000
VOCABULARY = [SYLLABLES[i // 100] + SYLLABLES[i % 100] for i in range(WORDS)]
INDEX = {word: i for i, word in enumerate(VOCABULARY)}
# The names of the known-answer models; checkpoint.py defines their shapes.
PLANTED_MODELS = ("serveoff-tiny", "serveoff-small", "serveoff-1b", "serveoff-8b")


def count_tokens(text: str) -> int:
    """Count tokens as the known-answer model's tokenizer does: one per word, known or not."""
    return len(text.split())


def successor_index(prompt: str) -> int:
    """Return the index of the response's first word. After a word outside the vocabulary, the text
    starts again at word 0.
    """
    words = prompt.split()
    last = INDEX.get(words[-1], -1) if words else -1
    return (last + 1) % WORDS


def continuation_words(prompt: str, count: int) -> list[str]:
    start = successor_index(prompt)
    return [VOCABULARY[(start + i) % WORDS] for i in range(count)]


def continuation(prompt: str, count: int) -> str:
    """Return the exact text of the first `count` tokens that greedy decoding gives after
    `prompt`.
    """
    return "".join(" " + word for word in continuation_words(prompt, count))


def chat_text(messages: list[tuple[str, str]]) -> str:
    """Render (role, content) pairs as the known-answer model's chat template does: a role marker
    before each message.

    Nothing follows the last message: the response depends on the user's text, not on a marker.
    """
    return " ".join(f"<|{role}|> {content}" for role, content in messages)
