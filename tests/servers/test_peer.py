"""A load tool that is not ours, vLLM's own `bench serve`, runs unchanged against each server: what
keeps the contract for it keeps it for others. One process for all servers, since importing vLLM
takes longer than the test.
"""

import subprocess
import sys
from contextlib import ExitStack

import pytest

from servers.runtime import catalog, launch

DRIVE = """
import argparse, sys
from vllm.benchmarks.serve import add_cli_args, main
for url in sys.argv[2:]:
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    said = main(parser.parse_args(["--backend", "openai", "--base-url", url, "--model", "serveoff-tiny", "--tokenizer", sys.argv[1],
        "--dataset-name", "random", "--random-input-len", "12", "--random-output-len", "8", "--num-prompts", "6", "--ignore-eos",
        "--max-concurrency", "2", "--disable-tqdm"]))
    assert (said["completed"], said["failed"], said["total_output_tokens"]) == (6, 0, 48), said
    print("peer is content with", url)
"""


@pytest.mark.slow
@pytest.mark.requires("vllm")
def test_vllm_bench_runs_against_every_server(tmp_path):
    # for its tokenizer: the servers run simulated
    weights = launch.resolve_model("tiny", needs_weights=True)
    with ExitStack() as stack:
        urls = [
            stack.enter_context(
                launch.running(
                    server,
                    "simulated",
                    weights,
                    launch.Share(),
                    tmp_path / f"{name}.log",
                    simulated={"step_ms": 2.0},
                )
            ).base_url
            for name, server in catalog.servers().items()
            if "simulated" in server.engines and not server.missing("simulated")
        ]
        peer = subprocess.run(
            [sys.executable, "-c", DRIVE, weights.path, *urls],
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert peer.stdout.count("peer is content with") == len(urls) >= 3, (
            peer.stdout[-2000:] + peer.stderr[-2000:]
        )
