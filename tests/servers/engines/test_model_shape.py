"""The size of a model, read from its files."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from servers.engines import checkpoint, model_shape, vllm_settings
from servers.runtime import models
from tests.helpers.installed import require_installed

CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 8}


def safetensors(file: Path, **tensors: list[int]) -> None:
    header = json.dumps(
        {"__metadata__": {}}
        | {name: {"dtype": "BF16", "shape": size} for name, size in tensors.items()}
    ).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)


def model(folder: Path, **changes: Any) -> dict[str, Any] | None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    safetensors(
        folder / "model.safetensors",
        **{"model.embed_tokens.weight": [10, 8], "lm_head.weight": [10, 8], "x": [3, 5], "y": [7]},
    )
    return model_shape.read_model_shape(folder)


def test_the_known_answer_model(tiny: Path) -> None:
    preset = checkpoint.PRESETS["tiny"]
    found = {
        "parameters": preset.parameters(),
        "embedding_parameters": preset.vocabulary * preset.hidden,
        "tied_embeddings": False,
        "layers": preset.layers,
        "heads": preset.heads,
        "kv_heads": preset.kv_heads,
        "head_dim": preset.head_dim,
        "dtype_bytes": 2,
    }
    assert model_shape.read_model_shape(tiny) == found
    assert models.resolve_model(str(tiny), needs_weights=True).shape == found


def test_values_that_a_config_leaves_out(tmp_path: Path) -> None:
    assert model(tmp_path) == {
        "parameters": 182,
        "embedding_parameters": 80,
        "tied_embeddings": False,
        "layers": 2,
        "heads": 4,
        "kv_heads": 4,
        "head_dim": 2,
        "dtype_bytes": 2,
    }
    tied = model(tmp_path, tie_word_embeddings=True, num_key_value_heads=1, head_dim=3)
    assert tied and (tied["parameters"], tied["kv_heads"], tied["head_dim"]) == (102, 1, 3), (
        "one table, although the file holds it twice"
    )


def test_several_files_and_one_that_is_missing(tmp_path: Path) -> None:
    whole = model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    safetensors(tmp_path / "1.safetensors", **{"model.embed_tokens.weight": [10, 8], "x": [3, 5]})
    safetensors(tmp_path / "2.safetensors", **{"lm_head.weight": [10, 8], "y": [7]})
    names = {
        "model.embed_tokens.weight": "1.safetensors",
        "x": "1.safetensors",
        "lm_head.weight": "2.safetensors",
        "y": "2.safetensors",
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert whole and model_shape.read_model_shape(tmp_path) == whole
    (tmp_path / "2.safetensors").unlink()
    assert model_shape.read_model_shape(tmp_path) is None


@pytest.mark.parametrize(
    "unlike",
    [
        {"model_type": "mixtral"},
        {"quantization_config": {"bits": 4}},
        {"sliding_window": 4096},
        {"num_attention_heads": None},
    ],
)
def test_a_model_that_the_formulas_do_not_fit_has_no_shape(
    tmp_path: Path, unlike: dict[str, Any]
) -> None:
    assert model(tmp_path, **unlike) is None


def test_a_window_that_is_not_used(tmp_path: Path) -> None:
    assert model(tmp_path, model_type="qwen2", sliding_window=32768, use_sliding_window=False)


def test_broken_files(tmp_path: Path) -> None:
    assert model_shape.read_model_shape(tmp_path) is None
    for text in ("", "[]", "{}", "null"):
        (tmp_path / "config.json").write_text(text)
        assert model_shape.read_model_shape(tmp_path) is None
    model(tmp_path)
    for content in (b"", b"\1", struct.pack("<Q", 3) + b"abc"):
        (tmp_path / "model.safetensors").write_bytes(content)
        assert model_shape.read_model_shape(tmp_path) is None


def test_a_hub_model_has_a_shape_once_it_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_installed("huggingface_hub")
    import huggingface_hub

    assert models.resolve_model("serveoff-test/none", needs_weights=True).shape is None
    found = model(tmp_path)
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda name, file: str(tmp_path / file) if name == "org/name" else None,
    )
    assert found and models.resolve_model("org/name", needs_weights=True).shape == found
    assert models.resolve_model("org/name", needs_weights=True) == models.Model(
        "org/name", "org/name", False
    ), "the same model as before"


def test_the_bytes_per_number_are_those_of_the_engines() -> None:
    require_installed("torch")
    from servers.engines import Settings

    assert (
        vllm_settings.engine_arguments(Settings("vllm", "m", "m", 1, {}))["dtype"] == "bfloat16"
        and model_shape.DTYPE_BYTES == 2
    )
