"""A connection that the server closes while it is idle is replaced before a request is sent."""

from pathlib import Path

import pytest

from loadtests.generator.locust_process import Workers
from tests.helpers.campaign_process import Bench
from tests.helpers.recording_server import CLOSED, SCENARIO, Witness, drive, task_of

IDLE_S = 0.1  # well below the time between two requests


@pytest.mark.parametrize("reader", ["c", "python"])
@pytest.mark.parametrize(
    ("scenario", "load"),
    [
        (SCENARIO | {"arrivals": "constant"}, {"rate": 2.5}),
        (SCENARIO | {"arrivals": "constant", "max_in_flight": 1}, {"rate": 2.5}),
        (CLOSED | {"think_s": 0.4}, {"users": 2}),
    ],
    ids=["open loop", "with a cap", "with think time"],
)
def test_no_request_is_sent_twice(
    tmp_path: Path,
    marked: Bench,
    monkeypatch: pytest.MonkeyPatch,
    reader: str,
    scenario: dict[str, object],
    load: dict[str, float],
) -> None:
    if reader == "python":
        monkeypatch.setenv("SERVEOFF_STREAMS", "python")
    with Witness(idle_s=IDLE_S) as witness:
        task = task_of(witness.url, scenario, duration_s=3.0, **load)
        driven = drive(tmp_path / "load", task, Workers())
    assert len(driven.rows) == len(witness.asked) > 6
    assert [(row["error"], row["resent"]) for row in driven.rows] == [
        (None, False) for _ in driven.rows
    ]
