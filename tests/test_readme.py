"""What the README says is so: its commands exist, and its tables are those of the committed
reference campaign and of the catalogue.
"""

import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from analysis import dataset, formatting, summary
from analysis.report import terminal
from servers.runtime import catalog

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "results" / "reference-cpu-2core"
QUICK = ROOT / "results" / "reference-quick-cpu-2core"
README = (ROOT / "README.md").read_text()
SHOWN = (
    "output_tokens_per_s",
    "requests_per_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_p50_s",
    "e2e_p50_s",
    "e2e_p99_s",
    "server_cores",
)


def table() -> list[str]:
    """The README's first table; print them to mend the file: `python -m tests.test_readme`."""
    (comparison,) = summary.build_comparisons(summary.summarise(dataset.read_campaign(REFERENCE)))
    heads = [f"{summary.METRICS[name].label}, {formatting.unit_of(name)}" for name in SHOWN]
    rows = [
        [
            f"`{s.server}` ({s.engine})",
            *(formatting.format_estimate(name, s.valid) for name in SHOWN),
        ]
        for s in comparison.systems
    ]
    return [
        "| " + " | ".join(row) + " |"
        for row in (["server", *heads], ["---"] * (len(SHOWN) + 1), *rows)
    ]


def terminal_tables() -> list[str]:
    """What `nox -s bench` prints, without the sentences."""
    console = Console(width=100, file=io.StringIO(), color_system=None)
    found = summary.summarise(dataset.read_campaign(QUICK))
    for comparison in summary.build_comparisons(found):
        terminal.show_comparison(found, comparison, console)
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    return [line for line in lines if re.match(r"quick-| {9}|server|\w+ \((hf|vllm)\)  ", line)]


def servers() -> list[str]:
    rows = [
        f"| [`{name}`](servers/{name}/README.md) | {server.summary} |"
        for name, server in catalog.list_servers().items()
    ]
    return ["| server | what it is |", "| --- | --- |", *rows]


def test_the_tables_are_those_of_the_reference_and_of_the_catalogue():
    assert "\n".join(table()) in README
    lines = [line.strip() for line in README.splitlines()]
    assert [line for line in terminal_tables() if line.strip() not in lines] == []
    said = [line for line in README.splitlines() if line.startswith("| [`")]
    assert set(said) <= set(servers()) and len(said) >= 3, (
        "not every server need be there: who adds one edits nothing but its folder"
    )


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
def test_every_bench_command_is_understood(command, tmp_path):
    (tmp_path / "bench.toml").write_text("repeat = 2\n")
    command = command.partition(" > ")[0].replace("bench.toml", str(tmp_path / "bench.toml"))
    done = subprocess.run(
        [sys.executable, "-m", "loadtests", *shlex.split(command), "--plan"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "run 1" in done.stdout, done.stderr


def test_links_and_pictures_are_there():
    for name in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text()):
            assert (ROOT / target).exists(), f"{name} links to {target}"


if __name__ == "__main__":
    print("\n".join([*table(), "", *servers()]))
