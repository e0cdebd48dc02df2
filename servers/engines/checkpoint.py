"""The known-answer model: a real Llama, generated on this machine from a seed, whose greedy
responses are known in closed form.

Every layer computes as in any Llama; only the output head is special. Embeddings are random unit
vectors, and the head's row for a word is the embedding of the word before it
(`servers/contract/oracle.py`). The layers' share of the residual stream is bounded: their outputs
add up to about half the embedding's length, so the head's right row wins by a wide margin in
bfloat16.

    python -m servers.engines.checkpoint small

generates it unless it exists; the last line of stdout is its folder.
"""

import argparse
import json
import math
import shutil
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from servers.contract import oracle
from servers.contract.api import JsonObject
from servers.runtime import build_cache

if TYPE_CHECKING:
    import torch  # slow to import: only to generate a model

FORMAT = 1  # part of the folder's name: raise it when a preset would give different files
SPECIAL_TOKENS = ["<unk>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }}{% if not loop.last %} {% endif %}{%"
    " endfor %}"
)
RESIDUAL_SHARE = 0.5
SHARD_BYTES = 2 * 1024**3
DTYPE_BYTES = 2  # bfloat16
ON_GPU_FROM = 500_000_000  # parameters; for fewer, starting CUDA takes longer than it saves


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    positions: int = 4096

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def parameters(self) -> int:
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + 3 * self.hidden * self.mlp + 2 * self.hidden
        return 2 * self.vocabulary * self.hidden + self.layers * layer + self.hidden

    def to_json(self) -> JsonObject:
        """Return what servers/engines/model_shape.py reads from the model's files."""
        return {
            "parameters": self.parameters(),
            "embedding_parameters": self.vocabulary * self.hidden,
            "tied_embeddings": False,
            "layers": self.layers,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "dtype_bytes": DTYPE_BYTES,
        }


PRESETS = {
    "tiny": Shape(hidden=256, layers=3, heads=4, kv_heads=2, mlp=640, vocabulary=4096),
    "small": Shape(hidden=384, layers=8, heads=6, kv_heads=6, mlp=1024, vocabulary=16384),
    "1b": Shape(hidden=2048, layers=16, heads=32, kv_heads=8, mlp=8192, vocabulary=128256),
    "8b": Shape(hidden=4096, layers=32, heads=32, kv_heads=8, mlp=14336, vocabulary=128256),
}


def ensure(preset: str) -> Path:
    """Return the folder of the preset's model; generate it unless it exists. Several processes may
    call this at once.
    """
    folder, shape = (
        build_cache.cache_folder("models") / f"serveoff-{preset}-v{FORMAT}",
        PRESETS[preset],
    )
    if folder.is_dir():
        return folder
    # a GPU's random numbers differ, so its weights get another name; the responses are the same
    if (device := _device(shape)) != "cpu":
        folder = folder.with_name(f"{folder.name}-{device}")
        if folder.is_dir():
            return folder
    needed = DTYPE_BYTES * shape.parameters()
    free = shutil.disk_usage(folder.parent).free
    if free < needed * 1.05:
        raise OSError(
            f"the model needs {needed / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB"
            " free: free some space, or point XDG_CACHE_HOME at a larger disk"
        )
    with build_cache.create_once(folder) as partial:
        if partial:
            print(
                f"generating model serveoff-{preset} ({shape.parameters() / 1e6:.0f} M parameters, "
                f"{needed / 1e6:.0f} MB) in {folder}",
                file=sys.stderr,
            )
            _write_tokenizer(partial, shape)
            _write_config(partial, shape)
            _write_weights(partial, shape, device)
    return folder


def _write_tokenizer(folder: Path, shape: Shape) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(SPECIAL_TOKENS)}
    for i, word in enumerate(oracle.VOCABULARY):
        vocabulary["Ġ" + word] = len(SPECIAL_TOKENS) + i
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 - not a password
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
        ]
    )
    # decodes each token without its neighbours, so streamed pieces add up to the text
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "unk_token": "<unk>",
                "eos_token": "<|end|>",
                "pad_token": "<|pad|>",
                "clean_up_tokenization_spaces": False,
                "model_max_length": shape.positions,
                "chat_template": CHAT_TEMPLATE,
            },
            indent=1,
        )
    )


