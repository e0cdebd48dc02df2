"""What .ci/run installs and prints, in a folder with invented programs.

Its apt-get, sudo and nox only note their arguments.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = """# names, then packages
sh,no-such-shell                shell-package
no-such-proxy,nor-this-one      proxy-package
no-such-compiler                compiler-package headers-package
"""
NOTE = '#!/bin/sh\necho "$(basename "$0") $*" >>"$NOTES"\n'
COMMANDS = {
    "id": "#!/bin/sh\necho 1000\n",
    # Drops -n from the note, and does not run its command.
    "sudo": '#!/bin/sh\nshift\necho "root: $*" >>"$NOTES"\nexit "$SUDO"\n',
    "apt-get": NOTE,
    "python3": '#!/bin/sh\nmkdir "$3/bin"\ncp "$NOTE" "$3/bin/pip"\ncp "$NOTE" "$3/bin/nox"\n'
    'echo "strict: ${SERVEOFF_REQUIRE_PROGRAMS:-}" >>"$NOTES"\n',
}


def run_ci(folder: Path, sudo: int, **environment: str) -> tuple[list[str], str]:
    """The notes of its commands, one per line, and its output. `sudo` is the exit code of sudo."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    (folder / ".ci" / "programs").write_text(PROGRAMS)
    (folder / "bin").mkdir()
    for name, text in {**COMMANDS, "note": NOTE}.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    done = subprocess.run(
        ["bash", str(folder / ".ci" / "run")],
        env={
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "NOTE": str(folder / "bin" / "note"),
            "NOTES": str(folder / "notes"),
            "SUDO": str(sudo),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "notes").read_text().splitlines(), done.stdout


def test_it_installs_what_is_missing_without_starting_services(tmp_path: Path) -> None:
    notes, output = run_ci(tmp_path, sudo=0)
    wanted = ["proxy-package", "compiler-package", "headers-package"]
    assert f"Installing Debian packages that tests need: {' '.join(wanted)}\n" in output
    installs = [note for note in notes if " apt-get install " in note]
    assert [note.split()[-1] for note in installs] == wanted
    policy = "/usr/sbin/policy-rc.d"
    if not Path(policy).exists():
        first, last = notes.index(installs[0]), notes.index(installs[-1])
        assert notes.index(f"root: tee {policy}") < first
        assert notes.index(f"root: rm -f {policy}") > last
    assert notes[-2:] == ["pip install --quiet nox", "nox -s lint tests slow"]


@pytest.mark.parametrize(("ci", "strict"), [("true", "1"), ("", "")])
def test_ci_requires_the_programs(ci: str, strict: str, tmp_path: Path) -> None:
    notes, _ = run_ci(tmp_path, sudo=0, CI=ci)
    assert f"strict: {strict}" in notes


def test_without_permission_to_install_it_reports_the_skipped_tests(tmp_path: Path) -> None:
    notes, output = run_ci(tmp_path, sudo=1, CI="true")
    assert not [note for note in notes if "apt-get" in note]
    assert "strict: " in notes
    assert output == (
        "Tests that need these Debian packages are skipped, as this user may not install them:"
        " proxy-package compiler-package headers-package\n"
    )
