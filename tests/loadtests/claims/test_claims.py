"""The claims' runner ends its campaign with itself. What its campaigns are is checked in
tests/analysis/studies/test_claims.py.
"""

import os
import signal
import subprocess
import sys

import pytest

from tests.helpers.campaign_process import PATIENCE_S, ROOT, Bench, wait_for


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_it_is_ended(bench: Bench, number: signal.Signals) -> None:
    out = bench.folder / f"claims-{number}"
    command = [sys.executable, "-m", "loadtests.claims", "blocking", "--out", str(out)]
    # A session of its own, so that SIGINT can be sent to all of it, as a terminal does.
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
