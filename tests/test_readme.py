"""What the README says is so: its commands exist, and its tables are those of the committed
reference campaign and of the catalogue.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import dataset, formatting, summary
from servers.runtime import catalog

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "results" / "reference-cpu-2core"
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


def servers() -> list[str]:
    rows = [
        f"| [`{name}`](servers/{name}/README.md) | {server.summary} |"
        for name, server in catalog.list_servers().items()
    ]
    return ["| server | what it is |", "| --- | --- |", *rows]


def test_the_tables_are_those_of_the_reference_and_of_the_catalogue():
    assert "\n".join(table()) in README
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
