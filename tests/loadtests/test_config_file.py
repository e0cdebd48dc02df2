"""Config files: what --plan prints is a command that --config repeats, and what is wrong with a
file is said in one sentence.
"""

import argparse
import json
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
from loadtests.option_types import MOST_COLUMNS
from loadtests.options import make_parser
from loadtests.telemetry import machine
from tests.helpers.campaign_process import PATIENCE_S, QUICK, Bench, is_complete
from tests.helpers.fake_nvml import ONE_CARD, compile_driver

ROOT = Path(__file__).parents[2]


def parse_file(folder: Path, text: str | bytes, *command: str) -> argparse.Namespace:
    file = folder / "bench.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return parse_arguments(["--config", str(file), *command])


def values_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """All but how they were typed."""
    return {
        name: value
        for name, value in vars(arguments).items()
        if name not in ("command", "expanded")
    }


def format_file(arguments: argparse.Namespace) -> str:
    return config_file.format_plan(arguments.settings, {}, "Cases", [], {})


# --- what a file means


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("", []),
        ('servers = "a,b"', ["--servers", "a,b"]),
        ('servers = ["a", "b"]', ["--servers", "a,b"]),
        ("users = 4", ["--users", "4"]),
        ("users = [1, 16]", ["--users", "1,16"]),
        ("rate = [2.5, 4]", ["--rate", "2.5,4"]),
        ('set = "a.b=1,2"', ["--set", "a.b=1,2"]),
        ('set = ["a.b=1,2", "c.d=3"]', ["--set", "a.b=1,2", "--set", "c.d=3"]),
        ('simulated = ["prefill_ms=20", "step_ms=5"]', ["--simulated", "prefill_ms=20,step_ms=5"]),
        ('max-errors = "1%"', ["--max-errors", "1%"]),
        ("max-errors = 0.00001", ["--max-errors", "0.00001"]),
        ("find-capacity = true", ["--find-capacity"]),
        ("find-capacity = false", []),
        ("calibration = false", ["--no-calibration"]),
        ("no-calibration = true", ["--no-calibration"]),
        ("no-calibration = false", []),
        ('model = "-odd"', ["--model=-odd"]),
        ('listen = "10.0.0.5:5557"', ["--listen", "10.0.0.5:5557"]),
        ('slo = "ttft_p99=1s,errors=1%"', ["--slo", "ttft_p99=1s,errors=1%"]),
        ("# only a comment\r\nusers = [\r\n  1,\r\n  16,\r\n]\r\n", ["--users", "1,16"]),
        (b"\xef\xbb\xbfusers = 4\r\n", ["--users", "4"]),
    ],
)
def test_a_file_means_what_the_same_options_mean(
    tmp_path: Path, text: str | bytes, command: list[str]
) -> None:
    assert values_of(parse_file(tmp_path, text)) == values_of(parse_arguments(command))


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    text = 'users = [1, 16]\nrepeat = 3\nset = ["a.b=1"]\nfind-capacity = true\ncalibration = false'
    command = ["--users=4", "--set", "c.d=2", "--no-find-capacity", "--calibration"]
    found = parse_file(tmp_path, text, *command)
    assert values_of(found) == values_of(parse_arguments(["--repeat", "3", *command]))


def test_the_recorded_command_needs_no_file(tmp_path: Path) -> None:
    text = 'users = [1, 16]\nset = ["a.b=1"]\nmodel = "-odd"\nseed = 2\nno-calibration = false'
    found = parse_file(tmp_path, text, "--seed", "3")
    assert found.command == [
        *["--users", "1,16", "--set", "a.b=1", "--model=-odd", "--calibration", "--seed", "3"]
    ]
    assert values_of(parse_arguments(found.command)) == values_of(found)
    assert parse_arguments(["--users", "4"]).command == ["--users", "4"]


# --- what is wrong with it

