"""A neighbour on the server's cores makes a case invalid; the same server alone is valid."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from analysis import dataset, summary
from analysis.checks import DISTURBING
from loadtests.telemetry import cores
from tests.helpers.campaign_process import Bench, is_complete

SHARE = cores.share_cores()
SPIN = "while True: pass"


@contextmanager
def neighbours() -> Iterator[None]:
    """Programs that spin, one on each of the server's cores, in sessions of their own."""
    spinning = []
    try:
        for core in SHARE["server_cores"]:
            spinning.append(subprocess.Popen([sys.executable, "-c", SPIN], start_new_session=True))
            psutil.Process(spinning[-1].pid).cpu_affinity([core])
        yield
    finally:
        for each in spinning:
            each.kill()
            each.wait()


def measure(bench: Bench, out: str) -> tuple[bool, str, float]:
    """(valid, the reason if not, tokens/s) of a server whose engine computes all the time."""
    command = ("--servers", "fastapi_threadpool", "--engines", "hf", "--model", "tiny")
    done = bench.run(
        *command, "--scenarios", "quick", "--duration", "4", "--report", "none", "--out", out
    )
    assert is_complete(done.returncode, done.stderr), done.stdout + done.stderr
    table = summary.summarise(dataset.read_campaign(bench.folder / out), frames=False).table
    [(_, row)] = table.iterrows()
    return bool(row["valid"]), str(row["why"]), float(row["output_tokens_per_s"])


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(SHARE["shared"], reason="server and load generator have the same core")
def test_a_neighbour_on_the_server_s_cores_makes_a_case_invalid(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with neighbours():
        valid, why, disturbed = measure(bench, "beside")
    assert not valid and "other processes: the server lost up to " in why, why
    for attempt in range(2):
        valid, why, alone = measure(bench, f"alone-{attempt}")
        if valid:
            break
    if not valid and any(f"{name}: " in why for name in DISTURBING):
        pytest.skip(f"other programs keep this machine busy: {why}")
    assert valid, why
    assert disturbed < 0.8 * alone
    assert bench.left_over() == []
