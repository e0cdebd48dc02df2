"""Commands whose options come from a config file, and what --plan prints for them."""

import argparse
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtests import config_file
from loadtests.__main__ import main as campaign_command
from loadtests.cli import parse_arguments
from tests.helpers.campaign_process import Bench


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
    bench: Bench, *arguments: str, main: Callable[[], int | None] = campaign_command
) -> "subprocess.CompletedProcess[str]":
    return bench.call(main, *arguments, "--plan")
