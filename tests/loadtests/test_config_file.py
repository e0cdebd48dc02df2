"""Config files: their meaning, their errors, and a campaign and a gate that read one.

Each error is one sentence that names the file.
"""

import json
import sys
import tomllib
from pathlib import Path

import pytest

from loadtests.cli import parse_arguments
from loadtests.errors import UsageError
from loadtests.gate import main as gate_command
from tests.helpers.campaign_process import QUICK, Bench, is_complete
from tests.helpers.config_files import parse_file, run_plan, values_of

# --- the meaning of a file


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


def test_a_hidden_secret_is_not_sent(tmp_path: Path) -> None:
    """--plan shows a secret as ***; only the command line can give it."""
    text = 'header = ["api-key: ***"]\nrepeat = 2'
    with pytest.raises(UsageError, match=r"header has \*\*\* in place of a secret: write an env"):
        parse_file(tmp_path, text)
    assert parse_file(tmp_path, text, "--header", "api-key: x").header == ["api-key: x"]


def test_the_recorded_command_needs_no_file(tmp_path: Path) -> None:
    text = 'users = [1, 16]\nset = ["a.b=1"]\nmodel = "-odd"\nseed = 2\nno-calibration = false'
    found = parse_file(tmp_path, text, "--seed", "3")
    assert found.command == [
        *["--users", "1,16", "--set", "a.b=1", "--model=-odd", "--calibration", "--seed", "3"]
    ]
    assert values_of(parse_arguments(found.command)) == values_of(found)
    assert parse_arguments(["--users", "4"]).command == ["--users", "4"]


# --- errors

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
    ('model = "a\\u0000b"', "model contains the character U+0000: remove it"),
    ("users = 4\nusers = 5", "is not TOML ("),
    ("--users 4", "is not TOML ("),
    ("users = " + "[" * 5000, "is not TOML ("),
    ("seed = " + "9" * 5000, "is not TOML ("),
    (b"model = '\xff'", "cannot be read: it is not UTF-8"),
    (b"\xff\xfeu\x00", "cannot be read: it is not UTF-8"),
]


@pytest.mark.parametrize(("text", "sentence"), BAD, ids=[str(text)[:40] for text, _ in BAD])
def test_an_error_in_a_file_is_one_sentence(
    tmp_path: Path, text: str | bytes, sentence: str
) -> None:
    with pytest.raises(UsageError) as error:
        parse_file(tmp_path, text)
    text = str(error.value)
    assert text.startswith(str(tmp_path / "bench.toml")) and sentence in text and "\n" not in text


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
        (["--config"], "--config needs a file: give one"),
        (["--config", "mine.toml", "--config", "mine.toml"], "--config is given 2 times"),
        (["--config", "mine.toml"], "mine.toml: there is no option 'quick'"),
    ],
)
def test_an_unusable_file(bench: Bench, arguments: list[str], sentence: str) -> None:
    bench.refuses(sentence, *arguments, "--out", "not_to_be")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has this file")
def test_a_file_that_cannot_be_read() -> None:
    """Not even root can read it: nothing is mapped at address 0."""
    with pytest.raises(UsageError, match="/proc/self/mem cannot be read: Input/output error: give"):
        parse_arguments(["--config", "/proc/self/mem"])


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
            "choose from hf, simulated (servers and engines are set in bench.toml)",
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


def test_an_error_of_the_command_line_does_not_name_the_file(bench: Bench) -> None:
    (bench.folder / "bench.toml").write_text('users = [1, 16]\nmodel = "small"\n')
    done = run_plan(bench, "--config", "bench.toml", "--servers", "nope")
    assert "there is no server 'nope'" in done.stderr and "bench.toml" not in done.stderr


# --- a campaign and a gate from a file


def test_a_campaign_from_a_file_is_recorded_as_if_typed(bench: Bench) -> None:
    (bench.folder / "bench.toml").write_text(
        'servers = ["flask_gunicorn"]\nduration = 1\ncalibration = false\nseed = 2\n'
    )
    command = ("--config", "bench.toml", *QUICK, "--seed", "3", "--out", "from_file")
    for _ in range(2):  # the second run has nothing to do
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
    done = run_plan(bench, "--config", "gate.toml", main=gate_command)
    assert done.returncode == 2 and "'speed' is not one of" in done.stderr
    assert "(metrics is set in gate.toml)" in done.stderr
    done = run_plan(bench, "--config", "gate.toml", "--metrics", "", main=gate_command)
    values = tomllib.loads(done.stdout)
    assert (values["base-server"], values["slo"], values["users"], values["engines"]) == (
        *("old {port}", ["ttft=1s"]),
        *([4], ["simulated"]),
    ), done.stderr
    (bench.folder / "gate.toml").write_text("record = true\n")
    done = run_plan(bench, "--config", "gate.toml", main=gate_command)
    assert "record cannot be in a config file" in done.stderr
