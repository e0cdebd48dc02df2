"""The engine OpenVINO in its server's environment, with the tiny model and little memory."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from servers.contract import oracle
from servers.runtime import build_cache, catalog, models
from tests.helpers.installed import require_server
from tests.helpers.python_program import ROOT, command_of

STOPPING = "ContractError('the server is stopping: send the request to another')"


@pytest.mark.slow
def test_requests_wait_for_memory_and_fail_alone(tiny: Path) -> None:
    server = catalog.list_servers()["fastapi_openvino"]
    require_server(server, "openvino")
    python = build_cache.package_environment(server.packages) / "bin" / "python"
    converted = models.convert_model(
        "openvino", models.Model("m", str(tiny), False), {"weights": "f16"}, str(python)
    )
    _, *arguments = command_of("openvino_engine", str(tiny))
    done = subprocess.run(
        [str(python), *arguments],
        cwd=ROOT,
        env=os.environ | {"SERVEOFF_CONVERTED": converted},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    baba = oracle.continuation("baba", 8)
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "exact": True,
        "waits_in_turn": True,
        "too_long": "context_length_exceeded",
        "beside_a_refused_one": [baba, "ValueError('refused')", baba],
        "seed_repeats": True,
        "without_seed": 3,
        "after_close": [STOPPING] * 3,
    }