BAD = [
    ("user = 4", "there is no option 'user'; did you mean 'users'?"),
    ("find_capacity = true", "there is no option 'find_capacity'; did you mean 'find-capacity'?"),
    ("[bench]\nusers = 4", "there is no option 'bench'"),
    ('"a\\nb" = 1', "there is no option 'a\\nb'"),
    ('config = "other.toml"', "config cannot be in a config file: give --config on the command"),
    ("plan = true", "plan cannot be in a config file: give --plan on the command line"),
    ("help = true", "help cannot be in a config file"),
    ('find-capacity = "true"', "find-capacity is a switch: write true or false, without quotes"),
    ("find-capacity = 1", "find-capacity is a switch"),
    ("calibration = true\nno-calibration = true", "calibration and no-calibration set the same"),
    ("users = true", "users must be a string or a number, or a list of these"),
    ("users = [1, [2]]", "users must be a string or a number, or a list of these"),
    ("users = {a = 1}", "users must be a string or a number, or a list of these"),
    ("users.a = 1", "users must be a string or a number, or a list of these"),
    ("duration = 1979-05-27", "duration must be a string or a number"),
    ("duration = [20]", "duration takes one value: write it without brackets"),
    ("servers = []", "servers is an empty list: give it a value, or leave servers out"),
    ("set = []", "set is an empty list"),
    ("users = 0", "users: '0' is not a whole number of users above 0 (see --help)"),
    ("users = 1.5", "users: '1.5' is not a whole number of users above 0"),
    ("rate = nan", "rate: 'nan' is not a rate above 0"),
    ("duration = inf", "duration: 'inf' is not a number of seconds above 0"),
    ("seed = 1.0", "seed: '1.0' is not a whole number"),
    (f"seed = 0x{'f' * 5000}", "seed is too large"),
    ("max-errors = 5", "max-errors: '5': give a share of the requests, such as 5%"),
    ('simulated = "step=1"', "simulated: 'step' is not one of prefill_ms"),
    ('report = "none,page"', "report: invalid choice: 'none,page'"),
    ('listen = "0.0.0.0:1"', "listen: '0.0.0.0:1' is not ADDRESS:PORT"),
    ("web-port = 99999", "web-port: '99999' is not a port"),
    ('model = "a\\u0000b"', "model has the character U+0000 in it: remove that"),
    ("users = 4\nusers = 5", "is not TOML ("),
    ("--users 4", "is not TOML ("),
    ("users = " + "[" * 5000, "is not TOML ("),
    ("seed = " + "9" * 5000, "is not TOML ("),
    (b"model = '\xff'", "cannot be read: it is not UTF-8"),
    (b"\xff\xfeu\x00", "cannot be read: it is not UTF-8"),
]


@pytest.mark.parametrize(("text", "sentence"), BAD, ids=[str(text)[:40] for text, _ in BAD])
def test_what_is_wrong_with_a_file_is_one_sentence(
    tmp_path: Path, text: str | bytes, sentence: str
) -> None:
    with pytest.raises(UsageError) as error:
        parse_file(tmp_path, text)
    said = str(error.value)
    assert said.startswith(str(tmp_path / "bench.toml")) and sentence in said and "\n" not in said


