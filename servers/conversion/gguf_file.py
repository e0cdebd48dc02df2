"""Writes a model's folder as one GGUF file, for llama.cpp and for OpenVINO GenAI.

    python -m servers.conversion.gguf_file FOLDER q8_0 --reader llama.cpp

writes it unless that was done before; the last line of stdout is the file, or the error. It needs
the package `gguf`, and reads Llama and Mistral models in safetensors. One tensor at a time is in
memory.

`q4_0` keeps the output head at eight bits: llama.cpp's own `llama-quantize` gives it more bits too.
"""

import argparse
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType as FileType
from gguf.quants import quant_shape_to_byte_shape, quantize
from gguf.utility import LocalTensor, SafetensorsLocal

from servers.contract import JsonObject
from servers.conversion import gguf_tokenizer
from servers.runtime import build_cache
from servers.runtime.errors import LaunchError

FORMAT = 1  # part of the file's name: raise it when the conversion would give a different file
READERS = ("llama.cpp", "openvino")
TYPES = {
    "f32": (Type.F32, FileType.ALL_F32),
    "f16": (Type.F16, FileType.MOSTLY_F16),
    "bf16": (Type.BF16, FileType.MOSTLY_BF16),
    "q8_0": (Type.Q8_0, FileType.MOSTLY_Q8_0),
    "q4_0": (Type.Q4_0, FileType.MOSTLY_Q4_0),
}
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")  # GGUF has one name for both
SOURCE_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
LARGEST_F16 = 65504.0
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
Array = np.ndarray  # of any shape and type


@dataclass(frozen=True)
class Tensor:
    """A tensor of the folder, with its name and type in the file."""

    source: str
    name: str
    stored: LocalTensor
    type: Type

    @property
    def bytes(self) -> int:
        return math.prod(quant_shape_to_byte_shape(self.stored.shape, self.type))


def ensure(folder: Path, quantization: str, reader: str) -> Path:
    """Return the GGUF file of the model in `folder` with weights of this type of TYPES; write it
    unless it exists. Several processes may call this at once. Raises LaunchError for a folder that
    cannot be converted.
    """
    config = _read_json(folder / "config.json")
    _check_config(config, folder, reader)
    tokenizer = gguf_tokenizer.read_tokenizer(
        _read_json(folder / "tokenizer.json"), folder, reader == "openvino"
    )
    name = "-".join((folder.name, quantization, tokenizer.model, _identity(folder)))
    found = build_cache.cache_folder("gguf") / name
    with build_cache.create_once(found) as partial:
        if partial:
            print(f"converting the model {folder} to {found}", file=sys.stderr)
            tensors = _plan_tensors(folder, config, TYPES[quantization][0])
            needed = sum(tensor.bytes for tensor in tensors)
            if (free := shutil.disk_usage(partial).free) < needed * 1.05:
                raise LaunchError(
                    f"the model as GGUF needs {needed / 1e9:.2f} GB and {found.parent} has"
                    f" {free / 1e9:.2f} GB free: free some space, or point XDG_CACHE_HOME at a"
                    " larger disk"
                )
            with closing(gguf.GGUFWriter(partial / "model.gguf", "llama")) as writer:
                writer.add_name(folder.name)
                writer.add_file_type(TYPES[quantization][1])
                _add_config(writer, config)
                tokenizer.add_to(writer, folder, config["vocab_size"])
                _write_tensors(writer, tensors, config)
    return found / "model.gguf"


def _read_json(file: Path) -> JsonObject:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LaunchError(f"{file.parent} has no {file.name}, which GGUF needs") from None
    except (OSError, ValueError):
        raise LaunchError(
            f"{file} cannot be read as JSON: fetch the model's folder again"
        ) from None
    if not isinstance(found, dict):
        raise LaunchError(f"{file} is not a JSON object: fetch the model's folder again")
    return found


def _identity(folder: Path) -> str:
    """Return a short hash of what the file is made of. Of the weights it has sizes and times only:
    reading gigabytes would delay each start.
    """
    found = hashlib.sha256(f"{FORMAT}".encode())
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".jinja"):
            found.update(file.name.encode() + file.read_bytes())
        elif file.suffix == ".safetensors":
            about = file.stat()
            found.update(f"{file.name} {about.st_size} {about.st_mtime_ns}".encode())
    return found.hexdigest()[:12]


def _check_config(config: JsonObject, folder: Path, reader: str) -> None:
    """Raise LaunchError for a model that the file would not describe in full."""
    architecture = ", ".join(config.get("architectures") or ["none"])
    kind = _rope(config).get("rope_type", "default")
    for wrong, what in (
        (architecture not in ARCHITECTURES, f"the architecture {architecture}"),
        ("quantization_config" in config, "weights that are already quantised"),
        (config.get("sliding_window"), "a sliding window"),
        (config.get("hidden_act", "silu") != "silu", f"the activation {config.get('hidden_act')}"),
        (kind not in ("default", "linear", "llama3"), f"positions of the kind {kind}"),
        (kind != "default" and reader == "openvino", f"positions of the kind {kind}"),
    ):
        if wrong:
            raise LaunchError(
                f"the model {folder} has {what}, which this conversion to GGUF does not support:"
                f" choose a Llama model with --model, or a server that reads the folder itself"
            )
    for key in (
        "vocab_size",
        "max_position_embeddings",
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "num_attention_heads",
    ):
        if not isinstance(config.get(key), int):
            raise LaunchError(f"{folder / 'config.json'} has no {key}, which GGUF needs")


