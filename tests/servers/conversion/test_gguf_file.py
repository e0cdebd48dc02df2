"""A model's folder as GGUF: what the file holds, and which folders are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from servers.runtime import models
from servers.runtime.errors import LaunchError
from tests.helpers.installed import require_installed

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 8,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
WORDS: dict[str, Any] = {
    "normalizer": None,
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "ByteLevel", "add_prefix_space": True, "use_regex": False},
        ],
    },
    "added_tokens": [
        {"id": 0, "content": "<unk>", "special": True},
        {"id": 1, "content": "<|end|>", "special": True},
    ],
    "model": {
        "type": "WordLevel",
        "vocab": {"<unk>": 0, "<|end|>": 1, "Ġbaba": 2, "Ġbabe": 3},
        "unk_token": "<unk>",
    },
}
PAIRS = WORDS | {
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        ],
    },
    "model": {
        "type": "BPE",
        "vocab": {"<unk>": 0, "<|end|>": 1, "a": 2, "b": 3, "ab": 4},
        "merges": [["a", "b"]],
    },
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHAPES = {
    "model.embed_tokens.weight": (8, 64),
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "model.layers.0.self_attn.k_proj.weight": (32, 64),
    "model.layers.0.mlp.down_proj.weight": (64, 96),
    "model.norm.weight": (64,),
    "lm_head.weight": (8, 64),
}
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Make a model's folder: half of its weights, in the upper 16 bits of random numbers."""
    require_installed("gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make_folder(tokenizer: Any = WORDS, scale: float = 1.0, **changed: Any) -> Path:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(CONFIG | changed))
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        header, data = {}, b""
        for name, shape in SHAPES.items():
            more = (weights(name, scale).view(np.uint32) >> 16).astype("<u2").tobytes()
            place = [len(data), len(data) + len(more)]
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": place}
            data += more
        text = json.dumps(header).encode()
        start = len(text).to_bytes(8, "little") + text
        (folder / "model.safetensors").write_bytes(start + data)
        return folder

    return make_folder


def weights(name: str, scale: float = 1.0) -> Any:
    """Numbers that bfloat16 holds exactly."""
    random = np.random.default_rng(sum(name.encode())).normal(size=SHAPES[name]) * scale
    return (random.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def convert(folder: Path, quantization: str = "f16", reader: str = "llama.cpp") -> Path:
    from servers.conversion import gguf_file

    return gguf_file.ensure(folder, quantization, reader)


def read(file: Path) -> Any:
    """The fields and tensors of a GGUF file, as its own library reads them."""
    import gguf

    reader = gguf.GGUFReader(file)
    return SimpleNamespace(
        fields={name: field.contents() for name, field in reader.fields.items()},
        types={tensor.name: tensor.tensor_type.name for tensor in reader.tensors},
        values={
            tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            for tensor in reader.tensors
        },
    )


def test_whole_words_and_weights_in_the_order_of_ggml(make: Make) -> None:
    found = read(convert(make()))
    assert found.fields["llama.rope.dimension_count"] == 32
    assert found.fields["tokenizer.ggml.model"] == "t5"
    tokens = found.fields["tokenizer.ggml.tokens"]
    assert tokens[:5] == ["<unk>", "<|end|>", "▁baba", "▁babe", "[unused4]"] and len(tokens) == 8
    assert found.fields["tokenizer.ggml.token_type"] == [2, 3, 1, 1, 5, 5, 5, 5]
    assert found.fields["tokenizer.ggml.add_bos_token"] is False
    assert found.fields["tokenizer.chat_template"] == "{{ messages }}"
    assert found.types["output_norm.weight"] == "F32" and found.types["output.weight"] == "F16"
    ours = weights("model.layers.0.self_attn.q_proj.weight")
    # of each head the first half's rows and the second half's, in turns
    order = [head * 32 + part * 16 + row for head in (0, 1) for row in range(16) for part in (0, 1)]
    assert np.allclose(found.values["blk.0.attn_q.weight"], ours[order], rtol=1e-3)
    down = weights("model.layers.0.mlp.down_proj.weight")
    assert np.allclose(found.values["blk.0.ffn_down.weight"], down, rtol=1e-3)


@pytest.mark.parametrize(("tied", "embeddings"), [(False, "Q4_0"), (True, "Q8_0")])
def test_four_bits_leave_eight_to_the_head(make: Make, tied: bool, embeddings: str) -> None:
    types = read(convert(make(tie_word_embeddings=tied), "q4_0")).types
    assert types["token_embd.weight"] == embeddings and types["blk.0.ffn_down.weight"] == "Q4_0"
    assert types.get("output.weight") == (None if tied else "Q8_0")


def test_byte_pairs_and_scaled_positions(make: Make) -> None:
    found = read(convert(make(PAIRS, rope_scaling=LLAMA3), "bf16"))
    fields, factors = found.fields, found.values["rope_freqs.weight"]
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "smollm")
    assert fields["tokenizer.ggml.merges"] == ["a b"]
    # the fast pairs turn as before, the slow ones an eighth as fast
    assert factors[0] == 1 and factors[-1] == 8 and (np.diff(factors) >= 0).all()


def test_openvino_gets_a_tokenizer_that_it_reads(make: Make) -> None:
    fields = read(convert(make(), "q8_0", "openvino")).fields
    assert fields["tokenizer.ggml.model"] == "gpt2" and fields["tokenizer.ggml.merges"]


def test_a_file_is_written_once_and_again_for_a_changed_folder(make: Make) -> None:
    folder = make()
    first = convert(folder)
    first.write_bytes(b"kept")
    assert convert(folder).read_bytes() == b"kept"
    assert convert(make(rope_theta=5000.0)) != first


QWEN = {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated"}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "has the architecture GPT2LMHeadModel, which"),
        ({"architectures": None}, "has the architecture none, which"),
        ({"sliding_window": 4096}, "has a sliding window"),
        ({"hidden_act": "gelu"}, "has the activation gelu"),
        ({"rope_scaling": {"type": "yarn"}}, "has positions of the kind yarn"),
        ({"quantization_config": {}}, "has weights that are already quantised"),
        ({"vocab_size": None}, "has no vocab_size, which GGUF needs"),
        ({"tokenizer": WORDS | {"pre_tokenizer": QWEN}}, "a tokenizer that this conversion"),
        ({"tokenizer": WORDS | {"normalizer": {"type": "NFC"}}}, "a tokenizer that this"),
        ({"tokenizer": {}}, r"tokenizer\.json is not a tokenizer of the library"),
        ({"tokenizer": []}, r"tokenizer\.json is not a JSON object"),
        ({"num_hidden_layers": 0}, r"the tensor model\.layers\.0\S* \(BF16\) of \S+ is none of"),
        ({"scale": 1e6}, r"\.weight has numbers beyond the range of F16"),
    ],
)
def test_a_folder_that_it_cannot_convert(
    make: Make, changed: dict[str, Any], sentence: str
) -> None:
    folder = make(**changed)
    with pytest.raises(LaunchError, match=sentence):
        convert(folder)
    left = [file for file in (folder.parent / "cache").rglob("*") if file.suffix != ".lock"]
    assert not [file for file in left if file.is_file()], "nothing half made stays"


def test_an_incomplete_folder(make: Make) -> None:
    weights = make() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(LaunchError, match=r"model\.safetensors is incomplete"):
        convert(weights.parent)
    weights.unlink()
    with pytest.raises(LaunchError, match=r"has no model\.safetensors"):
        convert(weights.parent)
    (weights.parent / "tokenizer.json").unlink()
    with pytest.raises(LaunchError, match=r"has no tokenizer\.json, which GGUF needs"):
        convert(weights.parent)


def test_a_full_disk(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    full = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(LaunchError, match=r"needs 0\.00 GB and \S+ has 0\.00 GB free: free some"):
        convert(make())


def test_the_launcher_gives_the_conversions_own_sentence(make: Make) -> None:
    folder = make(architectures=["GPT2LMHeadModel"])
    with pytest.raises(LaunchError, match=r"^the model \S+ has the architecture GPT2"):
        models.convert_model(
            "llama_cpp", models.Model("m", str(folder), False), {"quantization": "f16"}
        )
    with pytest.raises(LaunchError, match="llama_cpp reads no models of a hub: download org/m"):
        models.convert_model("llama_cpp", models.Model("org/m", "org/m", False), {})
