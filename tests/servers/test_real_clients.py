"""Current client libraries with their defaults, plain and streamed, against our servers.

All except OpenAI's have their own environments: their newest versions need packages that conflict
with ours and with each other's (setuptools, openai 2 and 3, importlib-metadata). uv makes the
environments before their first use and keeps them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from servers.contract import oracle
from servers.engines.simulated import OPEN_TOKENS
from servers.runtime import build_cache
from servers.runtime.launch import RunningServer
from tests.helpers.installed import ROOT
from tests.helpers.started_server import MODEL, start

pytestmark = pytest.mark.slow

# One per Python framework or engine, and the only server with its own parser of requests.
NAMES = ("flask_gunicorn", "fastapi_threadpool", "fastapi_vllm", "node_gateway")
PACKAGES = {
    "langchain": "langchain-openai==1.7.4",
    "litellm": "litellm==1.110.2",
    "llama_index": "llama-index-llms-openai-like==0.8.1",
}
# Otherwise LiteLLM downloads prices from GitHub.
ENVIRONMENT = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
PROMPT = "bebe baba"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RunningServer]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                start(name, "simulated", tmp_path_factory.mktemp(name), prefill_ms=0, step_ms=0.2)
            )
            for name in NAMES
        ]


@pytest.mark.parametrize("library", ["openai", *PACKAGES])
def test_our_servers_accept_its_defaults(library: str, servers: list[RunningServer]) -> None:
    python = sys.executable
    if library in PACKAGES:
        environment = build_cache.package_environment([PACKAGES[library]])
        python = str(environment / "bin" / "python")
    program = str(ROOT / "tests" / "programs" / "ask_with_client.py")
    asked = subprocess.run(
        [python, program, library, MODEL, PROMPT, *(server.base_url for server in servers)],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert asked.returncode == 0, asked.stderr
    for server, line in zip(servers, asked.stdout.splitlines(), strict=True):
        for what, text in json.loads(line).items():
            tokens = len(text.split())
            assert tokens and text == oracle.continuation("baba", tokens), (server.server, what)
            if "chat" in what:
                assert tokens == OPEN_TOKENS, (server.server, what)
