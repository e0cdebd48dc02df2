"""vLLM's own server must run the same engine as our servers with vLLM: its flags must match
AsyncEngineArgs.
"""

import importlib
import json
import os

import pytest

from servers.engines import Settings
from tests.helpers.python_program import output_of

SETTINGS = Settings("vllm", "a-name", "/a folder", 1, {})


@pytest.mark.requires("torch")
@pytest.mark.parametrize("on_gpu", [False, True])
def test_memory_and_context_are_options(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default vLLM fits the context to the memory: it would refuse to start with a model of 128k
    tokens on a card of 24 GB.
    """
    from servers.engines import vllm_settings

    def found() -> tuple[float, int]:
        arguments = vllm_settings.engine_arguments(SETTINGS)
        return arguments["gpu_memory_utilization"], arguments["max_model_len"]

    monkeypatch.setattr(vllm_settings, "is_on_gpu", lambda: on_gpu)
    assert found() == (0.9 if on_gpu else 0.2, -1)
    monkeypatch.setenv("SERVEOFF_GPU_MEMORY_UTILIZATION", "0.45")
    monkeypatch.setenv("SERVEOFF_MAX_MODEL_LEN", "8192")
    assert found() == (0.45, 8192)


@pytest.mark.requires("torch")
@pytest.mark.parametrize("on_gpu", [False, True])
def test_caches_are_options(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, the share of its memory decides how many keys and values fit."""
    from servers.engines import vllm_settings

    def found() -> tuple[bool, int | None]:
        arguments = vllm_settings.engine_arguments(SETTINGS)
        return arguments["enable_prefix_caching"], arguments.get("kv_cache_memory_bytes")

    monkeypatch.setattr(vllm_settings, "is_on_gpu", lambda: on_gpu)
    assert found() == (False, None if on_gpu else 2**30)
    monkeypatch.setenv("SERVEOFF_PREFIX_CACHING", "on")
    monkeypatch.setenv("SERVEOFF_KV_CACHE_GIB", "0.25")
    assert found() == (True, None if on_gpu else 2**28)


@pytest.mark.requires("torch")
def test_an_option_comes_before_vllms_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM would prefer the variable: the case would not have the memory in its name."""
    from servers.engines import vllm_settings

    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    importlib.reload(vllm_settings)
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "4"
    monkeypatch.setenv("SERVEOFF_KV_CACHE_GIB", "0.25")
    importlib.reload(vllm_settings)
    assert "VLLM_CPU_KVCACHE_SPACE" not in os.environ


@pytest.mark.slow
@pytest.mark.requires("vllm")
def test_the_flags_match_the_arguments_of_our_engine() -> None:
    printed = output_of("parse_vllm_flags", timeout_s=200)
    wanted, parsed = json.loads(printed.splitlines()[-1])
    assert parsed == wanted | {"served_model_name": ["a-name"]}  # vLLM allows several
    assert wanted["enable_prefix_caching"] is False and wanted["generation_config"] == "vllm"
