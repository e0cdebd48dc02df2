"""Every server that is not ours, started for real: with the simulated engine, and with its real
engine on the tiny model.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from servers.contract.conformance import select_checks, verify_server
from servers.profile.profiler import find_dialect
from servers.runtime.launch import RunningServer
from tests.helpers.started_server import MODEL, OURS, SERVERS, STARTS, started
from tests.servers.profile.test_profile_command import FIELDS, call_profiler, check_fields


@pytest.fixture(
    scope="module", params=[start for name in SERVERS if name not in OURS for start in STARTS[name]]
)
def foreign(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with started(*request.param, tmp_path_factory) as running:
        yield running


def test_it_passes_the_checks_for_foreign_servers(foreign: RunningServer) -> None:
    server = SERVERS[foreign.server]
    checks = verify_server(
        foreign.base_url,
        model=MODEL,
        checks=select_checks(True, server.waives, server.transports),
        adapt=find_dialect(foreign.base_url, MODEL).adapt,
    )
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]


PROFILES: dict[str, dict[str, Any]] = {
    "fastchat": {"usage": "plain"},
    "llama_cpp": {"usage": "stream", "metrics": "llamacpp", "tokens_per_word": 1.0},
    "llama_cpp_python": {"usage": "plain", "metrics": None, "tokens_per_word": 1.0},
    "transformers_serve": {
        "usage": "stream",
        "tokens_per_word": 1.0,
        "fields": dict.fromkeys(FIELDS, "accepted") | {"ignore_eos": "refused"},
    },
    "vllm_openai": {
        "usage": "continuous",
        "metrics": "vllm",
        "tokens_per_word": 1.0,
        "fields": dict.fromkeys(FIELDS, "accepted"),
    },
}


def test_its_profile(foreign: RunningServer) -> None:
    if foreign.server not in PROFILES:
        pytest.skip("its profile is that of the servers behind it")
    expected = {
        "model": MODEL,
        "models": [MODEL],
        "endpoints": ["chat", "completions"],
        "reasoning": None,
        "repeats_alone": True,
        "repeats_under_load": True,
        "early_chunks": 1,
    }
    check_fields(call_profiler(foreign.base_url), expected | PROFILES[foreign.server])
