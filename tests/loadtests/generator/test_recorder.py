"""The recorder and the users of `locustfile.py`. Each case has its own process, because
importing Locust patches it.
"""

import json
import sys
from pathlib import Path

import pytest

from tests.helpers.python_program import output_of
from tests.helpers.recording_server import task_of
from tests.helpers.stream_readers import READERS

SCENARIO = {
    "arrivals": "closed",
    "endpoint": "completions",
    "prompt_tokens": [4, 4],
    "output_tokens": [64, 64],
    "warmup_s": 0,
    "timeout_s": 30,
}


CASES = (
    "rows at the end",
    "stood still",
    "stopped",
    "Connection: close",
    "sent ahead",
    "wrong heads",
    "late",
)


@pytest.fixture(scope="module", params=READERS)
def reader(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def outcomes(reader: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one folder for each case."""
    folder = tmp_path_factory.mktemp(reader)
    task = task_of("http://127.0.0.1:1", SCENARIO, seed="1", users=1, duration_s=60)
    load = json.dumps(task.to_json())
    output_of("drive_load_worker", str(folder), *CASES, SERVEOFF_LOAD=load, SERVEOFF_STREAMS=reader)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_in_a_process_of_its_own(outcomes: Path, case: str, reader: str) -> None:
    if (case, reader) == ("stood still", "c"):
        pytest.skip("the native reader does not stall with the loop")
    assert (outcomes / case / "output").read_text() == "fine\n"
    if case == "rows at the end":
        assert len((outcomes / case / "requests.jsonl").read_text().splitlines()) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the wait for a core")
def test_a_load_generator_s_threads_do_not_starve_each_other() -> None:
    assert output_of("share_one_core") == "fine\n"
