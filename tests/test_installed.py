"""A missing program skips a test visibly, and fails it where programs are required, as in CI."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import python_program
from tests.helpers.installed import PROGRAMS, STRICT

ROOT = Path(__file__).parents[1]
# `installed` reads this file instead of the project's own.
PYPROJECT = """
[project.optional-dependencies]
old = ["only_old; python_version < '3'"]
"""


def run_pytest(folder: Path, strict: str) -> tuple[int, str]:
    """Exit code and output of pytest with the plugin `installed` and no other of this project."""
    (folder / "pyproject.toml").write_text(PYPROJECT)
    shutil.copy(python_program.PROGRAMS / "tests_with_requirements.py", folder / "test_programs.py")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
    } | {"PYTHONPATH": str(ROOT), STRICT: strict}
    plugins = ["-p", "tests.helpers.installed", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "--strict-markers", *plugins, "."],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_missing_program_is_a_skip_that_names_it(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, "")
    assert code == 0 and "1 passed, 5 skipped" in output, output
    assert re.search(
        r"SKIPPED \[2\] .*: proxy is not installed \(Debian: apt-get install proxy-package\)\n",
        output,
    ), output


def test_a_missing_program_fails_where_programs_are_required(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, "1")
    assert code == 1 and "2 failed, 1 passed, 2 skipped, 1 error" in output, output
    failed = sorted(re.findall(r"^(?:FAILED|ERROR) test_programs\.py::(\w+)", output, re.M))
    assert failed == ["test_in_its_body", "test_marked", "test_module"]
    assert "proxy is not installed (Debian: apt-get install proxy-package). " in output
    assert "only_old is not installed: pyproject.toml leaves it out on this platform" in output


@pytest.mark.parametrize("looks", [r"importorskip\(", r"shutil\.which\b", r"catalog\.is_installed"])
def test_no_test_looks_for_programs_by_itself(looks: str) -> None:
    """CI would not notice such a skip."""
    here = [Path(__file__), ROOT / "tests" / "helpers" / "installed.py"]
    files = [file for file in (ROOT / "tests").rglob("*.py") if file not in here]
    assert [str(file) for file in files if re.search(looks, file.read_text())] == []


def test_every_program_has_a_package() -> None:
    assert {"nginx", "redis-server", "chromium"} <= PROGRAMS.keys()
    assert all(names and packages for names, packages in PROGRAMS.values())
