"""The composite action's script, with a nox that only records its arguments: arguments, summary,
outputs and exit codes.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.python_program import PROGRAMS

ROOT = Path(__file__).parents[1]


def act(folder: Path, code: int, **inputs: str) -> tuple[int, list[str], str]:
    """Runs the script. Returns its exit code, nox's arguments and the printed text; the summary and
    the outputs are in the folder.
    """
    (folder / "bin").mkdir()
    shutil.copy(PROGRAMS / "fake_nox.sh", folder / "bin" / "nox")
    (folder / "bin" / "nox").chmod(0o755)
    given = {
        "BASE": "",
        "BASE_SERVER": "",
        "HEAD_SERVER": "",
        "ARGUMENTS": "",
        "INCONCLUSIVE": "warn",
        "OUT": str(folder / "out"),
    } | inputs
    environment = {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "CODE": str(code),
        "NOTES": str(folder / "notes"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary"),
        "GITHUB_OUTPUT": str(folder / "outputs"),
        **given,
    }
    done = subprocess.run(
        ["bash", str(ROOT / ".github" / "gate.sh")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, (folder / "notes").read_text().splitlines(), done.stdout + done.stderr


def test_inputs_become_arguments_and_are_never_executed(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    code, arguments, _ = act(
        tmp_path,
        0,
        BASE_SERVER=f"serve $(touch {touched}) {{port}}",
        HEAD_SERVER="serve {port}",
        ARGUMENTS=f"--tolerance 'e2e_p99_s=20%' --out2 \"a b\" `touch {touched}`",
    )
    assert code == 0 and not touched.exists()
    assert arguments[:5] == ["-f", str(ROOT / "noxfile.py"), "-s", "gate", "--"]
    assert arguments[5:] == [
        "--out",
        str(tmp_path / "out"),
        "--base-server",
        f"serve $(touch {touched}) {{port}}",
        "--head-server",
        "serve {port}",
        "--tolerance",
        "e2e_p99_s=20%",
        "--out2",
        "a b",
        "`touch",
        f"{touched}`",
    ]


@pytest.mark.parametrize(
    ("code", "inconclusive", "ends"),
    [
        (0, "warn", 0),
        (1, "warn", 1),
        (2, "warn", 2),
        (3, "warn", 0),
        (3, "fail", 3),
        (130, "warn", 130),
    ],
)
def test_the_verdict_is_the_result_of_the_step(
    tmp_path: Path, code: int, inconclusive: str, ends: int
) -> None:
    found, arguments, printed = act(tmp_path, code, BASE="0123abc", INCONCLUSIVE=inconclusive)
    assert found == ends and arguments[-2:] == ["--base", "0123abc"]
    assert ("::warning" in printed) == (code == 3)
    if code != 130:
        assert (tmp_path / "summary").read_text() == "# Gate\n" and (
            tmp_path / "outputs"
        ).read_text() == "verdict=SOME\n"
    else:
        assert not (tmp_path / "summary").exists()


def test_the_action_passes_every_input_that_the_script_reads() -> None:
    script, action = (ROOT / ".github" / "gate.sh").read_text(), (ROOT / "action.yml").read_text()
    for name in ("BASE", "BASE_SERVER", "HEAD_SERVER", "ARGUMENTS", "INCONCLUSIVE", "OUT"):
        assert (
            f"${name}" in script
            and f"        {name}: ${{{{ inputs.{name.lower().replace('_', '-')} }}}}" in action
        )
    assert '.github/gate.sh"' in action


def test_the_workflow_s_results_have_a_folder_of_their_own() -> None:
    """It must not be in a checkout: results/gate has the study of the gate."""
    workflow = (ROOT / ".github" / "workflows" / "gate.yml").read_text()
    [out] = re.findall(r"^ +out: (.*)$", workflow, re.MULTILINE)
    assert f"path: {out}\n" in workflow
    assert not subprocess.run(
        ["git", "ls-files", out], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert subprocess.run(["git", "check-ignore", "--quiet", out], cwd=ROOT).returncode == 0
