"""A case ends with a reason when any process hangs in any stage. SIGSTOP simulates that: the
process refuses nothing, closes nothing and sends nothing.
"""

import re
from pathlib import Path

import psutil
import pytest

from loadtests import schema
from loadtests.progress.watch import STAGES
from servers.runtime import limits
from tests.helpers.campaign_process import Bench, is_complete, runs, said_of, wait_for

SHORT = {"GRACE_S": 1, "SILENCE_S": 2, "START_S": 5, "END_S": 5, "QUIET_S": 1, "SCRAPE_S": 1}
SCENARIO = """
[still]
summary = "closed loop"
arrivals = "closed"
users = 3
endpoint = "chat"
prompt_tokens = [4, 16]
output_tokens = [4, 8]
warmup_s = 0.5
warmup_max_s = 0.5
duration_s = 2.0
drain_s = 2
timeout_s = 2
"""
SERVER, LOAD, TELEMETRY = "uvicorn", "locust", "loadtests.telemetry"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "stage", "status"),
    [
        (SERVER, "launch", "failed: launch: fastapi_threadpool was not ready after 4 s"),
        (SERVER, "verify", "failed: verify: .*no complete response within 2 s"),
        (SERVER, "load", "failed: verify again: .*no complete response within 2 s"),
        (SERVER, "verify again", "failed: verify again: .*no complete response within 2 s"),
        (SERVER, "stop", "ok"),
        (LOAD, "load", "failed: load: the load generator did not end in time; it was stopped"),
        (TELEMETRY, "load", "ok"),
    ],
)
def test_a_case_ends_when_a_process_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, stage: str, status: str
) -> None:
    for name, seconds in SHORT.items():
        assert hasattr(limits, name)
        monkeypatch.setenv(f"SERVEOFF_{name}", str(seconds))
    bench = Bench(tmp_path)
    (tmp_path / "mine.toml").write_text(SCENARIO)
    campaign = bench.on_terminal(
        "--servers",
        "fastapi_threadpool",
        "--engines",
        "simulated",
        "--simulated",
        "prefill_ms=20,step_ms=5",
        "--scenarios",
        "still",
        "--report",
        "none",
        "--ready-timeout",
        "4",
        "--out",
        "out",
    )

    def victims() -> list[psutil.Process]:
        words = {each: {Path(word).name for word in said_of(each)} for each in bench.processes()}
        return [
            each
            for each, command in words.items()
            if program in command and "servers.runtime.supervise" not in command
        ]

    wait_for(lambda: STAGES[stage] in campaign.text, stage)
    for victim in wait_for(victims, program):
        victim.suspend()
    code = campaign.wait()
    [(folder, run)] = runs(tmp_path / "out")
    assert re.match(status, run["status"], re.DOTALL), run["status"]
    assert is_complete(code, campaign.text) if status == "ok" else code == 1, campaign.text
    assert schema.read_json(folder / "run.json")["stages"][-1]["end_s"] is not None
    assert bench.left_over() == []


@pytest.mark.parametrize(
    ("name", "what", "bad"),
    [
        ("GRACE_S", "number of seconds", ("soon", "0", "-1", "inf", "nan", "")),
        ("MAX_IN_FLIGHT", "whole number", ("many", "0", "1.5")),
    ],
)
def test_a_malformed_limit_is_refused(
    name: str, what: str, bad: tuple[str, ...], tmp_path: Path
) -> None:
    bench = Bench(tmp_path)
    for value in bad:
        bench.environment[f"SERVEOFF_{name}"] = value
        done = bench.run("--help")
        sentence = f"error: SERVEOFF_{name} is {value!r}: set it to a {what} above 0, or unset it\n"
        assert (done.returncode, done.stderr) == (2, sentence)
