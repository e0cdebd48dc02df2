"""The overload study's verdict on a server: it shed load, need not, or should have."""

from typing import Any

import pytest

from servers.runtime.limits import MAX_IN_FLIGHT
from tests.studies.overload import AFTER_S, BEFORE_S, judge_overload


def answered(scheduled_s: float, took_s: float, status: int = 200) -> dict[str, Any]:
    return {
        "scheduled_s": scheduled_s,
        "done_s": scheduled_s + took_s,
        "error": None if status == 200 else "http",
        "http_status": status,
    }


@pytest.mark.parametrize(
    ("at_once", "statuses", "shed"),
    [
        (MAX_IN_FLIGHT, {}, None),
        (MAX_IN_FLIGHT + 1, {}, False),
        (MAX_IN_FLIGHT + 1, {7: 429}, True),
        (9, {7: 429}, True),
    ],
)
def test_a_server_with_more_in_flight_than_the_bound_must_refuse(
    at_once: int, statuses: dict[int, int], shed: bool | None
) -> None:
    """All requests of the overload arrive within a second, and each takes two."""
    quiet = [answered(at_s, 0.1) for at_s in (1.0, 2.0, BEFORE_S + AFTER_S / 2)]
    loud = [
        answered(BEFORE_S + number / at_once, 2.0, statuses.get(number, 200))
        for number in range(at_once)
    ]
    found = judge_overload(quiet + loud, 0.0)
    assert found["at_once"] == at_once and found["shed"] is shed
