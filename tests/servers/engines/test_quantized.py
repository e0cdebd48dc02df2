"""Four-bit weights: the formats, and that vLLM's responses with them are still the oracle's."""

import json
from pathlib import Path

import pytest

from servers.contract.conformance import select_checks, verify_server
from servers.engines import quantized
from servers.runtime import catalog, launch, models
from servers.runtime.errors import LaunchError
from servers.runtime.launch import CoreShare
from servers.runtime.models import Model

# position of each column in its word
SHIFTS = {"gptq": range(8), "awq": [quantized.AWQ_ORDER.index(column) for column in range(8)]}


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_each_weight_is_stored_to_within_half_a_step(kind: str, tiny: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    def unpacked(words: "torch.Tensor") -> "torch.Tensor":
        return torch.stack([(words >> 4 * shift) & 15 for shift in SHIFTS[kind]], -1).flatten(-2)

    (tmp_path / "model").symlink_to(tiny)
    folder = quantized.ensure(tmp_path / "model", kind)
    before, after = load_file(tiny / "model.safetensors"), load_file(folder / "model.safetensors")
    for name, weight in before.items():
        if not name.endswith("_proj.weight"):
            assert torch.equal(after.pop(name), weight)
            continue
        base = name.removesuffix("weight")
        words, zeros, scales = (after.pop(base + part) for part in ("qweight", "qzeros", "scales"))
        steps = unpacked(words.T).T if kind == "gptq" else unpacked(words)
        middles = unpacked(zeros) + (1 if kind == "gptq" else 0)
        assert kind == "awq" or torch.equal(
            after.pop(base + "g_idx"), torch.arange(len(steps)) // 128
        )
        scale, middle = (each.repeat_interleave(128, 0) for each in (scales.float(), middles))
        assert ((steps - middle) * scale - weight.float().T).abs().le(0.51 * scale).all()
    assert not after
    assert (
        json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"]
        == kind
    )
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        file.name for file in tiny.iterdir()
    )


def test_only_generated_models_are_quantised() -> None:
    with pytest.raises(
        LaunchError,
        match="quantization=gptq works with generated models only: choose one with --model",
    ):
        launch.prepare_server(
            catalog.find_server("vllm_openai"),
            "vllm",
            Model("mine", "/mine", False),
            {"quantization": "gptq"},
        )


@pytest.mark.slow
@pytest.mark.requires("vllm")
@pytest.mark.parametrize("name", ["fastapi_vllm", "vllm_openai"])
@pytest.mark.parametrize(
    "options",
    [{"quantization": "gptq"}, {"quantization": "awq"}, {"tensor_parallel": "2"}],
    ids=str,
)
def test_with_fewer_bits_or_in_two_parts_the_responses_are_the_same(
    name: str, options: dict[str, str], tmp_path: Path
) -> None:
    server, model = catalog.find_server(name), models.resolve_model("tiny", needs_weights=True)
    before = set(Path("/dev/shm").glob("vllm*"))
    with launch.run_server(
        server, "vllm", model, CoreShare(), tmp_path / "log", options=options
    ) as running:
        checks = verify_server(
            running.base_url, checks=select_checks(True, server.waives, server.transports)
        )
    assert set(Path("/dev/shm").glob("vllm*")) <= before, (
        "two parts communicate through shared memory, which vLLM leaves behind"
    )
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]
