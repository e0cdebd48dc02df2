"""Keeps what is made once between campaigns: generated models, and environments of servers whose
packages conflict with ours.
"""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from servers.runtime import cuda_toolkit

# written last: if it is missing, an installation was killed and is repeated
COMPLETE = "complete"


class CacheError(RuntimeError):
    """The message is one sentence that names the remedy."""


def cache_folder(kind: str) -> Path:
    """Return the cache folder of a kind ("models"); create it if it is missing."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    found = Path(base) / "serveoff" / kind
    found.mkdir(parents=True, exist_ok=True)
    return found


@contextmanager
def lock_path(path: Path) -> Iterator[None]:
    """Let one process at a time in; the others wait."""
    with path.with_name(path.name + ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def create_once(path: Path) -> Iterator[Path | None]:
    """Yield a folder to fill, which becomes `path` once it is complete; None if `path` exists. Only
    one process fills it.
    """
    if path.is_dir():
        yield None
        return
    with lock_path(path):
        if path.is_dir():
            yield None
            return
        partial = path.with_name(f"{path.name}.partial")
        # only a killed run leaves one behind; we hold the lock, so no process is filling it
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        partial.rename(path)


def environment_folder(packages: Sequence[str]) -> Path:
    """Return the folder for an environment of these packages. It has the file COMPLETE if it can be
    used.
    """
    on_gpu = cuda_toolkit.detect_machine().kind == "gpu"
    made_of = [sys.version, *packages, *["gpu"] * on_gpu]
    key = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:12]
    return cache_folder("environments") / key


def package_environment(packages: Sequence[str]) -> Path:
    """Return the folder of a virtual environment with these packages, made by uv on first use.
    Raises CacheError and LaunchError.
    """
    found = environment_folder(packages)
    complete = found / COMPLETE
    if complete.exists():
        return found
    on_gpu = cuda_toolkit.detect_machine().kind == "gpu"
    links = os.environ.get("UV_FIND_LINKS", "").split(",")
    name = f"torch-*-cp{sys.version_info.major}{sys.version_info.minor}-*"  # for this Python
    at_hand = on_gpu or any(wheel for link in links if link for wheel in Path(link).glob(name))
    # PyPI's torch for Linux brings gigabytes of CUDA; with a backend set, uv uses PyTorch's own
    # index only
    settings = {} if at_hand else {"UV_TORCH_BACKEND": "cpu"}
    with lock_path(found):
        if not complete.exists():
            shutil.rmtree(found, ignore_errors=True)
            print(f"installing {', '.join(packages)} in {found}", file=sys.stderr)
            run_uv(["venv", "--python", sys.executable, str(found)], settings)
            run_uv(
                ["pip", "install", "--python", str(found / "bin" / "python"), *packages], settings
            )
            complete.touch()
    return found


def install_packages(packages: Sequence[str], folder: Path) -> None:
    """Install packages without their dependencies, for this Python, into a folder for sys.path.
    Raises CacheError.
    """
    target = ["--target", str(folder), "--no-deps"]
    run_uv(["pip", "install", "--python", sys.executable, *target, *packages])


def run_uv(command: Sequence[str], settings: Mapping[str, str] = MappingProxyType({})) -> None:
    """Run uv. `settings` are environment variables; the user's own override them. Raises
    CacheError.
    """
    environment = {"UV_SYSTEM_CERTS": "1", **settings, **os.environ}
    try:
        uv = subprocess.Popen(
            ["uv", *command, "--quiet"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise CacheError("uv is not installed: run `pip install uv`, then try again") from None
    try:
        _, printed = uv.communicate()
    except BaseException:  # Ctrl-C: compilers that uv started would go on for minutes
        os.killpg(uv.pid, signal.SIGKILL)
        uv.wait()
        raise
    if uv.returncode:
        raise CacheError(
            f"`uv {' '.join(command[:2])}` failed; fix what it reports, then try"
            f" again:\n{printed.strip()}"
        )
