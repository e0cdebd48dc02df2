"""The catalogue: an invalid server.toml is reported with its place and fault, and a server that
cannot run with what is missing.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from servers.contract import conformance
from servers.runtime import catalog, engine_specs
from servers.runtime.catalog import CatalogError, Checkout
from servers.runtime.engine_specs import EngineSpec

GOOD = """
summary  = "a server"
command  = ["serve", "--bind", "{host}:{port}", "--workers", "{workers}"]
engines  = ["simulated"]
"""


def write(folder: Path, text: str, name: str = "mine") -> Path:
    file = folder / "servers" / name / "server.toml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return file


def error_of(folder: Path, text: str) -> str:
    file = write(folder, text)
    with pytest.raises(CatalogError) as error:
        catalog.list_servers(Checkout(folder))
    assert str(error.value).startswith(f"{file}: ") or f"{file}: " in str(error.value), (
        "the file must be named"
    )
    return str(error.value)


def test_a_folder_is_a_server(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    write(
        tmp_path,
        GOOD.replace("a server", "another") + 'requires = ["python3"]\nready_timeout_s = 5\n',
        "another",
    )
    (tmp_path / "servers" / "not_a_server").mkdir()
    found = catalog.list_servers(Checkout(tmp_path))
    assert list(found) == ["another", "mine"]
    assert found["mine"] == catalog.ServerSpec(
        "mine",
        "a server",
        ("serve", "--bind", "{host}:{port}", "--workers", "{workers}"),
        ("simulated",),
        checkout=Checkout(tmp_path),
    )
    assert found["another"].requires == ("python3",) and found["another"].ready_timeout_s == 5


def test_broken_toml_names_the_line(tmp_path: Path) -> None:
    assert "at line 3" in error_of(tmp_path, GOOD.replace('"--bind",', '"--bind"'))


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    write(tmp_path, "").write_bytes(b"summary = '\xff'")
    with pytest.raises(CatalogError, match=r"server\.toml: not valid TOML"):
        catalog.list_servers(Checkout(tmp_path))


def test_an_unknown_key_is_named_with_the_nearest(tmp_path: Path) -> None:
    assert "unknown key 'sumary'; did you mean 'summary'?" in error_of(
        tmp_path, 'sumary = "x"\n' + GOOD
    )


def test_an_unknown_engine_is_named_with_the_nearest(tmp_path: Path) -> None:
    message = error_of(tmp_path, GOOD.replace('"simulated"', '"simulate"'))
    assert "engine 'simulate'; did you mean 'simulated'?" in message


@pytest.mark.parametrize("key", ["summary", "command", "engines"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    text = "\n".join(line for line in GOOD.splitlines() if not line.startswith(key))
    assert f"the key {key!r} is missing" in error_of(tmp_path, text)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("summary", "summary = 5"),
        ("command", 'command = "serve {port}"'),
        ("command", 'command = ["serve", 8000]'),
        ("command", "command = []"),
        ("engines", 'engines = "hf"'),
        ("engines", "engines = []"),
        ("engines", 'engines = [["hf"]]'),
        ("requires", 'requires = "flask"'),
        ("requires", "requires = [5]"),
        ("ready_timeout_s", 'ready_timeout_s = "long"'),
        ("ready_timeout_s", "ready_timeout_s = true"),
        ("foreign", 'foreign = "yes"'),
        ("ready", "ready = 8000"),
        ("packages", 'packages = "fschat"'),
        ("transports", "transports = [5]"),
        ("options", 'options = ["loop"]'),
        ("options", 'options = { loop = "uvloop" }'),
        ("options", "options = { loop = [5] }"),
        ("upstream", 'upstream = "vllm_openai"'),
        ("upstream", "upstream = { simulated = 5 }"),
        ("processes", "processes = { redis = 5 }"),
        ("command", 'processes = { redis = { command = "redis-server", ready = "x:1" } }'),
        ("ready", 'processes = { redis = { command = ["redis-server"], ready = 6379 } }'),
        ("ready", 'processes = { redis = { command = ["redis-server"] } }'),
        ("port", 'processes = { redis = { command = ["redis-server"], ready = "x:1", port = 5 } }'),
        ("command", 'processes = { redis = { command = [], ready = "x:1" } }'),
        ("name", 'name = "not that of its folder"'),
    ],
)
def test_a_key_of_the_wrong_kind_is_named(tmp_path: Path, key: str, line: str) -> None:
    text = "\n".join(old for old in GOOD.splitlines() if not old.startswith(key)) + f"\n{line}\n"
    assert repr(key) in error_of(tmp_path, text)


def test_a_placeholder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert "placeholder ('prot')" in error_of(tmp_path, GOOD.replace("{port}", "{prot}"))


def test_options_have_allowed_values_and_the_first_is_the_default(tmp_path: Path) -> None:
    write(
        tmp_path,
        GOOD.replace('"serve"', '"serve", "--loop", "{loop}"')
        + '[options]\nloop = ["uvloop", "asyncio"]\njson = ["orjson"]\n',
    )
    server = catalog.list_servers(Checkout(tmp_path))["mine"]
    assert server.choose({}) == {"loop": "uvloop", "json": "orjson"}
    assert server.choose({"loop": "asyncio", "workers": "4"}) == {
        "loop": "asyncio",
        "json": "orjson",
        "workers": "4",
    }
    with pytest.raises(CatalogError, match="mine has no loop=trio: there are uvloop, asyncio"):
        server.choose({"loop": "trio"})
    with pytest.raises(
        CatalogError, match=r"there is no option of mine 'lop'; did you mean 'loop'\?"
    ):
        server.choose({"lop": "uvloop"})
    with pytest.raises(CatalogError, match="workers=0 is not a number above 0"):
        server.choose({"workers": "0"})
    with pytest.raises(CatalogError, match="there is no option of plain 'workers'"):
        catalog.ServerSpec("plain", "", ("serve",), ("simulated",)).choose({"workers": "2"})


def test_all_servers_with_an_engine_have_its_options() -> None:
    known = catalog.list_servers()
    with_vllm = {name for name, server in known.items() if "vllm" in server.engines}
    assert {"fastapi_vllm", "vllm_openai", "starlette_granian", "node_gateway"} <= with_vllm
    for name in with_vllm:
        chosen = {"gpu_memory_utilization": "0.45", "max_model_len": "8192"}
        assert known[name].choose(chosen).items() >= chosen.items()
        assert not known[name].choose({}).keys() & chosen.keys(), "left out unless chosen"
    for share in ("0", "0.0", "1.5", "nan", "inf", "-0.5", "", "90%", "1e-1", " 0.5"):
        with pytest.raises(
            CatalogError,
            match=f"gpu_memory_utilization={share} is not a number above 0 and up to 1",
        ):
            known["fastapi_vllm"].choose({"gpu_memory_utilization": share})
    with pytest.raises(CatalogError, match="max_model_len=-1 is not auto or a number above 0"):
        known["vllm_openai"].choose({"max_model_len": "-1"})
    with pytest.raises(CatalogError, match="no option of flask_gunicorn 'max_model_len'"):
        known["flask_gunicorn"].choose({"max_model_len": "4096"})


@pytest.mark.parametrize("wrong", ["0", "'many'", "'{thread}'", "[4]", "2.5", "true"])
def test_concurrency_is_a_number_or_an_option(wrong: str, tmp_path: Path) -> None:
    options = "[options]\nthreads = ['4', '8']\n"
    assert "'concurrency' is neither" in error_of(
        tmp_path, f"concurrency = {wrong}\n{GOOD}{options}"
    )
    write(tmp_path / "right", f"concurrency = '{{threads}}'\n{GOOD}{options}")
    server = catalog.list_servers(Checkout(tmp_path / "right"))["mine"]
    assert server.requests_at_once("simulated", {}) == 4
    assert server.requests_at_once("simulated", {"threads": "8"}) == 8


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[options]\nport = ['1']", "the option 'port' has the name of a placeholder"),
        ("[options]\nloop = []", "the option 'loop' has no values"),
        ("[upstream]\nhf = 'x'", "'upstream' must name exactly one server for each of the engines"),
        ("[upstream]\nsimulated = '{of}'", "'upstream' has an unknown or malformed placeholder"),
        (
            "[processes.redis]\ncommand = ['redis-server', '{redis_prt}']\nready = 'x:1'",
            "'processes.redis' has an unknown or malformed placeholder ('redis_prt')",
        ),
        ("transports = ['carrier pigeon']", "there is no "),
        ("family = 'router'", "there is no family 'router'; did you mean 'routers'?"),
        (
            "extras = ['fastap']",
            "there is no extra in pyproject.toml called 'fastap'; did you mean 'fastapi'?",
        ),
    ],
)
def test_keys_that_make_no_sense_together_are_named(
    tmp_path: Path, more: str, message: str
) -> None:
    assert message in error_of(tmp_path, GOOD + more)


def test_the_needs_of_the_server_behind_it_are_missing_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine_specs.ENGINES, "vllm", EngineSpec({}, ("no_such_vllm",)))
    gateway = catalog.ServerSpec(
        "gateway",
        "",
        ("python3",),
        ("vllm", "simulated"),
        ("no_such_httpx",),
        {"of": ("fastapi_vllm",)},
        upstream={"vllm": "{of}", "simulated": "{of}"},
    )
    assert gateway.missing("vllm") == ["no_such_httpx", "no_such_vllm"] and gateway.missing(
        "simulated"
    ) == ["no_such_httpx"]
    own = catalog.ServerSpec("own", "", ("python3",), ("vllm",), packages=("vllm==0.1",))
    assert "no_such_vllm" not in own.missing("vllm"), "its own environment will have it"


def test_missing_programs_and_modules_are_reported(tmp_path: Path) -> None:
    write(
        tmp_path,
        GOOD.replace('"simulated"', '"hf", "simulated"')
        + 'requires = ["python3", "json", "no-such-program", "no_such_module",'
        ' "no_such_package.module", "json.decoder"]\n',
    )
    missing = catalog.list_servers(Checkout(tmp_path))["mine"].missing("simulated")
    assert missing == ["no-such-program", "no_such_module", "no_such_package.module"]


def test_the_needs_of_an_engine_are_missing_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engine_specs.ENGINES, "hf", EngineSpec({}, ("no_such_torch",)))
    write(tmp_path, GOOD.replace('"simulated"', '"hf", "simulated"'))
    server = catalog.list_servers(Checkout(tmp_path))["mine"]
    assert server.missing("hf") == ["no_such_torch"] and server.missing("simulated") == []


def test_an_unknown_server_is_named_with_the_nearest() -> None:
    with pytest.raises(
        CatalogError, match=r"there is no server 'flask_unicorn'; did you mean 'flask_gunicorn'\?"
    ):
        catalog.find_server("flask_unicorn")
    with pytest.raises(CatalogError, match=r"there is no server 'zzz'; there are .*flask_gunicorn"):
        catalog.find_server("zzz")


def test_every_server_here_is_valid_and_explains_its_waivers() -> None:
    found = catalog.list_servers()
    assert {"flask_gunicorn", "fastapi_threadpool", "fastapi_vllm"} <= set(found)
    for server in found.values():
        assert server.engines[0] != "simulated", "the first engine is its real one"
        assert server.foreign or "simulated" in server.engines, (
            "each server of ours is tested without a model"
        )
        assert any("{port}" in part for part in server.command) and any(
            "{host}" in part for part in server.command
        )
        assert set(server.engines) <= set(engine_specs.ENGINES)
        readme = (catalog.FOLDER / server.name / "README.md").read_text()
        assert all(check in readme for check in server.waives), (
            "its README explains what it cannot do"
        )
        assert set(server.waives) <= {check.__name__ for check in conformance.CHECKS}


def command_line(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "servers", *arguments],
        cwd=catalog.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_line_lists_servers_and_suggests_a_name() -> None:
    listed = command_line("list")
    assert listed.returncode == 0
    families = re.findall(r"^(\w+): ", listed.stdout, re.MULTILINE)
    assert [family.lower() for family in families] == list(catalog.FAMILIES)
    listed_servers = re.findall(r"^  (\w+)", listed.stdout, re.MULTILINE)
    assert sorted(listed_servers) == list(catalog.list_servers())
    wrong = command_line("flask_unicorn")
    assert (
        wrong.returncode == 1
        and "did you mean 'flask_gunicorn'?" in wrong.stderr
        and "Traceback" not in wrong.stderr
    )


def test_the_catalogue_imports_no_package_but_pydantic() -> None:
    modules = subprocess.run(
        [sys.executable, "-m", "tests.programs.list_modules", "catalogue"],
        cwd=catalog.ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    foreign = (
        {name.split(".")[0] for name in modules.split() if not name.startswith("_sysconfigdata")}
        - set(sys.stdlib_module_names)
        - {"servers", "pydantic", "pydantic_core"}
        - {"annotated_types", "typing_extensions", "typing_inspection"}  # pydantic's own
    )
    assert not foreign
