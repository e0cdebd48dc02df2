"""Another load tool, vLLM's own `bench serve`, runs unchanged against each server, as any tool
should. One process serves all servers, because importing vLLM takes longer than the test.
"""

from contextlib import ExitStack

import pytest

from servers.runtime import catalog, launch, models
from tests.helpers.python_program import run_program


@pytest.mark.slow
@pytest.mark.requires("vllm")
def test_vllm_bench_runs_against_every_server(tmp_path):
    # for the tokenizer: the servers run simulated
    weights = models.resolve_model("tiny", needs_weights=True)
    with ExitStack() as stack:
        urls = [
            stack.enter_context(
                launch.run_server(
                    server,
                    "simulated",
                    weights,
                    launch.CoreShare(),
                    tmp_path / f"{name}.log",
                    simulated={"step_ms": 2.0},
                )
            ).base_url
            for name, server in catalog.list_servers().items()
            if "simulated" in server.engines and not server.missing("simulated")
        ]
        peer = run_program("bench_with_vllm", weights.path, *urls, timeout_s=200)
        assert peer.stdout.count("peer is content with") == len(urls) >= 3, (
            peer.stdout[-2000:] + peer.stderr[-2000:]
        )
