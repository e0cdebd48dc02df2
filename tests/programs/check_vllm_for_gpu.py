"""Checks without a card what vLLM's build for GPUs makes of our settings. Prints as JSON the
versions and {name: problem} of each check; an empty problem is a success.

Run it beside fake_cuda.c and a fake NVML with one card (tests/studies/gpu_rehearsal.py).
"""

import inspect
import json
import os
import runpy
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any
from unittest import mock

from servers.engines import Settings, vllm_settings
from servers.runtime import catalog, cuda_toolkit, models

os.environ.update(vllm_settings.ENVIRONMENT)
os.environ.update(cuda_toolkit.vllm_environment(cuda_toolkit.torch_cuda(), catalog.search_path()))
PACKAGES = ("vllm", "torch", "transformers", "triton", "flashinfer-python")
QUANTIZATIONS = ("none", "fp8", "gptq", "awq")
EXPECTED = {  # what vLLM calls them: it repacks GPTQ and AWQ for its own kernels
    "none": (None,),
    "fp8": ("fp8",),
    "gptq": ("gptq_marlin", "auto_gptq", "gptq"),
    "awq": ("awq_marlin", "auto_awq", "awq"),
}


def arguments_for(quantization: str) -> dict[str, Any]:
    """Our engine arguments on a GPU, for the tiny model."""
    os.environ["SERVEOFF_QUANTIZATION"] = quantization
    return vllm_settings.engine_arguments(Settings.from_environment())


def check_platform() -> None:
    from vllm.platforms import current_platform

    assert current_platform.is_cuda(), f"vLLM chose {type(current_platform).__name__}"
    assert tuple(current_platform.get_device_capability()) >= (8, 0)


def check_torch() -> None:
    import torch

    assert torch.version.cuda == cuda_toolkit.torch_cuda(), "torch_cuda() differs from torch"
    assert torch.version.cuda, "torch is built for a CPU"


def check_sampler() -> None:
    from vllm import envs

    reason = cuda_toolkit.why_no_cuda_compiler(
        str(cuda_toolkit.torch_cuda()), catalog.search_path()
    )
    assert bool(envs.VLLM_USE_FLASHINFER_SAMPLER) == (not reason), reason


def check_configuration(quantization: str) -> None:
    """vLLM's own configuration classes take our arguments as we mean them."""
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    wanted = arguments_for(quantization)
    config = AsyncEngineArgs(**wanted).create_engine_config(UsageContext.OPENAI_API_SERVER)
    model, cache = config.model_config, config.cache_config
    assert model.quantization in EXPECTED[quantization], f"quantization {model.quantization}"
    assert str(model.dtype) == f"torch.{wanted['dtype']}", f"dtype {model.dtype}"
    assert model.max_model_len > 0 and not model.enforce_eager
    assert not cache.enable_prefix_caching
    assert cache.gpu_memory_utilization == wanted["gpu_memory_utilization"]
    assert config.device_config.device_type == "cuda"


def check_server_arguments(quantization: str) -> None:
    """vLLM's own server parses what we mean, started with exactly our command.
    It ends before it looks for a card.
    """
    import uvloop
    from vllm import AsyncEngineArgs

    wanted = arguments_for(quantization)
    started: list[list[str]] = []
    parsed: list[Any] = []

    def note_command(program: str, command: list[str], environment: dict[str, str]) -> None:
        started.append(command)

    def note_arguments(server: Any) -> None:
        parsed.append(server.cr_frame.f_locals["args"])
        server.close()

    with (
        mock.patch.object(os, "execve", note_command),
        mock.patch.object(sys, "argv", ["start", "127.0.0.1", "8000"]),
    ):
        runpy.run_module("servers.vllm_openai.start", run_name="__main__")
    [[_, _, module, *flags]] = started
    with (
        mock.patch.object(uvloop, "run", note_arguments),
        mock.patch.object(sys, "argv", [module, *flags]),
    ):
        runpy.run_module(module, run_name="__main__")
    [of_server] = parsed
    engine = AsyncEngineArgs.from_cli_args(of_server)
    differing = {
        name: (value, getattr(engine, name))
        for name, value in wanted.items()
        if getattr(engine, name) not in (value, [value])
    }
    assert not differing, f"(ours, parsed): {differing}"
    assert (of_server.host, of_server.port) == ("127.0.0.1", 8000)


def check_engine() -> None:
    """Our engine in the server's process imports, and vLLM takes its arguments."""
    from vllm.utils.import_utils import resolve_obj_by_qualname

    from servers.engines import vllm as engine

    inspect.signature(engine.AsyncLLM.from_engine_args).bind(None, usage_context=None)
    inspect.signature(engine.AsyncLLM.generate).bind(None, {}, engine.SamplingParams(), "id")
    resolve_obj_by_qualname(arguments_for("none")["worker_extension_cls"])


def run(check: Callable[..., None], *arguments: str) -> str:
    try:
        check(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:400]
    return ""


def main() -> None:
    tiny = models.resolve_model("tiny", needs_weights=True)
    os.environ |= {"SERVEOFF_ENGINE": "vllm", "SERVEOFF_MODEL_NAME": tiny.name}
    os.environ |= {"SERVEOFF_MODEL_PATH": tiny.path, "SERVEOFF_ENGINE_THREADS": "1"}
    vllm_settings.is_on_gpu = lambda: True  # torch finds no card
    problems = {
        "torch is built for CUDA": run(check_torch),
        "vLLM's platform is CUDA": run(check_platform),
        "FlashInfer's sampler only with a toolkit": run(check_sampler),
        "our engine imports": run(check_engine),
    }
    for kind in QUANTIZATIONS:
        problems[f"configuration, quantization={kind}"] = run(check_configuration, kind)
        problems[f"arguments of vllm_openai, quantization={kind}"] = run(
            check_server_arguments, kind
        )
    versions = {name: metadata.version(name) for name in PACKAGES}
    print(json.dumps({"versions": versions, "problems": problems}))


if __name__ == "__main__":
    main()
