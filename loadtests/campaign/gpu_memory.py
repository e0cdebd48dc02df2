"""The memory budget of a GPU: picks the default model and number of worker processes, and rejects
cases that cannot fit.

It budgets a single card: the engines use the first card that they see, and vLLM with
`tensor_parallel` fills several cards equally. Without a GPU it accepts every case.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from loadtests.errors import UsageError
from loadtests.schema import Case
from loadtests.telemetry.gpu import Gpus
from servers.runtime import catalog, models

GIB = 2**30
# per process: CUDA's context, its libraries and their workspace; about what nvidia-smi shows for a
# process without a model
CUDA_BYTES = 0.6 * GIB
# of the card, which vLLM reserves when it starts (servers/engines/vllm_settings.py)
VLLM_SHARE = 0.9
# processes take turns on a card: more of them hold more copies of the model but compute no faster
MOST_WORKERS = 4


class Card(NamedTuple):
    """The GPU that the engines will use, and the number of GPUs that they see."""

    name: str
    total_bytes: int
    free_bytes: int
    cards: int = 1


def find_card() -> Card | None:
    """The card that the engines will use. None without a GPU, or for a card in MIG mode, because
    NVML reports the memory of the whole card and not of its parts.
    """
    gpus = Gpus()
    if not (visible := visible_indices(gpus)):
        return None
    index = visible[0]
    described = gpus.describe()[index]
    free = gpus.value(
        index, "memory", lambda handle: int(gpus.nvml.nvmlDeviceGetMemoryInfo(handle).free)
    )
    if not described["memory_bytes"] or free is None or described["mig"]:
        return None
    return Card(described["name"] or "a GPU", described["memory_bytes"], free, len(visible))


def visible_indices(gpus: Gpus) -> list[int]:
    """NVML's indices of the cards in CUDA_VISIBLE_DEVICES, in its order. As in CUDA, an entry is a
    number or the start of a UUID, and the list ends at the first entry that matches no card. The
    parts of a card in MIG mode have UUIDs of their own, which match no card here.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(range(gpus.count))
    uuids = [
        gpus.value(index, "UUID", gpus.nvml.nvmlDeviceGetUUID) or "" for index in range(gpus.count)
    ]
    found: list[int] = []
    for name in map(str.strip, visible.split(",")):
        index = next(
            (
                i
                for i, uuid in enumerate(uuids)
                if name == str(i) or (name and uuid.startswith(name))
            ),
            None,
        )
        if index is None:
            break
        found.append(index)
    return found


def default_preset(card: Card | None) -> str:
    """The largest generated model that leaves a fifth of the card free for keys, values and
    activations; "small" without a card.
    """
    if card is None:
        return "small"
    return next(
        (name for name, size in models.preset_bytes().items() if size <= 0.8 * card.total_bytes),
        "tiny",
    )


def bytes_per_copy(shape: Mapping[str, Any] | None) -> float:
    """Memory of one process: the weights, the keys and values of one context of 4,096 tokens, and
    CUDA itself.
    """
    if shape is None:
        return CUDA_BYTES
    weights = shape["parameters"] * shape["dtype_bytes"]
    context = (
        4096 * 2 * shape["layers"] * shape["kv_heads"] * shape["head_dim"] * shape["dtype_bytes"]
    )
    return weights + context + CUDA_BYTES


def default_workers(card: Card | None, shape: Mapping[str, Any] | None, cores: int) -> int:
    """The default number of worker processes: one per core, and on a GPU at most MOST_WORKERS and
    no more than fit its memory.
    """
    if card is None:
        return cores
    return max(1, min(cores, MOST_WORKERS, int(card.free_bytes / bytes_per_copy(shape))))


def check_memory(
    cases: Sequence[Case],
    servers: Mapping[str, catalog.ServerSpec],
    shape: Mapping[str, Any] | None,
    count: int,
    card: Card | None,
) -> None:
    """Raises UsageError for the first case that does not fit. `servers`: by name; `count`: worker
    processes.
    """
    if card is None or shape is None:  # a model has no known shape before its download
        return
    one = bytes_per_copy(shape)
    for case in cases:
        if case.engine == "simulated" or case.server not in servers:
            continue
        copies, parts = (
            servers[case.server].copies(case.engine, case.options, count),
            int(case.options.get("tensor_parallel", 1)),
        )
        if parts > card.cards:
            raise UsageError(
                f"{case.label} needs {parts} GPUs, but only {card.cards} can be used: give a"
                " smaller tensor_parallel"
            )
        each = max(one / parts, VLLM_SHARE * card.total_bytes) if case.engine == "vllm" else one
        if copies * each > card.free_bytes:
            what = (
                "weights, keys and values of one context, and CUDA"
                if each == one
                else f"{VLLM_SHARE:.0%} of the card, which vLLM reserves"
            )
            fewer = int(card.free_bytes / each)
            remedy = (
                f"give --workers {fewer}"
                if copies > 1 and fewer
                else "free GPU memory, or give a smaller --model"
            )
            raise UsageError(
                f"{case.label} does not fit the GPU ({card.name}): it needs {copies} x"
                f" {each / GIB:.1f} GiB ({what}) = {copies * each / GIB:.1f} GiB, but only"
                f" {card.free_bytes / GIB:.1f} GiB are free: {remedy}"
            )
