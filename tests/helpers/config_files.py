"""Commands whose options come from a config file, and what --plan prints for them."""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from loadtests import config_file
from loadtests.cli import parse_arguments
from tests.helpers.campaign_process import PATIENCE_S, Bench


def parse_file(folder: Path, text: str | bytes, *command: str) -> argparse.Namespace:
    file = folder / "bench.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return parse_arguments(["--config", str(file), *command])


def values_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """All values, without the text of the command line."""
    return {
        name: value
        for name, value in vars(arguments).items()
        if name not in ("command", "expanded")
    }


def format_file(arguments: argparse.Namespace) -> str:
    return config_file.format_plan(arguments.settings, {}, "Cases", [], {})


def run_plan(
    bench: Bench, *arguments: str, module: str = "loadtests"
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", module, *arguments, "--plan"],
        cwd=bench.folder,
        env=bench.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
