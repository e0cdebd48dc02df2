"""Describes a model's tokenizer as GGUF does, for servers that read the text themselves."""

from dataclasses import dataclass
from pathlib import Path

import gguf

from servers.contract import JsonObject
from servers.runtime.errors import LaunchError

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# GGUF names how a text is cut into pieces. Of each piece of tokenizer.json, what decides.
WHOLE_WORDS = (("WhitespaceSplit",), ("ByteLevel", True, False))
PIECES: dict[tuple[tuple[str | bool, ...], ...], str] = {
    (("ByteLevel", False, True),): "gpt-2",
    (("Digits", True), ("ByteLevel", False, True)): "smollm",
    (("Split", LLAMA3), ("ByteLevel", False, False)): "llama-bpe",
}


@dataclass(frozen=True)
class Tokenizer:
    """`model` and `pieces`: GGUF's names of its kind and of how it cuts a text. `tokens`: text and
    type by id. `whole_words`: it knows whole words only, as the known-answer model's does.
    """

    model: str
    pieces: str
    tokens: dict[int, tuple[str, gguf.TokenType]]
    whole_words: bool

    def add_to(self, writer: gguf.GGUFWriter, folder: Path, vocabulary: int) -> None:
        """Add everything about tokens to the file, and the chat template. `vocabulary`: the number
        of rows of the embeddings, which may be more than there are tokens.
        """
        unused = gguf.TokenType.UNUSED
        entries = [self.tokens.get(i, (f"[unused{i}]", unused)) for i in range(vocabulary)]
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pieces)
        writer.add_token_list([text for text, _ in entries])
        writer.add_token_types([kind for _, kind in entries])
        special = gguf.SpecialVocab(folder, load_merges=not self.whole_words, n_vocab=vocabulary)
        special.add_special_token = {"bos": False, "eos": False, **special.add_special_token}
        if self.whole_words:
            writer.add_token_scores([-1.0] * len(entries))
            writer.add_add_space_prefix(True)
            writer.add_remove_extra_whitespaces(True)
            if self.model == "gpt2":
                special.merges = ["Ġ b"]  # OpenVINO reads no file without one
        special.add_to_gguf(writer, quiet=True)


def read_tokenizer(content: JsonObject, folder: Path, words_as_bpe: bool) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json: of whole words, or of byte pairs that are cut as
    GPT-2, SmolLM or Llama 3 do. Raises LaunchError for others.

    Whole words become GGUF's "t5", whose unigrams are whole words here: one token a word, `<unk>`
    if it is unknown. `words_as_bpe`: for OpenVINO, which cannot read "t5" and gets token ids
    anyway, not text.
    """
    try:
        kind, vocabulary = content["model"]["type"], content["model"]["vocab"]
        before = content["pre_tokenizer"] or {}
        cut = tuple(_piece(each) for each in before.get("pretokenizers", [before]))
        added = {token["id"]: token for token in content["added_tokens"]}
        whole_words = kind == "WordLevel" and cut == WHOLE_WORDS
        known = whole_words or (
            kind == "BPE" and cut in PIECES and not content["model"].get("byte_fallback")
        )
        if content.get("normalizer") or not known:
            raise LaunchError(
                f"the model {folder} has a tokenizer that this conversion to GGUF does not know:"
                " choose another model with --model, or a server that reads the folder itself"
            )
        tokens = {i: (text, gguf.TokenType.NORMAL) for text, i in vocabulary.items()}
        for i, token in added.items():
            control = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
            tokens[i] = (token["content"], control)
        if whole_words:
            tokens = {i: (text.replace("Ġ", "▁"), kind) for i, (text, kind) in tokens.items()}
            unknown = content["model"]["unk_token"]
            tokens[vocabulary[unknown]] = (unknown, gguf.TokenType.UNKNOWN)
    except (KeyError, TypeError, AttributeError):
        raise LaunchError(
            f"{folder / 'tokenizer.json'} is not a tokenizer of the library `tokenizers`: fetch"
            " the model's folder again"
        ) from None
    if whole_words:
        return Tokenizer(
            *(("gpt2", "gpt-2") if words_as_bpe else ("t5", "default")), tokens, whole_words=True
        )
    return Tokenizer("gpt2", PIECES[cut], tokens, whole_words=False)


def _piece(step: JsonObject) -> tuple[str | bool, ...]:
    """Return a step of cutting, reduced to what decides."""
    match step.get("type"):
        case "ByteLevel":
            return "ByteLevel", step["add_prefix_space"], step["use_regex"]
        case "Digits":
            return "Digits", step["individual_digits"]
        case "Split":
            return "Split", step["pattern"].get("Regex", "")
        case other:
            return (str(other),)