def test_a_value_that_the_command_line_overrides_is_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="users: '0' is not"):
        parse_file(tmp_path, "users = 0", "--users", "4")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--config", "none.toml"],
            "none.toml cannot be read: No such file or directory: give --config a TOML file",
        ),
        (["--config", "tmp"], "tmp cannot be read: Is a directory"),
        (["--config"], "--config names no file: give one"),
        (["--config", "mine.toml", "--config", "mine.toml"], "--config is given 2 times"),
        (["--config", "mine.toml"], "mine.toml: there is no option 'quick'"),
    ],
)
def test_a_file_that_is_none(bench: Bench, arguments: list[str], sentence: str) -> None:
    bench.refuses(sentence, *arguments, "--out", "not_to_be")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_nobody_may_read(tmp_path: Path) -> None:
    (tmp_path / "bench.toml").touch(mode=0)
    with pytest.raises(UsageError, match="cannot be read: Permission denied"):
        parse_arguments(["--config", str(tmp_path / "bench.toml")])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            'servers = ["flask_gunicron"]',
            "did you mean 'flask_gunicorn'? (servers is set in bench.toml)",
        ),
        ('set = ["nope"]', "several values make several cases (set is set in bench.toml)"),
        ('scenarios-file = "no.toml"', "No such file or directory (scenarios-file is set in"),
        (
            'servers = "flask_gunicorn"\nengines = "vllm"\nseed = 1',
            "it has hf, simulated (servers and engines are set in bench.toml)",
        ),
        ("rate = 4", "--scenarios steady (rate is set in bench.toml)"),
        ('trace = "no.csv"\nscenarios = "replay"', "(trace is set in bench.toml)"),
    ],
)
def test_a_value_that_is_refused_later_is_located(bench: Bench, text: str, sentence: str) -> None:
    (bench.folder / "bench.toml").write_text(text + "\n")
    chosen = () if "scenarios" in text else ("--scenarios", "interactive")
    done = run_plan(bench, "--config", "bench.toml", *chosen)
    assert (done.returncode, done.stdout) == (2, "") and sentence in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


def test_an_error_of_the_command_line_is_not_laid_on_the_file(bench: Bench) -> None:
    (bench.folder / "bench.toml").write_text('users = [1, 16]\nmodel = "small"\n')
    done = run_plan(bench, "--config", "bench.toml", "--servers", "nope")
    assert "there is no server 'nope'" in done.stderr and "bench.toml" not in done.stderr


# --- what --plan prints

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
NAME = TEXT.map(lambda text: text.replace(",", "")).filter(bool)
NUMBER = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
COUNT = st.integers(min_value=1, max_value=2**63 - 1)


def joined(values: st.SearchStrategy[Any]) -> st.SearchStrategy[str]:
    return st.lists(values, min_size=1).map(lambda parts: ",".join(map(str, parts)))


# What may be typed after each option; False and True without a value.
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
    "target": TEXT,
    "ready-timeout": NUMBER,
    "scenarios": joined(NAME),
    "scenarios-file": TEXT,
    "users": joined(COUNT),
    "rate": joined(NUMBER),
    "trace": TEXT,
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
def test_every_option_is_in_the_file_or_left_out_on_purpose(make: Any) -> None:
    parser = make()
    text = config_file.format_plan(
        config_file.list_settings(parser, parser.parse_args([])), {}, "Cases", [], {}
    )
    said = re.findall(r"^(?:# )?([\w-]+) (?:=|is not set)", text, re.MULTILINE)
    names = {action.option_strings[0] for action in parser._actions}
    assert sorted(f"--{name}" for name in said) == sorted(names - NOT_IN_A_FILE)


@pytest.mark.parametrize("make", [make_parser, make_gate_parser])
def test_every_option_says_its_default(make: Any) -> None:
    for action in make()._actions:
        name = action.option_strings[0]
        assert name in WITHOUT_DEFAULT - {"--config"} or "(default: " in action.help, name


def test_the_table_of_this_test_has_every_option() -> None:
    assert set(TYPED) == {setting.key for setting in parse_arguments([]).settings}


def test_secrets_are_not_printed(tmp_path: Path) -> None:
    arguments = parse_arguments(["--target", "http://me:s3cret@10.0.0.5/v1?api-key=s3cret"])
    text = format_file(arguments)
    assert "s3cret" not in text and "*** stands for a secret: give this option on the" in text
    assert format_file(parse_file(tmp_path, text)) == text


def test_a_name_that_is_not_utf8_is_refused() -> None:
    name = os.fsdecode(b"caf\xe9")
    with pytest.raises(UsageError, match=r"^--trace 'caf\\udce9' is not UTF-8"):
        format_file(parse_arguments(["--trace", name]))


