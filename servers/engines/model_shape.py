"""Reads a model's size from its files. It determines the memory traffic and computation of each
token (analysis/metrics/roofline.py).

Standard library only: it reads the headers of the weights, not the weights.
"""

import json
import math
import struct
from pathlib import Path

from servers.contract.api import JsonObject

# Decoders in which every token uses every weight and attends to all tokens before it. In others
# (mixtures of experts, sliding windows, quantised weights) the cost of a token depends on more than
# these numbers.
DENSE = ("llama", "mistral", "qwen2", "qwen3", "granite", "olmo2")
# all engines here keep weights, keys and values in bfloat16, whatever the files hold
DTYPE_BYTES = 2


def read_model_shape(folder: Path) -> JsonObject | None:
    """Return {parameters, embedding_parameters (of the input embeddings), tied_embeddings (that
    table is also the output head), layers, heads, kv_heads, head_dim, dtype_bytes}. None if a file
    is missing or unreadable, or the model is not a dense decoder.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        sliding = config.get("sliding_window") and config.get("use_sliding_window", True)
        if config["model_type"] not in DENSE or sliding or "quantization_config" in config:
            return None
        tensors = {name: size for file in _weights(folder) for name, size in _sizes(file).items()}
        heads, tied = config["num_attention_heads"], bool(config.get("tie_word_embeddings", False))
        if tied:
            tensors.pop("lm_head.weight", None)  # some files hold that table twice
        return {
            "parameters": sum(tensors.values()),
            "embedding_parameters": tensors["model.embed_tokens.weight"],
            "tied_embeddings": tied,
            "layers": config["num_hidden_layers"],
            "heads": heads,
            "kv_heads": config.get("num_key_value_heads") or heads,
            "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
            "dtype_bytes": DTYPE_BYTES,
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None


def _weights(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    return [
        folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))
    ]


def _sizes(file: Path) -> dict[str, int]:
    """Return the number of elements in each tensor. A safetensors file starts with the length of
    its header (u64, little-endian) and the header, which is JSON.
    """
    with file.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        header = json.loads(handle.read(length))
    return {
        name: math.prod(tensor["shape"])
        for name, tensor in header.items()
        if name != "__metadata__"
    }
