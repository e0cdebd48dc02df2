"""Quantises a generated model to four-bit weights in the formats of GPTQ and AWQ, for engines that
compute with those.

Each weight is rounded to the nearest of fifteen steps of its group. The calibration that gives the
two methods their names is left out: it makes responses better, not faster. The known-answer model's
margin is far wider than the rounding. Embeddings and head keep their 16 bits, as in other quantised
models. So every response is still known.

    python -m servers.engines.quantized FOLDER gptq

quantises it unless that was done before; the last line of stdout is the new folder.

Formats: AutoGPTQ's `QuantLinear` ("gptq", version 1) and AutoAWQ's `WQLinear_GEMM`, as vLLM reads
them.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from servers.contract.api import JsonObject
from servers.runtime import build_cache

if TYPE_CHECKING:
    import torch  # slow to import: only to quantise

GROUP = 128  # weights of one row that share a scale
MIDDLE = 8  # the step that is 0
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of the eight columns in one word, the lowest bits first
INDEX = "model.safetensors.index.json"
CONFIG: dict[str, JsonObject] = {
    "gptq": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "sym": True,
        "desc_act": False,
        "checkpoint_format": "gptq",
    },
    "awq": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP,
        "zero_point": True,
        "version": "gemm",
    },
}


def ensure(folder: Path, kind: str) -> Path:
    """Return the folder beside it with the quantised model; make it unless it exists. Several
    processes may call this at once.
    """
    found = folder.with_name(f"{folder.name}-{kind}")
    with build_cache.create_once(found) as partial:
        if partial:
            files: dict[str, str] = {}
            for file in folder.iterdir():
                if file.suffix == ".safetensors":
                    files |= dict.fromkeys(
                        _write_weights(file, partial / file.name, kind), file.name
                    )
                elif file.name not in ("config.json", INDEX):
                    shutil.copy(file, partial)
            if (folder / INDEX).exists():
                (partial / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
            config = json.loads((folder / "config.json").read_text())
            (partial / "config.json").write_text(
                json.dumps(config | {"quantization_config": CONFIG[kind]}, indent=1)
            )
    return found


def _write_weights(file: Path, to: Path, kind: str) -> list[str]:
    """Write the quantised file; return the names of its tensors."""
    from safetensors.torch import load_file, save_file

    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(file).items():
        if name.endswith("_proj.weight"):
            base = name.removesuffix("weight")
            tensors |= {
                base + part: value.contiguous()
                for part, value in (_gptq if kind == "gptq" else _awq)(tensor).items()
            }
        else:
            tensors[name] = tensor
    save_file(tensors, to, metadata={"format": "pt"})
    return list(tensors)


def _steps(weight: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """Return (steps 1 to 15 of shape [inputs, outputs], scales of shape [inputs / GROUP, outputs])
    of a weight of shape [outputs, inputs].
    """
    groups = weight.float().T.unflatten(0, (-1, GROUP))
    scales = (groups.abs().amax(1) / (MIDDLE - 1)).to(weight.dtype)
    steps = (groups / scales.float()[:, None]).round().clamp(1 - MIDDLE, MIDDLE - 1) + MIDDLE
    return steps.flatten(0, 1), scales


def _packed(steps: "torch.Tensor", order: Sequence[int] = range(8)) -> "torch.Tensor":
    """Pack eight neighbours of the last dimension into one int32, four bits each."""
    import torch

    eights = steps.to(torch.int64).unflatten(-1, (-1, 8))
    words = sum(eights[..., column] << 4 * place for place, column in enumerate(order))
    return torch.as_tensor(words).to(torch.uint32).view(torch.int32)


def _gptq(weight: "torch.Tensor") -> "dict[str, torch.Tensor]":
    import torch

    steps, scales = _steps(weight)
    zeros = torch.full_like(scales, MIDDLE - 1, dtype=torch.float32)  # version 1 stores one less
    return {
        "qweight": _packed(steps.T).T,
        "qzeros": _packed(zeros),
        "scales": scales,
        "g_idx": torch.arange(len(steps), dtype=torch.int32) // GROUP,
    }


def _awq(weight: "torch.Tensor") -> "dict[str, torch.Tensor]":
    import torch

    steps, scales = _steps(weight)
    zeros = torch.full_like(scales, MIDDLE, dtype=torch.float32)
    return {
        "qweight": _packed(steps, AWQ_ORDER),
        "qzeros": _packed(zeros, AWQ_ORDER),
        "scales": scales,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Quantise a generated model and print the new folder."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind", choices=CONFIG)
    asked = parser.parse_args()
    try:
        print(ensure(asked.folder, asked.kind))
    except OSError as error:
        sys.exit(f"error: {error}: free some space, or point XDG_CACHE_HOME at a larger disk")
