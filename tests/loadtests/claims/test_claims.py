"""The runner of the claims stops its campaign when it is stopped itself.
tests/analysis/studies/test_claims.py checks its campaigns.
"""

import os
import signal
import subprocess
import sys

import pytest

from tests.helpers.campaign_process import PATIENCE_S, ROOT, Bench, wait_for


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_no_process(bench: Bench, number: signal.Signals) -> None:
    out = bench.folder / f"claims-{number}"
    command = [sys.executable, "-m", "loadtests.claims", "blocking", "--out", str(out)]
    # In a session of its own, whose processes all get SIGINT, as from a terminal.
    claims = subprocess.Popen(
        command,
        cwd=ROOT,
        env=bench.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: (out / "blocking" / "campaign.json").exists(), "a campaign")
    if number == signal.SIGINT:
        os.killpg(claims.pid, number)
    else:
        claims.send_signal(number)
    assert claims.wait(PATIENCE_S) == 130
    assert bench.left_over() == []
