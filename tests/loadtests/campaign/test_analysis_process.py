"""The process of `analysis` that stays during a campaign: it ends in every case, and only waits
between two requests.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from loadtests.campaign import analysis_process
from loadtests.campaign.analysis_process import AnalysisFailed, Session
from loadtests.errors import UsageError
from tests.helpers.campaign_process import wait_for
from tests.helpers.python_program import ROOT

OWNER = """
import sys
from loadtests.campaign.analysis_process import SESSION
SESSION.request("slo", "ttft_p99=1s")
print(SESSION.process.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    session = Session()
    yield session
    session.end()


def test_one_process_responds_to_all_requests_and_sleeps_between_them(session: Session) -> None:
    with pytest.raises(AnalysisFailed, match="cannot read the SLO 'fast'"):
        session.request("slo", "fast")
    assert session.process
    process = psutil.Process(session.process.pid)
    wait_for(lambda: process.status() == psutil.STATUS_SLEEPING, "its sleep")
    switches, cpu = process.num_ctx_switches(), process.cpu_times()
    time.sleep(0.5)
    assert (process.num_ctx_switches(), process.cpu_times()) == (switches, cpu)
    assert session.request("slo", "ttft_p99=1s") is None
    assert session.process.pid == process.pid


@pytest.mark.parametrize("how", ["it was killed", "there is no result in time"])
def test_a_process_that_failed_is_replaced(session: Session, how: str) -> None:
    session.request("slo", "ttft_p99=1s")
    assert session.process
    process = psutil.Process(session.process.pid)
    if how == "it was killed":
        process.kill()
        wait_for(lambda: session.process and session.process.poll() is not None, "its end")
    else:
        process.suspend()
        with pytest.raises(AnalysisFailed, match=r"no result after 0\.1 s"):
            session.request("slo", "ttft_p99=1s", within_s=0.1)
        assert not process.is_running()
    assert session.request("slo", "ttft_p99=1s") is None


@pytest.mark.parametrize("how", ["the end", "Ctrl-C", "kill -9"])
def test_it_ends_with_its_owner(how: str) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert owner.stdout
    process = psutil.Process(int(owner.stdout.readline()))
    if how != "the end":
        owner.send_signal(signal.SIGINT if how == "Ctrl-C" else signal.SIGKILL)
    owner.communicate()
    if how == "kill -9":
        wait_for(lambda: not process.is_running(), "its end")
    assert not process.is_running()


def test_a_failure_is_one_sentence(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(analysis_process, "SESSION", session)
    nowhere = tmp_path / "nowhere"
    assert analysis_process.make_row(nowhere, 1) is None
    assert capfd.readouterr() == ("", "")
    assert analysis_process.check_validity(nowhere) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert str(nowhere) in line
    with pytest.raises(UsageError, match=f"the next loads of {nowhere} could not be determined: "):
        analysis_process.find_next_loads(nowhere)