def _write_config(folder: Path, shape: Shape) -> None:
    ids = {
        "bos_token_id": None,
        "eos_token_id": SPECIAL_TOKENS.index("<|end|>"),
        "pad_token_id": SPECIAL_TOKENS.index("<|pad|>"),
    }
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_act": "silu",
                "hidden_size": shape.hidden,
                "intermediate_size": shape.mlp,
                "num_hidden_layers": shape.layers,
                "num_attention_heads": shape.heads,
                "num_key_value_heads": shape.kv_heads,
                "head_dim": shape.head_dim,
                "vocab_size": shape.vocabulary,
                "max_position_embeddings": shape.positions,
                "rms_norm_eps": 1e-5,
                "rope_theta": 500000.0,
                "attention_bias": False,
                "tie_word_embeddings": False,
                "dtype": "bfloat16",
                "use_cache": True,
                **ids,
            },
            indent=1,
        )
    )
    (folder / "generation_config.json").write_text(
        json.dumps({k: v for k, v in ids.items() if v is not None})
    )


def _device(shape: Shape) -> str:
    if shape.parameters() < ON_GPU_FROM:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _tensors(shape: Shape, device: str) -> "Iterator[tuple[str, torch.Tensor]]":
    """Yield (name, tensor) in the order of the forward pass: only one tensor is in memory at a
    time.
    """
    import torch

    generator = torch.Generator(device)

    def normal(name: str, rows: int, columns: int, std: float) -> torch.Tensor:
        generator.manual_seed(zlib.crc32(f"{FORMAT} {name}".encode()))
        return torch.empty(rows, columns, device=device).normal_(0, std, generator=generator)

    d, query, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    embeddings = torch.nn.functional.normalize(normal("embed", shape.vocabulary, d, 1.0))
    yield "model.embed_tokens.weight", embeddings
    norm = torch.ones(d, device=device)
    # of one sublayer's output; independent outputs add in quadrature
    share = RESIDUAL_SHARE / math.sqrt(2 * shape.layers)
    for layer in range(shape.layers):
        name = f"model.layers.{layer}."
        yield name + "input_layernorm.weight", norm
        for part, rows in (("q", query), ("k", kv), ("v", kv)):
            yield (
                name + f"self_attn.{part}_proj.weight",
                normal(f"{layer}{part}", rows, d, 1 / math.sqrt(d)),
            )
        yield (
            name + "self_attn.o_proj.weight",
            normal(f"{layer}o", d, query, share / math.sqrt(query * d)),
        )
        yield name + "post_attention_layernorm.weight", norm
        for part in ("gate", "up"):
            yield (
                name + f"mlp.{part}_proj.weight",
                normal(f"{layer}{part}", shape.mlp, d, 1 / math.sqrt(d)),
            )
        # silu(gate) * up has a root mean square of about 0.6 for unit normal inputs
        yield (
            name + "mlp.down_proj.weight",
            normal(f"{layer}down", d, shape.mlp, share / (0.6 * math.sqrt(shape.mlp * d))),
        )
    yield "model.norm.weight", norm

    words = range(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + oracle.WORDS)
    head = torch.nn.functional.normalize(normal("head", shape.vocabulary, d, 1.0))
    head[words[1] : words[-1] + 1] = embeddings[words[0] : words[-1]]
    head[words[0]] = embeddings[[words[-1], *range(len(SPECIAL_TOKENS))]].sum(0)
    yield "lm_head.weight", head


def _write_weights(folder: Path, shape: Shape, device: str) -> None:
    import torch
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    done = 0

    def flush() -> None:
        save_file(pending, folder / f"shard-{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in _tensors(shape, device):
        pending[name] = tensor.to(torch.bfloat16).cpu()
        done += tensor.numel()
        if sum(t.numel() * DTYPE_BYTES for t in pending.values()) >= SHARD_BYTES:
            flush()
        if sys.stderr.isatty():
            print(f"\r  {done / shape.parameters():4.0%}", end="", file=sys.stderr)
    if pending:  # the last tensor may have filled its shard
        flush()
    if sys.stderr.isatty():
        print("\r  done ", file=sys.stderr)
    if len(shards) == 1:
        (folder / "shard-0.safetensors").rename(folder / "model.safetensors")
        return
    names = {}
    for i, tensors in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{i}.safetensors").rename(folder / file)
        names.update(dict.fromkeys(tensors, file))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(
            {"metadata": {"total_size": DTYPE_BYTES * shape.parameters()}, "weight_map": names}
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Generate the known-answer model in the cache and print its folder."
    )
    parser.add_argument("preset", choices=PRESETS)
    try:
        print(ensure(parser.parse_args().preset))
    except OSError as error:
        sys.exit(f"error: {error}")
