"""The commands that a report suggests work as printed."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis import __main__, dataset, summary
from analysis.report import next_commands
from loadtests import __main__ as bench
from tests.helpers import synthetic_campaign
from tests.helpers.python_program import ROOT

TYPED = "--servers fastapi_vllm,flask_gunicorn --engines simulated --scenarios interactive,steady"


def suggested(folder: Path, command: str, **changes: Any) -> dict[str, str]:
    """The suggested commands without Python, by their purpose."""
    synthetic_campaign.campaign(folder)
    file = folder / "campaign.json"
    data = json.loads(file.read_text()) | {"command": shlex.split(command)} | changes
    synthetic_campaign.schema.write_json(file, data)
    found = next_commands.suggest_commands(summary.summarise(dataset.read_campaign(folder)))
    return {what: text.partition(" -m ")[2] for what, text in found}


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The synthetic campaign with a single run."""
    runs = synthetic_campaign.run

    def first(index: int, server: str = "alpha", repetition: int = 1, **changes: Any) -> Any:
        return runs(index, server, 1, **changes)

    monkeypatch.setattr(synthetic_campaign, "run", first)


def test_after_one_run(tmp_path: Path, once: None) -> None:
    out = "--out results/mine --report page"
    found = suggested(tmp_path / "campaign", f"{TYPED} {out} --users 4,8 --rate 3")
    assert list(found.values()) == [
        f"loadtests {TYPED} --report page --users 4,8 --rate 3 --repeat 3",
        f"loadtests {TYPED} --report page --rate 3 --find-capacity",
        "loadtests --scenarios interactive,steady --report page --users 4,8 --rate 3 --target"
        " http://127.0.0.1:8000",
    ]


def test_after_a_command_without_options(tmp_path: Path, once: None) -> None:
    assert list(suggested(tmp_path / "campaign", "").values()) == [
        "loadtests --repeat 3",
        "loadtests --find-capacity",
        "loadtests --target http://127.0.0.1:8000",
    ]


def test_after_several_runs_another_repetition_is_not_suggested(tmp_path: Path) -> None:
    found = suggested(tmp_path / "campaign", f"{TYPED} --repeat=3 --users 4")
    assert list(found.values()) == [
        f"loadtests {TYPED} --users 4 --find-capacity",
        "loadtests --scenarios interactive,steady --users 4 --target http://127.0.0.1:8000",
    ]


def test_numbers_of_a_gpu_can_be_committed_by_one_command(
    tmp_path: Path, once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gpu = {"manifest": {"gpus": [{"name": "NVIDIA H200"}]}}
    results = tmp_path / "results"
    runs = synthetic_campaign.run
    monkeypatch.setattr(
        synthetic_campaign, "run", lambda *given, **more: runs(*given, **more, engine="hf")
    )
    first, *_ = suggested(results / "20261130", TYPED, **gpu).values()
    named = "reference-nvidia-h200"
    assert first == f"analysis publish results/20261130 {named} && git add results/{named}"
    (results / named).mkdir()
    second, *_ = suggested(results / "20261201", TYPED, **gpu).values()
    assert second.endswith(f"git add results/{named}-20261201")
    command = ["git", "check-ignore", "--quiet", second.split()[-1] + "/report.md"]
    assert subprocess.run(command, cwd=ROOT).returncode == 1, "git takes it"
    own = tmp_path / "results" / "reference-mine"
    (third, _, _) = suggested(own, TYPED, **gpu).values()
    assert third.endswith(
        "publish results/reference-mine reference-mine && git add results/reference-mine"
    )


@pytest.mark.parametrize(
    ("command", "changes"),
    [
        (TYPED, {"gate": {"sides": {}, "systems": []}}),
        ("--baseline newest", {}),
        ("--record=mine --servers fastapi_vllm", {}),
        ("--target http://***@10.0.0.5", {"scenarios": {"chat": {"arrivals": "trace"}}}),
    ],
)
def test_what_would_be_wrong_is_not_suggested(
    tmp_path: Path, command: str, changes: dict[str, Any]
) -> None:
    found = suggested(tmp_path / "campaign", command, **changes)
    assert all(text.endswith("--target http://127.0.0.1:8000") for text in found.values())
    assert not found or "***" in command


def test_without_a_valid_case_its_cause_comes_first(tmp_path: Path, once: None) -> None:
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    for path in folder.glob("cases/*/run.json"):
        run = json.loads(path.read_text())
        synthetic_campaign.schema.write_json(path, run | {"status": "failed: launch: no"})
    assert next_commands.suggest_commands(summary.summarise(dataset.read_campaign(folder))) == []


def test_a_trace_has_no_capacity(tmp_path: Path) -> None:
    found = suggested(
        tmp_path / "campaign",
        "--scenarios replay --trace 'my trace.csv'",
        scenarios={"chat": {"arrivals": "trace"}},
    )
    assert list(found.values()) == [
        "loadtests --scenarios replay --trace 'my trace.csv' --target http://127.0.0.1:8000"
    ]


def test_the_command_line_accepts_the_commands(
    tmp_path: Path, once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line itself parses them, and would refuse an unknown option or value."""
    monkeypatch.chdir(ROOT)
    found = suggested(tmp_path / "campaign", f"{TYPED} --users 4,8 --out x")
    for text in found.values():
        if "--target" in text:
            continue  # No server listens there.
        module, *arguments = shlex.split(text)
        assert module == "loadtests" and bench.run([*arguments, "--plan"]) == 0, text


def test_python_is_named_as_this_shell_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(sys.executable).parent
    monkeypatch.delenv("NOX_CURRENT_SESSION", raising=False)
    monkeypatch.setenv("PATH", f"{here}:/usr/bin:/bin")
    assert next_commands._python() == "python"
    monkeypatch.chdir(here.parents[1])
    near = str(Path(here.parent.name, "bin", Path(sys.executable).name))
    monkeypatch.setenv("NOX_CURRENT_SESSION", "bench")
    assert next_commands._python() == near, "only the session's own PATH contains it"
    monkeypatch.delenv("NOX_CURRENT_SESSION")
    monkeypatch.setenv("PATH", "/nowhere")
    assert next_commands._python() == near


def test_after_a_search_its_recommendation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    found = summary.summarise(dataset.read_campaign("results/reference-capacity-cpu-2core"))
    (what, command), *others = next_commands.suggest_commands(found)
    assert (
        what.startswith("what to run at ")
        and [text for _, text in others if "--repeat" in text] == []
    )
    arguments = shlex.split(command.partition(" -m ")[2])
    assert arguments[:4] == [
        "analysis",
        "recommend",
        "results/reference-capacity-cpu-2core",
        "--rate",
    ]
    __main__.main(arguments[1:])
    assert f"{arguments[4]} requests/s" in capsys.readouterr().out