# not revisions: those whose requirements are others would be installed
SIDES = "--base-server 'HF_TOKEN=s3cret old {port}' --head-server 'new {port}'"


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
    """In this process, since there are many; those below start one."""
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


def test_the_defaults_of_a_gpu_are_filled_in(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not what the servers need is installed: a plan is made before that."""
    driver = compile_driver(tmp_path, ONE_CARD)
    monkeypatch.setitem(bench.environment, "LD_LIBRARY_PATH", driver)
    values = tomllib.loads(run_plan(bench, "--servers", "vllm_openai,fastapi_vllm").stdout)
    assert (values["model"], values["scenarios"]) == ("8b", ["gpu-chat", "gpu-steady"])
    simulated = tomllib.loads(run_plan(bench, "--engines", "simulated").stdout)
    assert simulated["model"] == "small"


def test_a_plan_may_be_read_in_part(bench: Bench) -> None:
    """As by `| head -1`."""
    with subprocess.Popen(
        [sys.executable, "-m", "loadtests", "--repeat", "2000", "--plan"],
        cwd=bench.folder,
        env=bench.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline().startswith(b"# The options of a campaign")
        process.stdout.close()
        assert (process.stderr.read(), process.wait(PATIENCE_S)) == (b"", 0)


# --- a campaign and a gate from a file


def test_a_campaign_from_a_file_is_recorded_as_if_typed(bench: Bench) -> None:
    (bench.folder / "bench.toml").write_text(
        'servers = ["flask_gunicorn"]\nduration = 1\ncalibration = false\nseed = 2\n'
    )
    command = ("--config", "bench.toml", *QUICK, "--seed", "3", "--out", "from_file")
    for _ in range(2):  # the second time there is nothing left to do
        done = bench.run(*command)
        assert is_complete(done.returncode, done.stdout + done.stderr), done.stdout + done.stderr
    file = json.loads((bench.folder / "from_file" / "campaign.json").read_text())
    kept = file["command"]
    assert "--config" not in kept and kept[:5] == [
        *["--servers", "flask_gunicorn", "--duration", "1", "--scenarios-file"]
    ]
    assert file["seed"] == 3 and parse_arguments(kept).duration == 1


def test_a_gate_reads_its_own_options_from_a_file_too(bench: Bench) -> None:
    (bench.folder / "gate.toml").write_text(
        'base-server = "old {port}"\nhead-server = "new {port}"\nmetrics = ["speed"]\n'
        'slo = "ttft=1s"\nusers = 4\n'
    )
    done = run_plan(bench, "--config", "gate.toml", module="loadtests.gate")
    assert done.returncode == 2 and "'speed' is not one of" in done.stderr
    done = run_plan(bench, "--config", "gate.toml", "--metrics", "", module="loadtests.gate")
    values = tomllib.loads(done.stdout)
    assert (values["base-server"], values["slo"], values["users"], values["engines"]) == (
        *("old {port}", ["ttft=1s"]),
        *([4], ["simulated"]),
    ), done.stderr
    (bench.folder / "gate.toml").write_text("record = true\n")
    done = run_plan(bench, "--config", "gate.toml", module="loadtests.gate")
    assert "record cannot be in a config file" in done.stderr


# --- --help


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("parser", [make_parser, make_gate_parser])
def test_help_is_narrow(parser: Any, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = parser().format_help()
    assert max(map(len, text.splitlines())) <= MOST_COLUMNS
    assert "\noptions:" not in text, "each option is in a group"


def test_every_group_has_an_example_that_is_understood(tmp_path: Path) -> None:
    for group in make_parser()._action_groups:
        if group._group_actions:
            examples = re.findall(r"nox -s bench -- ([^#>\n]+)", group.description or "")
            assert examples, group.title
            for example in examples:
                command = shlex.split(example.replace("bench.toml", str(tmp_path / "bench.toml")))
                (tmp_path / "bench.toml").write_text("users = 4")
                parse_arguments(command)
