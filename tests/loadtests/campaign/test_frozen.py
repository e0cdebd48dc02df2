"""Whatever stands still, in whatever stage: a case ends, and says why. (SIGSTOP: nothing is
refused, closed or said.)
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
    ("who", "stage", "says"),
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
def test_a_case_ends_whatever_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str, stage: str, says: str
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
            for each, said in words.items()
            if who in said and "servers.runtime.supervise" not in said
        ]

    wait_for(lambda: STAGES[stage] in campaign.text, stage)
    for victim in wait_for(victims, who):
        victim.suspend()
    code = campaign.wait()
    [(folder, run)] = runs(tmp_path / "out")
    assert re.match(says, run["status"], re.DOTALL), run["status"]
    assert is_complete(code, campaign.text) if says == "ok" else code == 1, campaign.text
    assert schema.read_json(folder / "run.json")["stages"][-1]["end_s"] is not None
    assert bench.left_over() == []


@pytest.mark.parametrize(
    ("name", "what", "none"),
    [
        ("GRACE_S", "number of seconds", ("soon", "0", "-1", "inf", "nan", "")),
        ("MAX_IN_FLIGHT", "whole number", ("many", "0", "1.5")),
    ],
)
def test_a_bound_that_is_none_is_refused(
    name: str, what: str, none: tuple[str, ...], tmp_path: Path
) -> None:
    bench = Bench(tmp_path)
    for said in none:
        bench.environment[f"SERVEOFF_{name}"] = said
        done = bench.run("--help")
        sentence = f"error: SERVEOFF_{name} is {said!r}: set it to a {what} above 0, or unset it\n"
        assert (done.returncode, done.stderr) == (2, sentence)
