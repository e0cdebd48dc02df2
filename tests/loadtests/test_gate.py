"""Whole gates as child processes: two folders, two commands, two URLs, two revisions; and refused
commands.
"""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests.campaign import analysis_process, gate_rounds
from loadtests.campaign.gate_rounds import repetition_of
from loadtests.gate import main as gate_command
from loadtests.schema import GatedSystem, PairedGate
from servers.runtime import catalog
from tests.helpers.campaign_process import PATIENCE_S, Bench, call_command, runs

SYSTEM = GatedSystem("alpha", "simulated", "quick", 3, None, 2.0, {})
# A whole gate has fifteen cases of several seconds; these end inconclusive after one repetition.
SHORT = ("--scenarios-file", "mine.toml", "--scenarios", "quick", "--max-minutes", "0.01")


def gate(bench: Bench, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "loadtests.gate", *arguments],
        cwd=bench.folder,
        env=bench.environment,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE_S,
    )


def verdict(bench: Bench, out: str) -> dict[str, Any]:
    return dict(json.loads((bench.folder / out / "gate.json").read_text()))


# --- order


def test_head_runs_between_two_runs_of_base_which_swap_places() -> None:
    first, second = (repetition_of([SYSTEM], n, 10, seed=1) for n in (1, 2))
    assert [case.side for case in first] in (
        ["base", "head", "control"],
        ["control", "head", "base"],
    )
    assert [case.side for case in second] == [case.side for case in first][::-1]
    assert [case.index for case in first] == [11, 12, 13] and {
        case.repetition for case in second
    } == {2}
    assert {repetition_of([SYSTEM], 1, 0, seed)[0].side for seed in range(20)} == {
        "base",
        "control",
    }


def test_the_order_of_systems_is_reversed_each_time() -> None:
    systems = [SYSTEM, dataclasses.replace(SYSTEM, server="beta")]
    first, second = ([case.server for case in repetition_of(systems, n, 0, 1)] for n in (1, 2))
    assert first == second[::-1] and first in (
        ["alpha"] * 3 + ["beta"] * 3,
        ["beta"] * 3 + ["alpha"] * 3,
    )


