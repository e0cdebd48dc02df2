"""The servers of another revision of this repository: unpacked once, and kept, with an environment
of their own if they need one.
"""

import io
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from servers.contract.api import JsonObject
from servers.runtime import build_cache
from servers.runtime.catalog import FOLDER, Checkout

ROOT = FOLDER.parent
# extras that no server needs
NOT_OF_SERVERS = ("dev", "analysis", "load", "notebooks", "revisions")


class RevisionError(RuntimeError):
    """One sentence that names the remedy."""


def resolve_commit(revision: str) -> str:
    """Its full hash. Raises RevisionError."""
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


def check_out(revision: str, choice: Sequence[str] = ()) -> Checkout:
    """The revision's servers. `choice`: the options of its own `nox -s bench` that say which
    servers are measured, for which its environment is made if it needs one. Raises RevisionError.
    """
    commit = resolve_commit(revision)
    found = build_cache.cache_folder("checkouts") / commit
    complete = found / "complete"  # written last: without it, a command was killed and is repeated
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
        shared = read_requirements(found) == read_requirements(ROOT)
        return Checkout(found, None if shared else _environment(found, choice))


def read_requirements(root: Path) -> JsonObject:
    """What a checkout's servers are installed from: two with equal ones share an environment."""
    file = root / "pyproject.toml"
    project = tomllib.loads(file.read_text())["project"] if file.exists() else {}
    extras = {
        name: needs
        for name, needs in project.get("optional-dependencies", {}).items()
        if name not in NOT_OF_SERVERS
    }
    files = sorted([*root.glob("constraints-*.txt"), *root.glob("excludes*.txt")])
    return {
        "dependencies": project.get("dependencies"),
        "extras": extras,
        **{file.name: file.read_text() for file in files},
    }


def _environment(root: Path, choice: Sequence[str]) -> Path:
    """Folder of the programs of its own environment, made by its own noxfile. Raises
    RevisionError.
    """
    place = root / f"environment-{sys.version_info.major}.{sys.version_info.minor}"
    # a line for each choice, written last: without it, the installation was killed and is repeated
    installed = place / "installed"
    line = shlex.join(choice) + "\n"
    if not installed.exists() or line not in installed.read_text().splitlines(keepends=True):
        print(f"its requirements are others than ours: installing them in {place}", file=sys.stderr)
        nox = [sys.executable, "-m", "nox", "-f", str(root / "noxfile.py"), "--envdir", str(place)]
        done = subprocess.run(
            [*nox, "--install-only", "-s", "bench", "--", *choice],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise RevisionError(
                f"the environment of {root.name[:12]} could not be installed by its `nox -s bench`;"
                f" fix what it reports, then try again:\n{done.stdout.strip()[-2000:]}"
            )
        with installed.open("a") as lines:
            lines.write(line)
    return place / "bench" / "bin"


def _git(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)
    except FileNotFoundError:
        raise RevisionError(
            "git is not installed, and a revision was asked for: install it, or name two"
            " --campaigns"
        ) from None
