"""A fake NVIDIA driver library that scripts what cards report."""

import os
import subprocess
from pathlib import Path

from tests.helpers.installed import find_program, require_installed
from tests.helpers.python_program import PROGRAMS

TWO_CARDS = PROGRAMS / "fake_nvml_two_cards.c"
ONE_CARD = PROGRAMS / "fake_nvml_one_card.c"


def compile_driver(folder: Path, source: Path, hangs: bool = False, old: bool = False) -> str:
    """Compile libnvidia-ml.so.1 into the folder and return the folder, for LD_LIBRARY_PATH. With
    `hangs` the third query of card 0's power never returns (TWO_CARDS). An `old` driver lacks a
    function and gives no memory (ONE_CARD).
    """
    options = [*["-DHANGS"] * hangs, *["-DOLD"] * old]
    _compile(*options, "-o", str(folder / "libnvidia-ml.so.1"), str(source))
    return str(folder)


def compile_empty_library(file: Path) -> None:
    """Compile a shared library without functions, such as a libcuda.so.1 that can be loaded."""
    _compile("-o", str(file), "-x", "c", os.devnull)


def _compile(*options: str) -> None:
    require_installed("cc")
    compiler = find_program("cc")
    assert compiler
    subprocess.run([compiler, "-shared", "-fPIC", *options], check=True)
