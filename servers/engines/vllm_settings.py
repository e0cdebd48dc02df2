"""What vLLM is told, in our process or as a server of its own: it must be the same engine, or
comparing the two would say nothing.
"""

import os
from pathlib import Path
from typing import Any

from servers.engines import Settings, quantized

# To be set before vLLM is imported. One thread a core of the server's share: on a CPU vLLM would
# bind itself to cores of its own choice.
ENVIRONMENT = {
    "OMP_NUM_THREADS": os.environ.get("SERVEOFF_ENGINE_THREADS", "1"),
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # GiB; enough for 64 sequences of 2,048 tokens of the small model
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}

GPU_SHARE = 0.9  # of the card: weights, and the rest for keys and values


def engine_arguments(settings: Settings) -> dict[str, Any]:
    """Of vLLM's AsyncEngineArgs. The rest is vLLM's own choice for an OpenAI server on this
    device.
    """
    import torch  # here, since whoever wants the environment only need not wait for it

    on_gpu = torch.cuda.is_available()
    quantization = os.environ.get("SERVEOFF_QUANTIZATION", "none")
    path = (
        str(quantized.ensure(Path(settings.path), quantization))
        if quantization in quantized.CONFIG
        else settings.path
    )
    return {
        "model": path,
        "served_model_name": settings.model,
        "dtype": "bfloat16",
        "enable_prefix_caching": False,  # most measured prompts are unique: stated, not hidden
        # what a request leaves open is OpenAI's default, not the model's own
        "generation_config": "vllm",
        # On a CPU, compiling takes a minute and needs a C++ compiler, for about a fifth more speed.
        "enforce_eager": not on_gpu,
        # Of the device's memory; on a CPU vLLM refuses to start unless that share is free right
        # now.
        "gpu_memory_utilization": GPU_SHARE if on_gpu else 0.2,
        "tensor_parallel_size": int(os.environ.get("SERVEOFF_TENSOR_PARALLEL", "1")),
        # of the same weights, while they are loaded
        **({"quantization": "fp8"} if quantization == "fp8" else {}),
        **({} if on_gpu else {"max_num_seqs": 64}),
    }


def flags(arguments: dict[str, Any]) -> list[str]:
    """The same for vLLM's command line."""
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    return [
        f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name}={value}"
        for name, value in named.items()
    ]
