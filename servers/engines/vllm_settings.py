"""Arguments of vLLM, in our process and as a server of its own: to compare the two, the engine must
be the same.
"""

import os
from pathlib import Path
from typing import Any

from servers.engines import Settings, quantized
from servers.runtime.cuda_devices import engine_dtype, vllm_for_cpu
from servers.runtime.engine_specs import ENGINES

# Set these before importing vLLM. One thread per core of the server's share: on a CPU vLLM would
# otherwise bind itself to cores of its own choice.
ENVIRONMENT = {
    "OMP_NUM_THREADS": os.environ.get("SERVEOFF_ENGINE_THREADS", "1"),
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
if "SERVEOFF_KV_CACHE_GIB" in os.environ:  # vLLM prefers its own variable to the argument
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)


def is_on_gpu() -> bool:
    """Return whether vLLM computes on a GPU; its build for GPUs never falls back to a CPU."""
    import torch  # here, so reading ENVIRONMENT does not wait for it

    return torch.cuda.is_available() and not vllm_for_cpu()


def engine_arguments(settings: Settings) -> dict[str, Any]:
    """Return arguments of vLLM's AsyncEngineArgs. vLLM chooses the others as for an OpenAI server
    on this device.
    """
    on_gpu = is_on_gpu()
    quantization = os.environ.get("SERVEOFF_QUANTIZATION", "none")
    # A CPU shares its memory with everything else: vLLM refuses to start unless its share is free.
    options = ENGINES["vllm"].options
    share = options["gpu_memory_utilization"].default if on_gpu else "0.2"
    length = os.environ.get("SERVEOFF_MAX_MODEL_LEN", options["max_model_len"].default)
    path = (
        str(quantized.ensure(Path(settings.path), quantization))
        if quantization in quantized.CONFIG
        else settings.path
    )
    return {
        "model": path,
        "served_model_name": settings.model,
        "dtype": engine_dtype(),
        "worker_extension_cls": "servers.runtime.cuda_devices.WorkerExtension",
        "enable_prefix_caching": os.environ.get("SERVEOFF_PREFIX_CACHING") == "on",
        # OpenAI's defaults for fields that a request leaves open, not the model's own
        "generation_config": "vllm",
        # On a CPU, compiling takes a minute and needs a C++ compiler; it gains about a fifth.
        "enforce_eager": not on_gpu,
        "gpu_memory_utilization": float(os.environ.get("SERVEOFF_GPU_MEMORY_UTILIZATION", share)),
        # -1: the model's own, or what fits. Otherwise vLLM refuses to start if the keys and values
        # of one request of the model's own length do not fit, however short the requests are.
        "max_model_len": -1 if length == "auto" else int(length),
        "tensor_parallel_size": int(os.environ.get("SERVEOFF_TENSOR_PARALLEL", "1")),
        # quantises the same weights while loading them
        **({"quantization": "fp8"} if quantization == "fp8" else {}),
        **({} if on_gpu else {"max_num_seqs": 64, "kv_cache_memory_bytes": kv_cache_bytes()}),
    }


def kv_cache_bytes() -> int:
    """Return the memory for keys and values on a CPU."""
    default = ENGINES["vllm"].options["kv_cache_gib"].default
    return int(float(os.environ.get("SERVEOFF_KV_CACHE_GIB", default)) * 2**30)


def flags(arguments: dict[str, Any]) -> list[str]:
    """Return the same arguments for vLLM's command line."""
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    return [
        f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name}={value}"
        for name, value in named.items()
    ]