def test_rounds_continue_until_the_analysis_or_the_time_limit_ends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    answers = iter([[True, False], [False, False]])
    monkeypatch.setattr(analysis_process, "find_unjudged_systems", lambda folder: next(answers))
    systems = [SYSTEM, dataclasses.replace(SYSTEM, server="beta")]
    gate = PairedGate({}, 1, "", [], "", 1.0, systems)
    found = list(gate_rounds.gate_rounds(tmp_path, gate, Silent()))
    assert [len(cases) for cases in found] == [6, 3] and {case.repetition for case in found[1]} == {
        2
    }
    assert [case.index for cases in found for case in cases] == list(range(1, 10))
    monkeypatch.setattr(analysis_process, "find_unjudged_systems", lambda folder: [True, True])
    short = dataclasses.replace(gate, max_minutes=1e-9)
    assert len(list(gate_rounds.gate_rounds(tmp_path, short, Silent()))) <= 1


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give one of --base, --base-server, --campaigns, --baseline, --record"),
        (["--base", "main", "--baseline", "x"], ", not --base and --baseline"),
        (["--base-server", "x"], "--base-server and --head-server go together"),
        (["--head", "main", "--baseline", "x"], "--head goes with --base"),
        (
            ["--campaigns", "a", "b", "--servers", "x"],
            "--campaigns measures nothing: leave out --servers x",
        ),
        (["--campaigns", "a", "b"], "no campaign at a"),
        (["--base", "no-such-revision"], "git knows no revision 'no-such-revision'"),
        (["--base", "HEAD", "--servers", "zzz"], "there is no server 'zzz'"),
        (["--base", "HEAD", "--metrics", "speed"], "'speed' is not one of"),
        (["--base", "HEAD", "--repeat", "2"], "--repeat cannot be used with a gate"),
        (["--base", "HEAD", "--max-minutes", "0"], "is not a number of minutes above 0"),
        (
            ["--base-server", "python app.py", "--head-server", "http://127.0.0.1:1"],
            "a command needs {port} in place of its port",
        ),
        (
            ["--base-server", "serve {port} {no}", "--head-server", "http://127.0.0.1:1"],
            "the command has 'no' in braces",
        ),
        (
            ["--base-server", "serve '{port}", "--head-server", "http://127.0.0.1:1"],
            "not a command: No closing quotation",
        ),
        (["--base-server", ".", "--head-server", "."], "the folder has no server.toml"),
        (
            ["--base-server", "http://127.0.0.1:1", "--head-server", "http://127.0.0.1:1"],
            "GET http://127.0.0.1:1/v1/models: no server listens there",
        ),
    ],
)
def test_a_wrong_command_is_refused_in_one_sentence(
    bench: Bench,
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(bench.folder)
    monkeypatch.setenv("PYTHONPATH", bench.environment["PYTHONPATH"])
    out = [] if "--campaigns" in arguments else ["--out", "not_to_be"]
    code = call_command(gate_command, *arguments, *out)
    error = capfd.readouterr().err
    assert code == 2 and sentence in error and error.count("\n") == 1, error
    assert not (bench.folder / "not_to_be").exists()


# --- whole gates


def mine(folder: Path, summary: str) -> Path:
    """Makes a user's own server from one of ours; it finds the repository by PYTHONPATH."""
    folder.mkdir()
    text = (catalog.FOLDER / "fastapi_threadpool" / "server.toml").read_text()
    (folder / "server.toml").write_text(text.replace("FastAPI on Uvicorn", summary, 1))
    return folder


def test_two_folders(bench: Bench) -> None:
    old, new = mine(bench.folder / "old", "the old one"), mine(bench.folder / "new", "the new one")
    done = gate(
        bench,
        "--base-server",
        str(old),
        "--head-server",
        str(new),
        "--engines",
        "simulated",
        *SHORT,
        "--out",
        "folders",
    )
    assert done.returncode == 3, done.stdout + done.stderr
    found = {run["case"]["side"]: run for _, run in runs(bench.folder / "folders")}
    assert {side: run["status"] for side, run in found.items()} == {
        "base": "ok",
        "head": "ok",
        "control": "ok",
    }, done.stdout
    assert found["base"]["summary"].startswith("the old one") and found["head"][
        "summary"
    ].startswith("the new one")
    assert found["control"]["summary"] == found["base"]["summary"]
    [system] = verdict(bench, "folders")["systems"]
    assert system["name"] == "own (simulated), quick, 3 users" and system["faults"] == []
    # on a busy machine the repetition may have been set aside
    why = system["metrics"][0]["why"]
    assert re.match(r"only [01] of the 5 repetitions that a verdict needs", why)
    assert bench.left_over() == []


def test_two_commands(bench: Bench) -> None:
    command = f"{sys.executable} -m tests.helpers.faulty_server none {{port}}"
    done = gate(
        bench, "--base-server", command, "--head-server", command, *SHORT, "--out", "commands"
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert [run["status"] for _, run in runs(bench.folder / "commands")] == ["ok"] * 3


def test_a_command_that_does_not_start_is_invalid(bench: Bench) -> None:
    bad = f"{sys.executable} -c 'print(\"no such model\"); raise SystemExit(7)' {{port}}"
    done = gate(bench, "--base-server", bad, "--head-server", bad, *SHORT, "--out", "bad")
    assert (
        done.returncode == 2
        and "ended during its start with exit code 7" in done.stderr
        and "no such model" in done.stderr
    )


@pytest.mark.slow
def test_a_revision_against_the_working_tree(bench: Bench) -> None:
    done = gate(bench, "--base", "HEAD", "--servers", "fastapi_vllm", *SHORT, "--out", "revision")
    assert done.returncode == 3, done.stdout + done.stderr
    assert [run["status"] for _, run in runs(bench.folder / "revision")] == ["ok"] * 3
    assert (
        "HEAD (" in verdict(bench, "revision")["sides"]["base"]
        and verdict(bench, "revision")["sides"]["head"] == "the working tree"
    )
