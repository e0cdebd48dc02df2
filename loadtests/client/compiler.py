"""Finds this machine's C compiler and compiles each source once for all processes."""

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from servers.runtime.build_cache import cache_folder


def find_compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def compile_once(source: Path, suffix: str = "", options: Sequence[str] = ()) -> Path | None:
    """Compiles a C file, or finds the result of an earlier call, and returns its path.

    `suffix` ends the result's name (".so" for a library). Several processes may call this at the
    same time. Returns None without a compiler. Raises OSError, RuntimeError (a user without a home)
    or subprocess.CalledProcessError.
    """
    folder = cache_folder("compiled")
    key = hashlib.sha256("\0".join([source.read_text(), *options]).encode()).hexdigest()[:16]
    result = folder / f"{source.stem}-{key}{suffix}"
    if not result.exists():
        compiler = find_compiler()
        if compiler is None:
            return None
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch, result.name)
            subprocess.run(
                [compiler, "-O2", *options, "-o", made, source], check=True, capture_output=True
            )
            made.rename(result)
    return result
