"""Starts the programs in tests/programs, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests" / "programs"


def command_of(program: str, *arguments: str) -> list[str]:
    """The command for tests/programs/PROGRAM.py, to be run in ROOT or with ROOT in PYTHONPATH."""
    return [sys.executable, "-m", f"tests.programs.{program}", *arguments]


def run_program(
    program: str, *arguments: str, timeout_s: float = 60, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run tests/programs/PROGRAM.py to its end with `environment` added to the current one."""
    return subprocess.run(
        command_of(program, *arguments),
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def output_of(program: str, *arguments: str, timeout_s: float = 60, **environment: str) -> str:
    """The output of the program; fails with its errors if it does not succeed."""
    done = run_program(program, *arguments, timeout_s=timeout_s, **environment)
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout
