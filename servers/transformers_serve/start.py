"""Replaces itself with `transformers serve`, on the device and with the type of numbers that our
engines would choose.

A folder is offered as a downloaded model: the server's list of models has only those.
"""

import os
import re
import sys
from pathlib import Path

import torch

from servers.runtime.cuda_devices import EngineDevice, engine_dtype, log_device

# As for vLLM on a CPU (servers/engines/vllm_settings.py): 64 requests of 2,048 tokens. By itself,
# Transformers would take nine tenths of the machine's memory.
ON_CPU = {"--cb-block-size": "256", "--cb-num-blocks": "512", "--cb-max-batch-tokens": "512"}


def offer(folder: Path, name: str, cache: Path) -> None:
    """Make the cache of the Hugging Face Hub as a download of the folder would leave it."""
    if not re.fullmatch(r"[\w.-]{1,96}", name) or re.search(r"^[.-]|[.-]$|--|\.\.", name):
        sys.exit(
            f"error: {name!r} is no name of a model for the Hugging Face Hub, and transformers"
            " serve lists no other: rename its folder to letters, digits, _, . and -"
        )
    downloaded = cache / f"models--{name}"
    for part in ("refs", "snapshots"):
        (downloaded / part).mkdir(parents=True)
    (downloaded / "refs" / "main").write_text("local")
    (downloaded / "snapshots" / "local").symlink_to(folder.resolve())


if __name__ == "__main__":
    path, name, run, host, port = sys.argv[1:]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    environment = dict(os.environ, HF_HUB_DISABLE_UPDATE_CHECK="1", HF_HUB_DISABLE_TELEMETRY="1")
    if Path(path).is_dir():
        cache = Path(run, "hub")
        offer(Path(path), name, cache)
        environment["HF_HUB_CACHE"] = str(cache)
    command = ["transformers", "serve", name, "--host", host, "--port", port]
    command += ["--device", device, "--dtype", engine_dtype()]
    if os.environ["SERVEOFF_BATCHING"] == "continuous":
        command.append("--continuous-batching")
        if device == "cpu":
            command += [word for option in ON_CPU.items() for word in option]
    log_device(EngineDevice(device, None, None, engine_dtype(), "start"))
    os.execvpe(command[0], command, environment)  # noqa: S606 - no shell
