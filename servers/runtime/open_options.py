"""Options of servers whose values no list can name. A server.toml lists the others."""

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class OpenOption:
    """An option whose values no list can name. `kind`: one value, in words; `shown`: its form in
    lists of options; `default`: in words, or the value itself.
    """

    accepts: Callable[[str], bool]
    kind: str
    shown: str
    default: str
    meaning: str


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0


def _is_share(text: str) -> bool:
    return bool(re.fullmatch(r"\d*\.?\d+", text, re.ASCII)) and 0 < float(text) <= 1


WORKERS = OpenOption(
    _is_count, "a number above 0", "workers=N", "that of `--workers`", "worker processes"
)
VLLM_OPTIONS = {
    "gpu_memory_utilization": OpenOption(
        _is_share,
        "a number above 0 and up to 1",
        "gpu_memory_utilization=SHARE",
        "0.9",
        "vLLM's share of each card's memory, for weights and the rest for keys and values; on a CPU"
        " of the machine's memory, by default 0.2",
    ),
    "max_model_len": OpenOption(
        lambda text: text == "auto" or _is_count(text),
        "auto or a number above 0",
        "max_model_len=auto|N",
        "auto",
        "longest prompt and response together, in tokens; auto: the model's own length, or less if"
        " its keys and values do not fit vLLM's memory",
    ),
}
