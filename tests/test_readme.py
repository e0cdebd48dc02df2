"""The README and the page on choosing an architecture are true: their commands exist, and their
tables are those of the committed campaigns and of the catalogue.
"""

import io
import re
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from analysis import dataset, formatting, summary
from analysis.report import terminal
from loadtests import __main__ as bench
from servers.runtime import catalog

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "results" / "reference-cpu-2core"
QUICK = ROOT / "results" / "reference-quick-cpu-2core"
README = (ROOT / "README.md").read_text()
CHOOSE = (ROOT / "docs" / "choose-an-architecture.md").read_text()
SHOWN = ("output_tokens_per_s", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "e2e_p50_s")


def rows_with_intervals() -> list[str]:
    (comparison,) = summary.build_comparisons(summary.summarise(dataset.read_campaign(REFERENCE)))
    rows = [
        [
            f"`{s.server}` ({s.engine})",
            *(formatting.format_estimate(name, s.valid) for name in SHOWN),
        ]
        for s in comparison.systems
    ]
    return ["| " + " | ".join(row) + " |" for row in rows]


def terminal_tables() -> list[str]:
    """The lines of the tables that `nox -s bench` prints."""
    console = Console(width=100, file=io.StringIO(), color_system=None)
    found = summary.summarise(dataset.read_campaign(QUICK))
    for comparison in summary.build_comparisons(found):
        terminal.show_comparison(found, comparison, console)
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    return [line for line in lines if re.match(r"quick-| {9}|server|\w+ \((hf|vllm)\)  ", line)]


def test_the_tables_are_those_of_the_committed_campaigns():
    assert [row for row in rows_with_intervals() if row not in CHOOSE] == []
    quoted = [line.strip() for line in CHOOSE.splitlines()]
    assert [line for line in terminal_tables() if line.strip() not in quoted] == []
    first = README.partition("quick-chat, 16 users")[2].partition("\n\n")[0].strip("\n")
    assert len(first.splitlines()) == 5 and first in CHOOSE


def test_the_families_name_servers_of_the_catalogue():
    """A new server need not be here: its author edits nothing but its folder."""
    families = README.partition("## Servers")[2].partition("## ")[0]
    named = re.findall(r"`(\w+)`", families)
    assert set(named) <= set(catalog.list_servers()) and len(named) == len(set(named)) >= 21


def test_it_takes_two_minutes_to_read():
    lines = README.splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 100


def test_every_verb_exists():
    sessions = re.findall(r"@nox\.session\ndef (\w+)", (ROOT / "noxfile.py").read_text())
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    assert (
        set(re.findall(r"nox (?:--no-install )?-s (\w+)", text))
        <= set(sessions)
        >= {"bench", "tests", "lint", "report"}
    )


def test_the_ways_to_start_nox_leave_the_system_s_python_alone():
    """Debian's and Ubuntu's refuses `pip install nox` (PEP 668)."""
    ways = ("uvx nox -s bench", "pipx run nox -s bench", "~/nox/bin/pip install nox &&")
    assert all(way in README for way in ways)
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        bare = re.findall(r"^.*(?<!bin/)pip install nox &&.*$", file.read_text(), re.M)
        assert not bare, f"{file.name}: {bare}"


def commands(module: str) -> list[str]:
    return re.findall(rf"nox -s {module} -- ([^#\n`]+)", README)


ELSEWHERE = ("--help", "my-llama", "--target", "FILE")  # need what a test does not have


@pytest.mark.parametrize(
    "command", [c for c in commands("bench") if not any(word in c for word in ELSEWHERE)]
)
def test_every_bench_command_is_understood(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (tmp_path / "bench.toml").write_text("repeat = 2\n")
    command = command.partition(" > ")[0].replace("bench.toml", str(tmp_path / "bench.toml"))
    assert bench.run([*shlex.split(command), "--plan"]) == 0
    assert "run 1" in capsys.readouterr().out
