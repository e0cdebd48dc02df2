"""The servers of another revision of this repository: unpacked once, and kept, with an environment
of their own if they need one.
"""

import io
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

from servers.contract.api import JsonObject
from servers.runtime import build_cache
from servers.runtime.catalog import FOLDER, Checkout

ROOT = FOLDER.parent
NOT_OF_SERVERS = ("dev", "analysis", "load")  # extras that no server needs


class RevisionError(RuntimeError):
    """One sentence that names the remedy."""


def resolve_commit(revision: str) -> str:
    """Its full hash. Raises CheckoutError."""
    said = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if said.returncode:
        shallow = _git("rev-parse", "--is-shallow-repository").stdout.strip() == b"true"
        remedy = (
            "this clone is shallow: fetch it first (actions/checkout: fetch-depth: 0)"
            if shallow
            else "`git branch -a` and `git tag` list what there is"
        )
        raise RevisionError(f"git knows no revision {revision!r} here; {remedy}")
    return said.stdout.decode().strip()


def check_out(revision: str) -> Checkout:
    """Raises CheckoutError."""
    commit = resolve_commit(revision)
    found = build_cache.cache_folder("checkouts") / commit
    complete = found / "complete"  # written last: what a killed command left is made anew
    with build_cache.lock_path(found):
        if not complete.exists():
            shutil.rmtree(found, ignore_errors=True)
            packed = _git("archive", "--format=tar", commit, "--", ".", ":(exclude)results")
            if packed.returncode:
                raise RevisionError(
                    f"git could not pack {revision}: {packed.stderr.decode().strip()}"
                )
            with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
                # Python has it since 3.11.4
                archive.extraction_filter = getattr(tarfile, "data_filter", None)
                archive.extractall(found)  # noqa: S202 - git packed it, from this repository
            complete.touch()
        return Checkout(
            found,
            None if read_requirements(found) == read_requirements(ROOT) else _environment(found),
        )


def read_requirements(root: Path) -> JsonObject:
    """What a checkout's servers are installed from: two with equal ones share an environment."""
    file = root / "pyproject.toml"
    project = tomllib.loads(file.read_text())["project"] if file.exists() else {}
    extras = {
        name: needs
        for name, needs in project.get("optional-dependencies", {}).items()
        if name not in NOT_OF_SERVERS
    }
    files = sorted([*root.glob("constraints-*.txt"), *root.glob("excludes-*.txt")])
    return {
        "dependencies": project.get("dependencies"),
        "extras": extras,
        **{file.name: file.read_text() for file in files},
    }


def _environment(root: Path) -> Path:
    """Folder of the programs of its own environment, made by its own noxfile. Raises
    CheckoutError.
    """
    place = root / f"environment-{sys.version_info.major}.{sys.version_info.minor}"
    complete = place / "complete"
    if not complete.exists():
        print(f"its requirements are others than ours: installing them in {place}", file=sys.stderr)
        command = [
            sys.executable,
            "-m",
            "nox",
            "-f",
            str(root / "noxfile.py"),
            "--envdir",
            str(place),
            "--install-only",
            "-s",
            "bench",
        ]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise RevisionError(
                f"the environment of {root.name[:12]} could not be installed by its `nox -s bench`;"
                f" mend what it says, then try again:\n{done.stdout.strip()[-2000:]}"
            )
        complete.touch()
    return place / "bench" / "bin"


def _git(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)
    except FileNotFoundError:
        raise RevisionError(
            "git is not installed, and a revision was asked for: install it, or name two"
            " --campaigns"
        ) from None
