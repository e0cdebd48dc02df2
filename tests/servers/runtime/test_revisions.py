"""Other revisions of this repository, checked out from a repository that the test makes."""

import shutil
import subprocess
from pathlib import Path

import pytest

from servers.runtime import catalog, revisions
from servers.runtime.revisions import RevisionError
from tests.helpers.python_program import PROGRAMS

SERVER = 'summary = "{}"\ncommand = ["serve"]\nengines = ["simulated"]\n'
PROJECT = (
    '[project]\nname = "x"\ndependencies = ["psutil"]\n[project.optional-dependencies]\nfastapi ='
    ' ["fastapi{}"]\ndev = ["pytest{}"]\n'
)


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two revisions: they differ in the server and in the version of pytest."""
    root = tmp_path / "repository"
    (root / "servers" / "mine").mkdir(parents=True)
    git(root, "init", "-q", "-b", "main")
    for summary, pytest_version in (("old", ""), ("new", ">=8")):
        (root / "servers" / "mine" / "server.toml").write_text(SERVER.format(summary))
        (root / "pyproject.toml").write_text(PROJECT.format("", pytest_version))
        (root / "constraints-cpu.txt").write_text("torch==2\n")
        (root / "results").mkdir(exist_ok=True)
        (root / "results" / "large").write_text(summary)
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", summary)
    monkeypatch.setattr(revisions, "ROOT", root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return root


def test_a_revision_has_its_own_servers(repository: Path) -> None:
    found = revisions.check_out("main~1")
    assert (
        catalog.find_server("mine", found).summary == "old"
        and catalog.find_server("mine", catalog.Checkout(repository)).summary == "new"
    )
    # requirements that no server has do not need another environment
    assert found.programs is None and not (found.root / "results").exists()
    assert revisions.check_out(revisions.resolve_commit("main~1")[:12]) == found
    assert (
        git(repository, "status", "--porcelain") == ""
        and git(repository, "worktree", "list").count("\n") == 0
    )


def test_an_incomplete_checkout_is_repeated(repository: Path) -> None:
    found = revisions.check_out("main~1").root
    (found / "complete").unlink()
    (found / "servers" / "mine" / "server.toml").unlink()
    assert catalog.find_server("mine", revisions.check_out("main~1")).summary == "old"


def test_other_requirements_need_another_environment(repository: Path) -> None:
    (repository / "pyproject.toml").write_text(PROJECT.format(">=0.1", ""))
    # it has no noxfile
    with pytest.raises(RevisionError, match="could not install its environment"):
        revisions.check_out("main~1")
    shutil.copy(PROGRAMS / "failing_noxfile.py", repository / "noxfile.py")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "with a noxfile")
    (repository / "pyproject.toml").write_text(PROJECT.format(">=0.2", ""))
    found = revisions.check_out("main")
    assert found.programs is not None and (found.programs / "python").exists()
    server = catalog.find_server("mine", found)
    assert (
        server.missing("simulated") == [] and revisions.check_out("main").programs == found.programs
    )


def test_an_unknown_revision_is_one_sentence(repository: Path) -> None:
    with pytest.raises(
        RevisionError,
        match=(
            "git knows no revision 'maain' here; `git branch -a` and `git tag` list the known ones"
        ),
    ):
        revisions.check_out("maain")
    with pytest.raises(RevisionError, match="no revision '--help'"):
        revisions.check_out("--help")


def test_a_shallow_clone_is_named_as_the_reason(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "clone", "-q", "--depth", "1", repository.as_uri(), "shallow")
    monkeypatch.setattr(revisions, "ROOT", tmp_path / "shallow")
    with pytest.raises(RevisionError, match="this clone is shallow: fetch it first"):
        revisions.check_out("main~1")
