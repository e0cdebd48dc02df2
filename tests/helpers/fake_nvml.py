"""A fake NVIDIA driver library that scripts what cards report."""

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
    require_installed("cc")
    compiler = find_program("cc")
    assert compiler
    options = ["-shared", "-fPIC", *["-DHANGS"] * hangs, *["-DOLD"] * old]
    subprocess.run([compiler, *options, "-o", folder / "libnvidia-ml.so.1", source], check=True)
    return str(folder)
