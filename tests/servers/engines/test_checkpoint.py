"""The known-answer model: the same bytes everywhere, responses known in closed form, safe
generation.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from servers.contract import oracle
from servers.engines import checkpoint
from servers.runtime import catalog


def digests(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def generating(cache: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "servers.engines.checkpoint", "tiny"],
        cwd=catalog.ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )


@pytest.mark.parametrize(
    ("preset", "least", "most"),
    [("tiny", 3.5e6, 4.5e6), ("small", 25e6, 29e6), ("1b", 1e9, 1.6e9), ("8b", 7.5e9, 8.5e9)],
)
def test_presets_have_the_size_of_their_name(preset: str, least: float, most: float) -> None:
    assert least <= checkpoint.PRESETS[preset].parameters() <= most


def test_every_preset_is_a_known_answer_model() -> None:
    assert tuple(f"serveoff-{preset}" for preset in checkpoint.PRESETS) == oracle.PLANTED_MODELS
    for shape in checkpoint.PRESETS.values():
        assert shape.vocabulary >= len(checkpoint.SPECIAL_TOKENS) + oracle.WORDS
        assert shape.hidden % shape.heads == 0 and shape.heads % shape.kv_heads == 0


def test_the_count_of_parameters_matches_the_file(tiny: Path) -> None:
    from safetensors import safe_open

    with safe_open(tiny / "model.safetensors", "pt") as file:
        names = file.keys()  # safetensors' handle itself is not iterable
        assert (
            sum(file.get_tensor(name).numel() for name in names)
            == checkpoint.PRESETS["tiny"].parameters()
        )


def test_no_shard_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last tensor fills its shard, as in the 8b model."""
    from safetensors import safe_open

    shape = checkpoint.PRESETS["tiny"]
    head_bytes = checkpoint.DTYPE_BYTES * shape.vocabulary * shape.hidden
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", head_bytes)
    checkpoint._write_weights(tmp_path, shape, "cpu")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    files = sorted(tmp_path.glob("*.safetensors"))
    assert sorted(set(index.values())) == [file.name for file in files]
    assert (
        len(files) > 1
        and files[-1].name == f"model-{len(files):05d}-of-{len(files):05d}.safetensors"
    )
    for file in files:
        with safe_open(file, "pt") as shard:
            assert list(shard.keys()), file.name


def test_two_processes_at_once_make_one_complete_folder_with_the_same_bytes(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run has left half a model in the cache."""
    one, other = tmp_path / "one", tmp_path / "other"
    partial = one / "serveoff" / "models" / f"serveoff-tiny-v{checkpoint.FORMAT}.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_text("half")
    (partial / "left.over").touch()
    both = [generating(one), generating(one)]
    printed = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert sum("generating model serveoff-tiny (4 M" in err for _, err in printed) == 1, (
        "the second one waits for the first"
    )
    (folder,) = {Path(out.strip()) for out, _ in printed}
    assert folder.parent == partial.parent and not partial.exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(other))
    assert digests(folder) == digests(checkpoint.ensure("tiny")) == digests(tiny)
    assert not list(other.rglob("*.partial"))


@pytest.mark.slow
def test_a_killed_run_leaves_only_a_partial_folder(tmp_path: Path) -> None:
    process = generating(tmp_path)
    models = tmp_path / "serveoff" / "models"
    deadline = time.monotonic() + 60
    while not list(models.glob("*.partial")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [folder.name for folder in models.iterdir() if folder.is_dir()] == [
        f"serveoff-tiny-v{checkpoint.FORMAT}.partial"
    ]


def test_a_full_disk_is_reported_in_advance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e6))
    with pytest.raises(
        OSError,
        match=r"needs 0\.0 GB and .* has 0\.0 GB free: free some space, or point XDG_CACHE_HOME",
    ):
        checkpoint.ensure("tiny")
    assert not list(tmp_path.rglob("serveoff-tiny*"))


# --- tokenizer and responses


def prompts(count: int) -> list[str]:
    words = random.Random(5)
    return [" ".join(words.sample(oracle.VOCABULARY, words.randint(1, 40))) for _ in range(count)]


@pytest.mark.parametrize(
    "text",
    [
        "baba",
        " baba  babe\n\tbabi ",
        "baba hello",
        "Hello, world!",
        "é ü 漢字 \U0001f600",
        "baba.",
        "BABA",
        "",
        " \n",
        "\u00a0baba\u2003babe\u3000",
        "bababa babe",
        "baba\x00babe",
        "baba\x85babi",
        "a" * 5000,
        "baba\u200bbabe",
    ],
    ids=ascii,
)
def test_the_tokenizer_counts_as_the_oracle_does(hf_engine: Any, text: str) -> None:
    assert len(hf_engine.tokenizer(text).input_ids) == oracle.count_tokens(text)


def test_the_tokenizer_and_the_oracle_have_the_same_words(hf_engine: Any) -> None:
    ids = hf_engine.tokenizer(" ".join(oracle.VOCABULARY)).input_ids
    assert len(ids) == len(set(ids)) == oracle.WORDS
    assert hf_engine.tokenizer.decode(ids) == "".join(" " + word for word in oracle.VOCABULARY)


def test_the_chat_template_is_the_oracles(hf_engine: Any) -> None:
    chats = [
        [("user", "baba babe")],
        [("system", "be kind"), ("user", "baba"), ("assistant", "babe babi"), ("user", "bobo")],
    ]
    for chat in chats:
        messages = [{"role": role, "content": content} for role, content in chat]
        text = hf_engine.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert text == oracle.chat_text(chat)
        ids = hf_engine.tokenizer(text, add_special_tokens=False).input_ids
        assert len(ids) == oracle.count_tokens(text) and ids[0] == checkpoint.SPECIAL_TOKENS.index(
            f"<|{chat[0][0]}|>"
        )


def test_greedy_responses_in_a_batch_are_the_oracles(hf_engine: Any) -> None:
    """Complete 32 prompts of 1 to 40 words at once, among them the last words of the vocabulary and
    one outside it.
    """
    import torch

    asked = [*prompts(29), oracle.VOCABULARY[-3], "hello", "baba hello"]
    tokenizer = hf_engine.tokenizer
    batch = tokenizer(
        asked, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False
    )
    with torch.inference_mode():
        ids = hf_engine.network.generate(**batch, max_new_tokens=16, do_sample=False)
    texts = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :])
    assert texts == [oracle.continuation(prompt, 16) for prompt in asked]


def test_the_right_word_wins_by_a_wide_margin(hf_engine: Any) -> None:
    """Compare the logits of the best and the second word, for every word. With a narrow margin,
    another engine's rounding would change a response.
    """
    import torch

    words = torch.tensor(
        [
            hf_engine.tokenizer(" ".join(oracle.VOCABULARY[start : start + 500])).input_ids
            for start in range(0, oracle.WORDS, 500)
        ]
    )
    with torch.inference_mode():
        best = hf_engine.network(words).logits.float().topk(2)
    margin = (best.values[..., 0] - best.values[..., 1]) / best.values[..., 0]
    following = torch.cat([words.flatten()[1:], words.flatten()[:1]])
    assert torch.equal(best.indices[..., 0].flatten(), following)
    assert margin.min() > 0.1, margin.min()
