"""--plan prints a config file that --config reads as the same command."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtests import config_file
from loadtests.__main__ import run as run_bench
from loadtests.cli import parse_arguments
from loadtests.errors import UsageError
from loadtests.gate import make_gate_parser
from loadtests.gate import run as run_gate
from loadtests.options import make_parser
from loadtests.telemetry import machine
from tests.helpers.campaign_process import PATIENCE_S, Bench
from tests.helpers.config_files import format_file, parse_file, run_plan, values_of
from tests.helpers.fake_nvml import ONE_CARD, compile_driver

ROOT = Path(__file__).parents[2]


# argparse of Python 3.11 drops the value of `--option=--`
TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
).filter(lambda text: text != "--")
NAME = TEXT.map(lambda text: text.replace(",", "")).filter(lambda text: text not in ("", "--"))
NUMBER = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
COUNT = st.integers(min_value=1, max_value=2**63 - 1)


def joined(values: st.SearchStrategy[Any]) -> st.SearchStrategy[str]:
    return st.lists(values, min_size=1).map(lambda parts: ",".join(map(str, parts)))


# Possible values of each option; a bool stands for a switch.
TYPED: dict[str, st.SearchStrategy[Any]] = {
    "servers": joined(NAME),
    "engines": joined(NAME),
    "set": st.lists(TEXT, min_size=1),
    "model": TEXT,
    "simulated": joined(
        st.one_of(
            st.floats(0, allow_infinity=False).map("prefill_ms={}".format),
            st.integers(1).map("max_batch={}".format),
            st.floats(0, 1).map("reasoning_share={}".format),
        )
    ),
    "workers": COUNT,
    "target": st.lists(TEXT, min_size=1),
    "header": st.lists(TEXT, min_size=1),
    "body": st.lists(TEXT, min_size=1),
    "insecure": st.booleans(),
    "cacert": TEXT,
    "proxy": TEXT,
    "ready-timeout": NUMBER,
    "gpu-metrics": st.lists(TEXT, min_size=1),
    "host-metrics": st.lists(TEXT, min_size=1),
    "scenarios": joined(NAME),
    "scenarios-file": TEXT,
    "users": joined(COUNT),
    "rate": joined(NUMBER),
    "trace": TEXT,
    "prompts": TEXT,
    "tokenizer": st.lists(TEXT, min_size=1),
    "time-scale": NUMBER,
    "respect-retry-after": st.booleans(),
    "seed": st.integers(-(2**63) + 1, 2**63 - 1),
    "duration": NUMBER,
    "repeat": COUNT,
    "max-errors": st.one_of(st.floats(0, 1), st.integers(0, 100).map("{}%".format)),
    "calibration": st.booleans(),
    "find-capacity": st.booleans(),
    "slo": joined(NAME),
    "load-workers": COUNT,
    "listen": st.integers(1, 65535).map("node-1.example:{}".format),
    "out": TEXT,
    "report": st.sampled_from(["full", "page", "none"]),
    "web-port": st.integers(1, 65535),
}


def type_option(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{'' if value else 'no-'}{name}"]
    return [f"--{name}={each}" for each in (value if isinstance(value, list) else [value])]


COMMANDS = st.fixed_dictionaries({}, optional=TYPED).map(
    lambda chosen: [part for name, value in chosen.items() for part in type_option(name, value)]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(command=COMMANDS.filter(lambda command: machine.redact_secrets(command) == command))
def test_every_command_survives_its_file(tmp_path: Path, command: list[str]) -> None:
    typed = parse_arguments(command)
    text = format_file(typed)
    read = parse_file(tmp_path, text)
    assert values_of(read) == values_of(typed) and format_file(read) == text


NOT_IN_A_FILE = {"-h", "--config", "--plan", "--campaigns", "--record"}
WITHOUT_DEFAULT = {"--base", "--base-server", "--head-server", "--baseline"} | NOT_IN_A_FILE


@pytest.mark.parametrize("make", [make_parser, make_gate_parser])
def test_every_option_is_in_the_file_or_deliberately_left_out(make: Any) -> None:
    parser = make()
    text = config_file.format_plan(
        config_file.list_settings(parser, parser.parse_args([])), {}, "Cases", [], {}
    )
    keys = re.findall(r"^(?:# )?([\w-]+) (?:=|is not set)", text, re.MULTILINE)
    names = {action.option_strings[0] for action in parser._actions}
    assert sorted(f"--{key}" for key in keys) == sorted(names - NOT_IN_A_FILE)


@pytest.mark.parametrize("make", [make_parser, make_gate_parser])
def test_the_help_of_every_option_has_its_default(make: Any) -> None:
    for action in make()._actions:
        name = action.option_strings[0]
        assert name in WITHOUT_DEFAULT - {"--config"} or "(default: " in action.help, name


def test_the_table_of_this_test_has_every_option() -> None:
    assert set(TYPED) == {setting.key for setting in parse_arguments([]).settings}


def test_secrets_are_not_printed(tmp_path: Path) -> None:
    arguments = parse_arguments(["--target", "http://me:s3cret@10.0.0.5/v1?api-key=s3cret"])
    text = format_file(arguments)
    assert "s3cret" not in text and "*** stands for a secret: write an environment" in text
    assert format_file(parse_file(tmp_path, text, "--plan")) == text


def test_a_name_that_is_not_utf8_is_refused() -> None:
    name = os.fsdecode(b"caf\xe9")
    with pytest.raises(UsageError, match=r"^--trace 'caf\\udce9' is not UTF-8"):
        format_file(parse_arguments(["--trace", name]))


# not revisions, whose own requirements might have to be installed
SIDES = "--base-server 'HF_TOKEN=s3cret old {port}' --head-server 'new {port}'"


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("loadtests", ""),
        ("loadtests", "--servers flask_gunicorn,fastapi_threadpool --engines hf,simulated"),
        ("loadtests", "--users 1,8 --rate 2,4.5 --repeat 2 --seed 7 --duration 30"),
        ("loadtests", "--servers all --engines simulated --simulated prefill_ms=20,step_ms=5"),
        ("loadtests", "--find-capacity --scenarios steady --slo ttft_p99=500ms,errors=1%"),
        ("loadtests", "--servers fastapi_vllm --set fastapi_vllm.loop=uvloop,asyncio"),
        ("loadtests", "--scenarios-file mine.toml --scenarios quick,random --max-errors 1%"),
        ("loadtests", "--target http://me:s3cret@127.0.0.1:1/v1 --model some-model"),
        ("loadtests", "--listen 10.0.0.5:5557 --load-workers 2 --no-calibration --report page"),
        ("loadtests.gate", f"{SIDES} --tolerance e2e_p99_s=20% --tolerance ttft_p99_s=10%"),
        ("loadtests.gate", f"{SIDES} --profile real --max-minutes 5 --users 4 --slo ttft=500ms"),
    ],
)
def test_the_plan_of_a_saved_plan_is_the_same(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    command: str,
) -> None:
    """Runs in this process, because there are many cases; the tests below start one."""
    monkeypatch.chdir(bench.folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run = {"loadtests": run_bench, "loadtests.gate": run_gate}[module]
    assert run([*shlex.split(command), "--plan"]) == 0
    first = capsys.readouterr()
    Path("saved.toml").write_text(first.out)
    assert run(["--config", "saved.toml", "--plan"]) == 0
    second = capsys.readouterr()
    assert (first.err, second.err, second.out) == ("", "", first.out)
    assert tomllib.loads(first.out) and "s3cret" not in first.out


def test_the_plan_lists_what_is_measured_first(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--servers", "fastapi_vllm", "--scenarios", "steady", "--duration", "15", "--plan"]
    for more, case in (
        (["--rate", "1"], r"steady +1 request/s +15 s"),
        (["--find-capacity"], r"steady-saturation +64 users +10 s"),
        (["--find-capacity", "--rate", "2"], r"steady +2 requests/s +15 s"),
    ):
        assert run_bench([*command, *more]) == 0
        assert re.search(rf"^# +1  fastapi_vllm +vllm +{case}", capsys.readouterr().out, re.M)


def test_the_default_on_a_gpu_is_a_comparison_within_twenty_minutes(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be planned without the packages of the servers, which are installed after it."""
    driver = compile_driver(tmp_path, ONE_CARD)
    monkeypatch.setitem(bench.environment, "LD_LIBRARY_PATH", driver)
    printed = run_plan(bench).stdout
    values = tomllib.loads(printed)
    assert (values["model"], values["scenarios"]) == ("8b", ["gpu-quick"])
    assert values["users"] == [1, 16, 64]
    loads = re.findall(r"^# +\d+  (\w+) +\w+ +gpu-quick +(\d+) users?", printed, re.M)
    core = ["flask_gunicorn", "fastapi_threadpool", "fastapi_vllm"]
    assert sorted(loads) == sorted((name, count) for name in core for count in ("1", "16", "64"))
    found = re.search(r"about (\d+) min, and up to (\d+) min to generate the model", printed)
    assert found and sum(map(int, found.groups())) < 20
    (bench.folder / "saved.toml").write_text(printed)
    assert run_plan(bench, "--config", "saved.toml").stdout == printed
    rated = tomllib.loads(run_plan(bench, "--rate", "4", "--users", "8").stdout)
    assert (rated["scenarios"], rated["users"]) == (["gpu-quick", "gpu-steady"], [8])
    search = tomllib.loads(run_plan(bench, "--find-capacity").stdout)
    assert search["scenarios"] == ["gpu-chat", "gpu-steady"] and "users" not in search
    simulated = tomllib.loads(run_plan(bench, "--engines", "simulated").stdout)
    assert simulated["model"] == "small"


def test_a_reader_may_close_the_pipe_early(bench: Bench) -> None:
    """As `| head -1` does."""
    with subprocess.Popen(
        # 300 kB, more than a pipe holds; a closed loop, whose windows need no arrivals
        [
            sys.executable,
            "-m",
            "loadtests",
            "--scenarios",
            "interactive",
            "--repeat",
            "1000",
            "--plan",
        ],
        cwd=bench.folder,
        env=bench.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline().startswith(b"# The options of a campaign")
        process.stdout.close()
        assert (process.stderr.read(), process.wait(PATIENCE_S)) == (b"", 0)
