"""The house: who may import whom. The rules are data; a violation is named with its file and
line.
"""

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

from servers import catalog

ROOT = Path(__file__).parents[1]
HOUSE = ("analysis", "loadtests", "servers", "tests")
WEB = (
    "flask",
    "werkzeug",
    "gunicorn",
    "fastapi",
    "starlette",
    "uvicorn",
    "hypercorn",
    "django",
    "channels",
    "daphne",
    "tornado",
    "sanic",
    "granian",
    "litserve",
    "aiohttp",
    "flup",
    "gevent",
    "locust",
)
STANDARD = tuple(sys.stdlib_module_names)
ANYTHING = ("*",)
WITH_PYTHON = [name for name in catalog.servers() if any((catalog.FOLDER / name).glob("*.py"))]


class Rule(NamedTuple):
    """In `files`, but not in `exempt`, an import of anything in `concerned` must be one of
    `allowed` (names with all below them).
    """

    files: tuple[str, ...]
    exempt: tuple[str, ...]
    concerned: tuple[str, ...]
    allowed: tuple[str, ...]
    why: str


RULES = [
    Rule(
        ("analysis/*",),
        (),
        HOUSE,
        ("analysis", "loadtests.records"),
        "analysis knows results, and nothing of how they came to be",
    ),
    Rule(
        ("analysis/*",),
        ("analysis/load.py",),
        ("loadtests",),
        (),
        "only analysis/load.py reads records",
    ),
    Rule(
        ("loadtests/*",),
        (),
        HOUSE,
        (
            "loadtests",
            "servers.catalog",
            "servers.launch",
            "servers.contract",
            "servers.probe",
            "servers.rule",
            "servers.verify",
            "servers.checkouts",
            "servers.bounds",
        ),
        "the driver sees servers from outside",
    ),
    Rule(("servers/*",), (), HOUSE, ("servers",), "servers know nothing above them"),
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
        ("loadtests/locustfile.py",),
        ("locust",),
        (),
        "importing locust patches the whole process",
    ),
    Rule(
        ("*",),
        ("loadtests/gpus.py",),
        ("pynvml",),
        (),
        "one place knows what NVML may do without a GPU",
    ),
    Rule(
        ("servers/*",), ("servers/supervise.py",), ("psutil",), (), "one place looks at processes"
    ),
    Rule(
        (
            "servers/contract.py",
            "servers/catalog.py",
            "servers/rule.py",
            "servers/probe.py",
            "servers/verify.py",
            "servers/engines/*",
        ),
        (),
        WEB,
        (),
        "engines and the contract are the same for every web framework",
    ),
    Rule(
        (
            "servers/catalog.py",
            "servers/rule.py",
            "servers/bounds.py",
            "loadtests/records.py",
            "loadtests/steady.py",
        ),
        (),
        ANYTHING,
        STANDARD,
        "standard library only: importable everywhere, at once",
    ),
    Rule(
        ("loadtests/reference.py", "loadtests/reference_answers.py"),
        (),
        ANYTHING,
        (*STANDARD, "loadtests.reference_answers", "servers.rule"),
        "the ground truth depends on nothing that could take its time",
    ),
    Rule(
        ("servers/probe.py", "servers/verify.py"),
        (),
        ANYTHING,
        (*STANDARD, "servers", "wsproto"),
        "what is checked is the wire: no client library between; wsproto frames bytes and does"
        " no I/O",
    ),
]


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it stands; `from a import b` counts as a.b."""
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


def test_every_import_keeps_the_rules() -> None:
    files = [
        file
        for folder in ("servers", "loadtests", "analysis")
        for file in sorted((ROOT / folder).rglob("*.py"))
    ]
    assert len(files) > 20, "the rules must see the house"
    broken = [
        text
        for file in files
        for text in violations(file.relative_to(ROOT).as_posix(), file.read_text())
    ]
    assert not broken, "\n" + "\n".join(broken)


def test_every_rule_is_about_files_that_exist() -> None:
    """A file that is renamed must not slip out of its rule."""
    names = [
        file.relative_to(ROOT).as_posix()
        for folder in ("servers", "loadtests", "analysis")
        for file in (ROOT / folder).rglob("*.py")
    ]
    for rule in RULES:
        for pattern in (*rule.files, *rule.exempt):
            assert any(fnmatch(name, pattern) for name in names), f"no file is meant by {pattern!r}"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("analysis/report.py", "from loadtests import records"),
        ("analysis/load.py", "from loadtests import plan"),
        ("analysis/metrics.py", "import servers.rule"),
        ("loadtests/run.py", "from servers import metrics"),
        ("loadtests/run.py", "from servers.engines.simulated import TimeModel"),
        ("loadtests/plan.py", "import locust"),
        ("loadtests/telemetry.py", "from pynvml import nvmlInit"),
        ("servers/launch.py", "import loadtests.machine"),
        ("servers/launch.py", "from ..loadtests import machine"),
        ("servers/launch.py", "from . import flask_gunicorn"),
        ("servers/launch.py", "import psutil"),
        (
            "servers/launch.py",
            "import importlib; importlib.import_module('servers.fastapi_vllm.app')",
        ),
        ("servers/contract.py", "from starlette.responses import Response"),
        ("servers/engines/hf.py", "import uvicorn"),
        ("servers/engines/vllm.py", "def late():\n    import flask"),
        ("servers/catalog.py", "import pydantic"),
        ("servers/verify.py", "import httpx"),
        ("servers/probe.py", "import httpx"),
        ("loadtests/records.py", "import pyarrow.parquet"),
        ("loadtests/reference.py", "from servers import contract"),
        ("loadtests/reference_answers.py", "from loadtests import sse"),
    ],
)
def test_a_violation_is_caught_and_located(path: str, line: str) -> None:
    source = "import os\n\n" + line + "\n"
    found = violations(path, source)
    assert found and found[0].startswith(f"{path}:{3 + line.count(chr(10))}: imports "), found


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("analysis/load.py", "from loadtests import records"),
        ("analysis/report.py", "from analysis import load"),
        ("loadtests/run.py", "from servers import catalog, launch"),
        ("loadtests/locustfile.py", "from locust import User"),
        ("servers/flask_gunicorn/app.py", "from servers.flask_gunicorn import other"),
        ("servers/verify.py", "from servers import contract"),
        ("servers/launch.py", "from . import rule"),
        ("loadtests/plan.py", "import locustlike"),
    ],
)
def test_what_is_allowed_is_not_reported(path: str, line: str) -> None:
    assert violations(path, line) == []
