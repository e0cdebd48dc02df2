"""Which model a server runs: a generated one, a folder, or a name on a hub."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from servers.contract import oracle
from servers.contract.api import JsonObject
from servers.engines import model_shape
from servers.runtime.catalog import ROOT
from servers.runtime.errors import LaunchError


@dataclass(frozen=True)
class Model:
    """`path`: folder or hub name; empty if no engine needs weights. `planted`: its answers follow
    `servers/contract/oracle.py`. `shape`: as servers/engines/model_shape.py reads it; what is known
    of a model does not make it another one.
    """

    name: str
    path: str
    planted: bool
    shape: JsonObject | None = field(default=None, compare=False)


def resolve_model(wanted: str, needs_weights: bool) -> Model:
    """A preset's name (generated on first use), a folder, or a hub name. Raises LaunchError."""
    preset = wanted.removeprefix("serveoff-")
    if f"serveoff-{preset}" in oracle.PLANTED_MODELS:
        path = run_generator("servers.engines.checkpoint", preset) if needs_weights else ""
        return Model(
            f"serveoff-{preset}",
            path,
            True,
            model_shape.read_model_shape(Path(path)) if path else None,
        )
    folder = Path(wanted).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise LaunchError(f"{wanted} is not a model folder: it has no config.json")
        return Model(
            folder.resolve().name,
            str(folder.resolve()),
            False,
            model_shape.read_model_shape(folder),
        )
    if wanted.count("/") != 1 or wanted.startswith((".", "/", "~")):
        presets = ", ".join(name.removeprefix("serveoff-") for name in oracle.PLANTED_MODELS)
        raise LaunchError(
            f"the model {wanted!r} does not exist: give one of {presets}, an existing folder, or a"
            " hub name like org/name"
        )
    return Model(wanted, wanted, False, _shape_of_hub(wanted))


def preset_bytes() -> dict[str, int]:
    """Of the weights of each model that is generated, the largest first."""
    from servers.engines import checkpoint

    sizes = {
        name: checkpoint.DTYPE_BYTES * shape.parameters()
        for name, shape in checkpoint.PRESETS.items()
    }
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _shape_of_hub(name: str) -> JsonObject | None:
    """None unless it has been downloaded before: an engine does that, when it starts."""
    try:
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(name, "config.json")
    # not installed; no name that a hub could have, which the engine will say
    except (ImportError, ValueError):
        return None
    return model_shape.read_model_shape(Path(config).parent) if isinstance(config, str) else None


def run_generator(*command: str) -> str:
    """The folder that it made. Not in this process: it needs torch, which takes seconds to import,
    and memory.
    """
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise LaunchError(f"the model ({' '.join(command[1:])}) could not be generated: see above")
    return done.stdout.strip().splitlines()[-1]
