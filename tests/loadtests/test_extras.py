"""A command needs only the extras of its servers, engines and upstreams."""

import subprocess
import sys
from pathlib import Path

import pytest

from loadtests import extras
from servers.runtime import catalog
from servers.runtime.catalog import ROOT
from tests.helpers.campaign_process import call_command

URL = "http://127.0.0.1:9"
VLLM = "vllm-cpu vllm-gpu"  # the noxfile picks the one for this machine


def print_extras(*command: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.extras", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("", f"flask fastapi hf notebooks {VLLM}"),
        ("--report page", f"flask fastapi hf {VLLM}"),
        ("--report none --engines simulated", "flask fastapi"),
        (f"--target {URL}", "notebooks"),
        (f"--target {URL} --report page", ""),
        ("--servers fastapi_gateway --report page", f"fastapi gateway {VLLM}"),
        ("--servers node_gateway --engines simulated --report page", "node fastapi"),
        ("--servers nginx_balanced --report page", "fastapi hf"),
        ("--servers nginx_balanced --set nginx_balanced.of=flask_gevent --report page", "flask hf"),
        ("--servers fastchat --report page", "hf"),
        ("--servers tornado,sanic --find-capacity --report page", "tornado sanic hf"),
        ("--plan", ""),
    ],
)
def test_a_campaign(command: str, needed: str) -> None:
    assert extras.list_extras("loadtests", command.split()) == set(needed.split())


def test_a_config_file(tmp_path: Path) -> None:
    file = tmp_path / "bench.toml"
    file.write_text('servers = ["tornado"]\nengines = "simulated"\nreport = "page"\n')
    assert extras.list_extras("loadtests", ["--config", str(file)]) == {"tornado"}
    gate = ["--baseline", "newest", "--config", str(file)]
    assert extras.list_extras("loadtests.gate", gate) == {"tornado"}


def test_all_servers() -> None:
    found = extras.list_extras("loadtests", ["--servers", "all"])
    servers = catalog.list_servers().values()
    engines = {"hf", *VLLM.split()}
    assert found == {each for server in servers for each in server.extras} | engines | {"notebooks"}
    simulated = extras.list_extras("loadtests", ["--servers", "all", "--engines", "simulated"])
    assert simulated == found - engines


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        (f"--base-server {URL} --head-server {URL}", ""),
        ("--base-server {port} --head-server {port}", ""),
        ("--record", "fastapi"),
        ("--baseline newest --profile real", f"fastapi hf {VLLM}"),
        ("--baseline newest --servers tornado", "tornado"),
        ("--campaigns a b", ""),
        ("--record --plan", ""),
    ],
)
def test_a_gate(command: str, needed: str) -> None:
    assert extras.list_extras("loadtests.gate", command.split()) == set(needed.split())


def test_a_gate_of_folders(tmp_path: Path) -> None:
    """A user's own folder may need our extras."""
    (tmp_path / "server.toml").write_text(
        'summary = "mine"\ncommand = ["x", "{port}"]\nengines = ["simulated"]\nextras = ["sanic"]\n'
    )
    sides = ["--base-server", str(tmp_path), "--head-server", str(tmp_path)]
    assert extras.list_extras("loadtests.gate", sides) == {"sanic"}


def test_claims() -> None:
    found = extras.list_extras("loadtests.claims", ["engines"])
    assert found == {"fastapi", "hf", *VLLM.split()}
    assert extras.list_extras("loadtests.claims", []) > {"django", "node"}


def test_the_load_generator_s_accuracy() -> None:
    assert extras.list_extras("loadtests.accuracy", ["start_up"]) == {"fastapi"}


def test_a_server_with_its_own_environment_needs_none_of_our_frameworks() -> None:
    there = catalog.Checkout(ROOT, Path("programs"))
    server = catalog.find_server("flask_gunicorn", there)
    assert server.needed_extras("simulated") == set()
    assert server.needed_extras("hf") == {"hf"}, "our environment makes the model"


def test_the_command_prints_them() -> None:
    assert print_extras("loadtests", "--engines", "simulated") == ["fastapi", "flask", "notebooks"]


@pytest.mark.parametrize(
    "command",
    [
        "loadtests --help",
        "loadtests --no-such-option",
        "loadtests --servers flask_unicorn",
        "loadtests --target ftp://x",
        "loadtests.gate",
        "loadtests.gate --base no-such-revision",
        "loadtests.gate --record --repeat 3",
        "loadtests.claims no-such-campaign",
    ],
)
def test_a_command_that_only_prints_or_refuses_needs_nothing(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not call_command(extras.main, *command.split())
    printed = capsys.readouterr()
    assert printed.out.split() == [] and not printed.err