def _rope(config: JsonObject) -> JsonObject:
    """Return the parameters of rotary positions, from where Transformers 5 or 4 keeps them."""
    older = config.get("rope_scaling") or {}
    found = {"rope_theta": config.get("rope_theta", 10000.0), **older}
    if "type" in older:
        found["rope_type"] = older["type"]
    return found | (config.get("rope_parameters") or {})


def _kv_heads(config: JsonObject) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def _head_dim(config: JsonObject) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _add_config(writer: gguf.GGUFWriter, config: JsonObject) -> None:
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(_kv_heads(config))
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_rope_dimension_count(_head_dim(config))
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _plan_tensors(folder: Path, config: JsonObject, wanted: Type) -> list[Tensor]:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    tied = bool(config.get("tie_word_embeddings", False))
    planned = []
    for source, stored in _stored_tensors(folder):
        if source.endswith("rotary_emb.inv_freq") or (tied and source == HEAD):
            continue
        name = names.get_name(source, (".weight", ".bias"))
        if name is None or stored.dtype not in SOURCE_TYPES:
            raise LaunchError(
                f"the tensor {source} ({stored.dtype}) of {folder} is none of a Llama model in"
                " F32, F16 or BF16: choose another model with --model"
            )
        kind = (
            Type.Q8_0 if wanted == Type.Q4_0 and source == (EMBEDDINGS, HEAD)[not tied] else wanted
        )
        planned.append(Tensor(source, name, stored, _storable(kind, stored.shape)))
    missing = {EMBEDDINGS, *[HEAD] * (not tied)} - {tensor.source for tensor in planned}
    if missing:
        raise LaunchError(
            f"the weights of {folder} lack {', '.join(sorted(missing))}: fetch the model's folder"
            " again"
        )
    return planned


def _storable(wanted: Type, shape: tuple[int, ...]) -> Type:
    """Return the type of a tensor: llama.cpp wants norms and biases in F32, and rows of a quantised
    tensor consist of whole blocks.
    """
    if len(shape) == 1:
        return Type.F32
    try:
        quant_shape_to_byte_shape(shape, wanted)
    except ValueError:
        return Type.F16
    return wanted


def _stored_tensors(folder: Path) -> Iterator[tuple[str, LocalTensor]]:
    index = folder / "model.safetensors.index.json"
    files = (
        sorted(set(_read_json(index)["weight_map"].values()))
        if index.is_file()
        else ["model.safetensors"]
    )
    for name in files:
        file = folder / name
        if not file.is_file():
            raise LaunchError(f"{folder} has no {name}: fetch the model's folder again")
        try:
            found = SafetensorsLocal(file).tensors
        except (OSError, ValueError, KeyError):
            found = {}
        ends = [each.data_range.offset + each.data_range.size for each in found.values()]
        if not ends or max(ends) > file.stat().st_size:
            raise LaunchError(f"{file} is incomplete: fetch the model's folder again")
        yield from found.items()


def _load(tensor: Tensor, config: JsonObject) -> Array:
    """Return the tensor's values (float32) in the order of GGUF."""
    kind = SOURCE_TYPES[tensor.stored.dtype]
    values = tensor.stored.mmap_bytes().view(kind).reshape(tensor.stored.shape)
    if tensor.stored.dtype == "BF16":  # the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    values = values.astype(np.float32)
    # GGML's Llama rotates neighbouring pairs, Transformers' the two halves of a head
    for part, heads in (("q_proj", config["num_attention_heads"]), ("k_proj", _kv_heads(config))):
        if part in tensor.source:
            half = values.shape[0] // heads // 2
            pairs = values.reshape(heads, 2, half, *values.shape[1:]).swapaxes(1, 2)
            values = pairs.reshape(values.shape)
    return values


def _write_tensors(writer: gguf.GGUFWriter, tensors: list[Tensor], config: JsonObject) -> None:
    factors = _llama3_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.stored.shape, np.dtype(np.float32), tensor.bytes, tensor.type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for tensor in tensors:
        values = _load(tensor, config)
        largest = float(np.abs(values).max())
        if not largest <= (LARGEST_F16 if tensor.type not in (Type.F32, Type.BF16) else math.inf):
            raise LaunchError(
                f"the tensor {tensor.source} has numbers beyond the range of {tensor.type.name}:"
                " choose another quantization"
            )
        writer.write_tensor_data(quantize(np.ascontiguousarray(values), tensor.type))


def _llama3_factors(config: JsonObject) -> Array | None:
    """Return Llama 3's divisors of the rotary frequencies, one for each pair of a head's numbers;
    None for other models. Source: Transformers' `_compute_llama3_parameters`.
    """
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    dim, factor = _head_dim(config), rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = (  # of each pair over the length that the model was first trained on
        rope["original_max_position_embeddings"]
        / (2 * math.pi)
        / rope["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    )
    smooth = np.clip((turns - low) / (high - low), 0, 1)  # 1: the frequency stays as it is
    return np.asarray(1 / ((1 - smooth) / factor + smooth), dtype=np.float32)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a model as GGUF and print the file.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("quantization", choices=TYPES)
    parser.add_argument("--reader", choices=READERS, default=READERS[0])
    asked = parser.parse_args()
    try:
        print(ensure(asked.folder, asked.quantization, asked.reader))
    except LaunchError as error:
        print(f"error: {error}")
        sys.exit(1)
    except OSError as error:
        print(
            f"error: the model {asked.folder} cannot be written as GGUF ({error.strerror}): free"
            " some space, or point XDG_CACHE_HOME at a writable folder on a larger disk"
        )
        sys.exit(1)
