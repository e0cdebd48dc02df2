"""The groups that tests rely on when they run side by side."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers.python_program import PROGRAMS


def test_the_tests_of_a_group_run_in_one_process(tmp_path: Path) -> None:
    """pytest 9.2 with pytest-xdist 3.8 silently distributes them one by one, so that real engines
    run side by side.
    """
    shutil.copy(PROGRAMS / "grouped_tests.py", tmp_path / "test_groups.py")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-n",
            "2",
            "--dist",
            "loadgroup",
            "-rP",
            "-p",
            "no:cacheprovider",
            ".",
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    ran = [line for line in done.stdout.splitlines() if line.startswith("ran ")]
    assert len(ran) == 18 and len(set(ran)) == 3, done.stdout + done.stderr
