"""The engines that servers can run, with what each needs. Never imports one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class OpenOption(NamedTuple):
    """An option whose values no list can name: the pattern of a value, and the same in words."""

    pattern: str
    kind: str
    default: str
    meaning: str


VLLM_OPTIONS = {
    "gpu_memory_utilization": OpenOption(
        r"0?\.\d*[1-9]\d*|1(\.0*)?",
        "a number above 0 and up to 1",
        "0.9",
        "vLLM's share of each card's memory, for weights and the rest for keys and values; on a CPU"
        " of the machine's memory, by default 0.2",
    ),
    "max_model_len": OpenOption(
        r"auto|[1-9]\d*",
        "auto or a number above 0",
        "auto",
        "longest prompt and response together, in tokens; auto: the model's own length, or less if"
        " its keys and values do not fit vLLM's memory",
    ),
    "prefix_caching": OpenOption(
        "off|on",
        "off or on",
        "off",
        "whether vLLM keeps keys and values of earlier prompts for prompts that start alike; off"
        " here, since most generated prompts are unique",
    ),
    "kv_cache_gib": OpenOption(
        r"0?\.\d*[1-9]\d*|[1-9]\d*(\.\d+)?",
        "a number above 0",
        "1",
        "memory for keys and values on a CPU, in GiB; on a GPU gpu_memory_utilization sets it",
    ),
}


@dataclass(frozen=True)
class EngineSpec:
    """A module of servers/engines/ that runs a model. `classes`: the engine's class by kind
    (blocking, async or batch: see servers/engines/__init__.py); it is constructed with `Settings`.
    `options`: options of every server with this engine; the engine reads them as SERVEOFF_NAME.
    `about`: what it is, if it has no module since only its own servers run it.

    `conversion`: the module of servers/conversion/ and its arguments that write the model in the
    engine's own format, which may use {model} and the names of the server's options. It runs in the
    server's environment before the start; its last line of stdout becomes {converted} in the
    server's commands, and SERVEOFF_CONVERTED.
    """

    classes: Mapping[str, str]
    requires: tuple[str, ...] = ()  # modules, besides the server's own `requires`
    extras: tuple[str, ...] = ()  # extras of pyproject.toml that install those modules
    options: Mapping[str, OpenOption] = field(default_factory=dict)
    conversion: tuple[str, ...] = ()
    about: str = ""


ENGINES = {
    "hf": EngineSpec({"blocking": "HfEngine"}, ("torch", "transformers"), ("hf",)),
    "hf_batched": EngineSpec({"batch": "HfBatchEngine"}, ("torch", "transformers"), ("hf",)),
    "hf_continuous": EngineSpec(
        {"async": "HfContinuousEngine"}, ("torch", "transformers"), ("hf",)
    ),
    # the noxfile chooses the extra for this machine
    "vllm": EngineSpec(
        {"async": "VllmEngine"}, ("torch", "vllm"), ("vllm-cpu", "vllm-gpu"), VLLM_OPTIONS
    ),
    "openvino": EngineSpec(
        {"async": "OpenvinoEngine"},  # its packages are those of its server's own environment
        extras=("hf",),
        conversion=("servers.conversion.gguf_file", "{model}", "{weights}", "--reader", "openvino"),
    ),
    # the known-answer model is generated in our environment
    "llama_cpp": EngineSpec(
        {},
        extras=("hf",),
        conversion=("servers.conversion.gguf_file", "{model}", "{quantization}"),
        about="llama.cpp, in servers of its own only: weights in its format GGUF, on the CPU.",
    ),
    "simulated": EngineSpec(
        {
            "blocking": "SimulatedBlockingEngine",
            "async": "SimulatedAsyncEngine",
            "batch": "SimulatedBatchEngine",
        }
    ),
}
