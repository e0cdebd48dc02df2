"""Which module may import which. The rules are data; a violation names its file and line."""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

from servers.runtime import catalog

ROOT = Path(__file__).parents[1]
HOUSE = ("analysis", "loadtests", "servers", "tests", "docs", "generator")
FOLDERS = ("servers", "loadtests", "analysis", "docs")  # docs/generate.py imports `generator`
# What the servers are made of, and what is below them.
WEB = (
    *sorted({name for server in catalog.list_servers().values() for name in server.requires}),
    "werkzeug",
    "locust",
)
STANDARD = tuple(sys.stdlib_module_names)
ANYTHING = ("*",)
WITH_PYTHON = [name for name in catalog.list_servers() if any((catalog.FOLDER / name).glob("*.py"))]


class Rule(NamedTuple):
    """In `files` without `exempt`, an import of anything in `concerned` must be in `allowed`. A
    name stands for itself and everything below it.
    """

    files: tuple[str, ...]
    exempt: tuple[str, ...]
    concerned: tuple[str, ...]
    allowed: tuple[str, ...]
    why: str


# The rooms (folders, and modules beside them) of `loadtests` and `analysis`. A room may import
# itself and those before it.
LOADTESTS = """
    errors schema workload client telemetry config_file generator progress accuracy campaign
""".split()  # noqa: SIM905 - one name per line is long
COMMANDS = """
    option_types target_options options cli extras gate worker instrument claims
    gpu_selftest __main__
""".split()  # noqa: SIM905 - one name per line is long
ANALYSIS = """
    defaults stats dataset slo hardware case metrics checks formatting summary conclusions
    templating attribution plots capacity gate report studies
""".split()  # noqa: SIM905 - one name per line is long
APART = {  # rooms that need less than the order above allows
    "loadtests.schema": [],
    "loadtests.workload": ["errors", "schema"],
    "loadtests.client": ["schema"],
    "loadtests.telemetry": ["schema", "client"],
    "loadtests.progress": ["schema", "workload", "generator"],
    "loadtests.config_file": ["errors", "schema", "workload", "telemetry"],
    # analysis_process does not depend on campaigns
    "loadtests.accuracy": [*LOADTESTS[: LOADTESTS.index("accuracy")], "campaign.analysis_process"],
    "loadtests.claims": ["campaign.analysis_process"],
}


def rooms(package: str, order: list[str], commands: list[str]) -> Iterator["Rule"]:
    """One rule per room: it may import the rooms before it in `order`; commands may import all."""
    for room in [*order, *commands]:
        before = order if room in commands else order[: order.index(room)]
        before = APART.get(f"{package}.{room}", before)
        allowed = tuple(
            f"{package}.{each}" for each in [*before, room, *commands * (room in commands)]
        )
        yield Rule(
            (
                f"{package}/{room}/*"
                if (ROOT / package / room).is_dir()
                else f"{package}/{room}.py",
            ),
            (),
            (package,),
            (*allowed, "loadtests.schema"),
            f"{room} may import only {', '.join(before) or 'itself'}",
        )


