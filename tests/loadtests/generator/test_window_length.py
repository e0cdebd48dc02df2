"""The window's length in a closed loop whose scenario has `requests`."""

from pathlib import Path

import pytest

from loadtests.generator.locust_process import Workers
from tests.helpers.campaign_process import Bench
from tests.helpers.recording_server import CLOSED, Witness, drive, task_of

USERS, RESPONSE_S = 4, 0.05  # at most 80 responses per second
SIZED = CLOSED | {"warmup_s": 2.0, "warmup_max_s": 2.0, "requests": 120, "duration_max_s": 20.0}


@pytest.mark.parametrize("count", [1, 2])
def test_the_window_holds_the_requests(tmp_path: Path, marked: Bench, count: int) -> None:
    with Witness(answer_s=RESPONSE_S) as witness:
        task = task_of(witness.url, SIZED, users=USERS, duration_s=1.0)
        driven = drive(tmp_path / "load", task, Workers(count))
    start_s, end_s = driven.window
    assert len(driven.in_window()) >= 120
    assert 2.0 <= end_s - start_s <= 10.0, "159 are expected, at about 20 to 80 per second"


def test_the_window_ends_at_its_bound_if_the_server_is_slow(tmp_path: Path, marked: Bench) -> None:
    with Witness(answer_s=RESPONSE_S) as witness:
        scenario = SIZED | {"requests": 5_000, "duration_max_s": 3.0}
        task = task_of(witness.url, scenario, users=USERS, duration_s=1.0)
        driven = drive(tmp_path / "load", task, Workers())
    assert driven.window[1] - driven.window[0] == pytest.approx(3.0)
