"""Checks out the servers of another revision of this repository, and keeps them, with their own
environment if they need one.
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

from servers.contract import JsonObject
from servers.runtime import build_cache, cuda_toolkit
from servers.runtime.catalog import FOLDER, Checkout

ROOT = FOLDER.parent
# extras that no server needs
NOT_OF_SERVERS = ("dev", "analysis", "load", "notebooks", "revisions")


class RevisionError(RuntimeError):
    """The message is one sentence that names the remedy."""


def resolve_commit(revision: str) -> str:
    """Return the revision's full hash. Raises RevisionError."""
    parsed = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if parsed.returncode:
        shallow = _git("rev-parse", "--is-shallow-repository").stdout.strip() == b"true"
        remedy = (
            "this clone is shallow: fetch it first (actions/checkout: fetch-depth: 0)"
            if shallow
            else "`git branch -a` and `git tag` list the known ones"
        )
        raise RevisionError(f"git knows no revision {revision!r} here; {remedy}")
    return parsed.stdout.decode().strip()


def check_out(revision: str, choice: Sequence[str] = ()) -> Checkout:
    """Check out the revision's servers. `choice`: options of its own `nox -s bench` that select the
    measured servers; they also select what its environment contains, if it needs its own. Raises
    RevisionError.
    """
    commit = resolve_commit(revision)
    found = build_cache.cache_folder("checkouts") / commit
    complete = found / "complete"  # written last: if missing, a command was killed and is repeated
    with build_cache.lock_path(found):
        if not complete.exists():
            shutil.rmtree(found, ignore_errors=True)
            packed = _git("archive", "--format=tar", commit, "--", ".", ":(exclude)results")
            if packed.returncode:
                raise RevisionError(
                    f"git could not pack {revision}: {packed.stderr.decode().strip()}"
                )
            with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
                # available since Python 3.11.4
                archive.extraction_filter = getattr(tarfile, "data_filter", None)
                archive.extractall(found)  # noqa: S202 - git packed it, from this repository
            complete.touch()
        shared = read_requirements(found) == read_requirements(ROOT)
        return Checkout(found, None if shared else _environment(found, choice))


def read_requirements(root: Path) -> JsonObject:
    """Read the requirements of a checkout's servers: checkouts with equal ones share an
    environment.
    """
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
    """Make the checkout's own environment with its own noxfile; return the folder of its programs.
    Raises RevisionError.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    on_gpu = "-gpu" * (cuda_toolkit.detect_machine().kind == "gpu")
    place = root / f"environment-{python}{on_gpu}"
    # one line per choice, written last: if missing, the installation was killed and is repeated
    installed = place / "installed"
    line = shlex.join(choice) + "\n"
    if not installed.exists() or line not in installed.read_text().splitlines(keepends=True):
        print(
            f"revision {root.name[:12]} has other requirements than this one: installing them in"
            f" {place}",
            file=sys.stderr,
        )
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
                f"`nox -s bench` of revision {root.name[:12]} could not install its environment;"
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
            "a revision needs git, which is not installed: install it, or compare two --campaigns"
        ) from None