RULES = [
    *rooms("loadtests", LOADTESTS, COMMANDS),
    *rooms("analysis", ANALYSIS, ["session", "notebooks", "__main__"]),
    Rule(
        ("analysis/*",),
        (),
        HOUSE,
        ("analysis", "loadtests.schema"),
        "analysis depends on results, not on how they were measured",
    ),
    Rule(
        ("loadtests/*",),
        (),
        HOUSE,
        (
            "loadtests",
            "servers.contract.chunks",
            "servers.contract.oracle",
            "servers.contract.conformance",
            "servers.contract.conformance_checks",
            "servers.contract.conformance_client",
            "servers.contract.sse",
            "servers.contract.text_checks",
            "servers.contract.token_counts",
            "servers.profile",
            "servers.runtime",
        ),
        "loadtests sees servers from outside",
    ),
    Rule(("servers/*",), (), HOUSE, ("servers",), "servers depend on nothing above them"),
    Rule(
        ("docs/*",),
        (),
        HOUSE,
        (
            "generator",
            "servers.runtime.catalog",
            "servers.runtime.engine_specs",
            "servers.__main__",
            "loadtests",
            "analysis",
        ),
        "the pages of docs/ are made from the catalogue, the commands, the schema and the metrics",
    ),
    Rule(
        ("servers/contract/*",),
        (),
        ("servers",),
        ("servers.contract", "servers.runtime.limits", "servers.runtime.schedstat"),
        "the contract is below engines, frameworks and the launcher",
    ),
    Rule(
        ("servers/profile/*",),
        (),
        ("servers",),
        ("servers.profile", "servers.contract", "servers.runtime.limits"),
        "a profile sees every endpoint from outside",
    ),
    Rule(
        ("servers/engines/*",),
        (),
        ("servers",),
        (
            "servers.contract",
            "servers.engines",
            "servers.runtime.catalog",
            "servers.runtime.engine_specs",
            "servers.runtime.limits",
            "servers.runtime.build_cache",
            "servers.runtime.cuda_devices",
        ),
        "an engine depends on no framework and no launcher",
    ),
    *(
        Rule(
            ("*",),
            (f"servers/{name}/*",),
            (f"servers.{name}",),
            (),
            "a server is started, never imported",
        )
        for name in WITH_PYTHON
    ),
    Rule(
        ("*",),
        ("loadtests/generator/locustfile.py",),
        ("locust",),
        (),
        "importing locust patches the whole process",
    ),
    Rule(
        ("*",),
        ("loadtests/telemetry/gpu.py",),
        ("pynvml",),
        (),
        "one module handles NVML without a GPU",
    ),
    Rule(
        ("servers/*",),
        ("servers/runtime/supervise.py",),
        ("psutil",),
        (),
        "one module looks at processes",
    ),
    Rule(
        ("servers/contract/*", "servers/runtime/*", "servers/engines/*"),
        ("servers/contract/metrics.py",),
        WEB,
        (),
        "engines and the contract are the same for every web framework",
    ),
    Rule(
        ("servers/runtime/catalog.py",),
        (),
        ANYTHING,
        (*STANDARD, "pydantic", "servers.runtime.engine_specs"),
        "every command imports the catalogue at its start",
    ),
    Rule(
        ("servers/runtime/engine_specs.py",),
        (),
        ANYTHING,
        STANDARD,
        "every command imports the catalogue at its start",
    ),
    Rule(
        (
            "servers/contract/oracle.py",
            "servers/runtime/limits.py",
            "loadtests/schema/*",
            "loadtests/generator/steady_state.py",
        ),
        (),
        ANYTHING,
        (*STANDARD, "servers.runtime.limits", "loadtests.schema"),
        "standard library only: quick to import everywhere",
    ),
    Rule(
        ("servers/runtime/cuda_devices.py",),
        (),
        ANYTHING,
        (*STANDARD, "servers.runtime.limits", "torch"),
        "it also runs in environments of other servers, which have torch",
    ),
    Rule(
        ("loadtests/accuracy/ground_truth_*.py",),
        (),
        ANYTHING,
        (
            *STANDARD,
            "loadtests.accuracy.ground_truth_http",
            "loadtests.accuracy.ground_truth_plan",
            "servers.contract.oracle",
        ),
        "the ground truth depends on nothing that could delay it",
    ),
    Rule(
        ("servers/contract/conformance*.py",),
        (),
        ANYTHING,
        (
            *STANDARD,
            "servers.contract",
            "servers.runtime.limits",
            "servers.runtime.schedstat",
            "wsproto",
        ),
        "conformance is checked on the wire, without a client library; wsproto frames bytes and"
        " does no I/O",
    ),
]
MOST_MODULES = 14


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import at any depth; `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
        ):
            yield node.lineno, str(node.args[0].value)


def within(name: str, modules: tuple[str, ...]) -> bool:
    return modules == ANYTHING or any(
        name == module or name.startswith(module + ".") for module in modules
    )


def violations(path: str, source: str) -> list[str]:
    package = ".".join(Path(path).parent.parts)
    return [
        f"{path}:{line}: imports {name}: {rule.why}"
        for line, name in sorted(imports(source, package))
        for rule in RULES
        if any(fnmatch(path, pattern) for pattern in rule.files)
        and not any(fnmatch(path, pattern) for pattern in rule.exempt)
        and within(name, rule.concerned)
        and not within(name, rule.allowed)
    ]


def python_files() -> list[Path]:
    return [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]


def test_every_import_keeps_the_rules() -> None:
    assert len(python_files()) > 20, "the rules must see the house"
    broken = [
        text
        for file in python_files()
        for text in violations(file.relative_to(ROOT).as_posix(), file.read_text())
    ]
    assert not broken, "\n" + "\n".join(broken)


def test_every_rule_is_about_files_that_exist() -> None:
    """A file that is renamed must not slip out of its rule."""
    names = [file.relative_to(ROOT).as_posix() for file in python_files()]
    for rule in RULES:
        for pattern in (*rule.files, *rule.exempt):
            assert any(fnmatch(name, pattern) for name in names), f"no file matches {pattern!r}"


def test_no_folder_is_too_large() -> None:
    """A folder of more modules than this no longer reads at a glance."""
    sizes = Counter(file.parent.relative_to(ROOT).as_posix() for file in python_files())
    assert not {folder: count for folder, count in sizes.items() if count > MOST_MODULES}


def test_every_package_has_a_docstring() -> None:
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("__init__.py"):
            assert ast.get_docstring(ast.parse(file.read_text())), f"{file}: has no docstring"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("analysis/report/writer.py", "from loadtests.campaign import plan"),
        ("analysis/dataset.py", "from loadtests.workload import arrivals"),
        ("analysis/metrics/__init__.py", "import servers.contract.oracle"),
        ("analysis/metrics/__init__.py", "from analysis import summary"),
        ("analysis/plots/figures.py", "from analysis.report import writer"),
        ("loadtests/client/http.py", "from loadtests.generator import recorder"),
        ("loadtests/workload/prompts.py", "from loadtests.client import http"),
        ("loadtests/generator/recorder.py", "from loadtests.campaign import case"),
        ("servers/engines/hf.py", "from servers.runtime import launch"),
        ("servers/contract/api.py", "from servers import engines"),
        ("loadtests/campaign/case.py", "from servers.contract import metrics"),
        ("loadtests/campaign/case.py", "from servers.engines.simulated import TimeModel"),
        ("loadtests/campaign/plan.py", "import locust"),
        ("loadtests/telemetry/processes.py", "from pynvml import nvmlInit"),
        ("servers/runtime/launch.py", "import loadtests.telemetry"),
        ("servers/runtime/launch.py", "from ...loadtests import telemetry"),
        ("servers/runtime/launch.py", "from .. import flask_gunicorn"),
        ("servers/runtime/launch.py", "import psutil"),
        (
            "servers/runtime/launch.py",
            "import importlib; importlib.import_module('servers.fastapi_vllm.app')",
        ),
        ("servers/contract/api.py", "from starlette.responses import Response"),
        ("servers/engines/hf.py", "import uvicorn"),
        ("servers/engines/vllm.py", "def late():\n    import flask"),
        ("servers/runtime/catalog.py", "import prometheus_client"),
        ("servers/contract/conformance.py", "import httpx"),
        ("servers/contract/conformance_client.py", "import httpx"),
        ("loadtests/schema/*", "import pyarrow.parquet"),
        ("loadtests/accuracy/ground_truth_server.py", "from servers.contract import api"),
        ("loadtests/accuracy/ground_truth_http.py", "from loadtests.client import http"),
        ("docs/generator/servers.py", "from servers.engines import simulated"),
    ],
)
def test_a_violation_is_caught_and_located(path: str, line: str) -> None:
    source = "import os\n\n" + line + "\n"
    found = violations(path, source)
    assert found and found[0].startswith(f"{path}:{3 + line.count(chr(10))}: imports "), found


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("analysis/dataset.py", "from loadtests import schema"),
        ("analysis/report/writer.py", "from analysis import dataset"),
        ("loadtests/campaign/case.py", "from servers.runtime import catalog, launch"),
        ("loadtests/generator/locustfile.py", "from locust import User"),
        ("servers/flask_gunicorn/app.py", "from servers.flask_gunicorn import other"),
        ("servers/contract/conformance.py", "from servers.contract import api"),
        ("servers/runtime/launch.py", "from ..contract import oracle"),
        ("loadtests/campaign/plan.py", "import locustlike"),
    ],
)
def test_an_allowed_import_is_not_reported(path: str, line: str) -> None:
    assert violations(path, line) == []
