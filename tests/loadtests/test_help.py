"""--help fits a terminal, and the examples of its groups are correct."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from loadtests.cli import parse_arguments
from loadtests.gate import make_gate_parser
from loadtests.option_types import MOST_COLUMNS
from loadtests.options import make_parser
from servers.engines.simulated import TimeModel
from tests.helpers.python_program import output_of


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("parser", [make_parser, make_gate_parser])
def test_help_is_narrow(parser: Any, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = parser().format_help()
    assert max(map(len, text.splitlines())) <= MOST_COLUMNS
    assert "\noptions:" not in text, "each option is in a group"


def test_help_imports_no_library_of_numbers() -> None:
    """They take half a second."""
    imported = set(output_of("list_modules", "help").split())
    assert "psutil" in imported and not imported & {"numpy", "pandas", "pyarrow", "scipy", "locust"}


def test_the_default_times_are_those_of_the_simulated_engine() -> None:
    [text] = [action.help for action in make_parser()._actions if action.dest == "simulated"]
    times = TimeModel()
    default = f"prefill_ms={times.prefill_ms:g},step_ms={times.step_ms:g}"
    assert f"(default: {default},max_batch={times.max_batch})" in (text or "")


def test_every_group_has_an_example_that_parses(tmp_path: Path) -> None:
    for group in make_parser()._action_groups:
        if group._group_actions:
            examples = re.findall(r"nox -s bench -- ([^#>\n]+)", group.description or "")
            assert examples, group.title
            for example in examples:
                command = shlex.split(example.replace("bench.toml", str(tmp_path / "bench.toml")))
                (tmp_path / "bench.toml").write_text("users = 4")
                parse_arguments(command)
