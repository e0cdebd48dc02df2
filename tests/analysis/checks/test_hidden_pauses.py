"""A closed loop reports the pauses that it hides: those of a stalled server, not those of a slow
one.

The servers are arithmetic: each serves users that send again at once, and `frozen` shifts every
time after a moment.
"""

import heapq
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis import dataset
from analysis.case import read_case
from analysis.checks import hidden_pauses, load
from tests.helpers import synthetic_campaign

Request = tuple[int, float, list[float]]  # user, sent, arrival of each token
REFERENCE = Path(__file__).parents[3] / "results" / "reference-cpu-2core"
WINDOW = {"window": {"start_s": 10.0, "end_s": 70.0}}
END_S = 80.0


def sharing(
    users: int, ttft_s: float = 0.05, itl_s: float = 0.01, tokens: int = 16, think_s: float = 0.0
) -> Iterator[Request]:
    """Serves all requests at once without slowing down."""
    for user in range(users):
        at = user * (ttft_s + itl_s * tokens + think_s) / users
        while at < END_S:
            token_s = [at + ttft_s + k * itl_s for k in range(tokens)]
            yield user, at, token_s
            at = token_s[-1] + think_s


def one_by_one(
    users: int, prefill_s: Callable[[], float], itl_s: float = 0.02, tokens: int = 50
) -> Iterator[Request]:
    """Serves one request at a time, in the order of arrival."""
    waiting, free = [(0.01 * user, user) for user in range(users)], 0.0
    while free < END_S:
        sent, user = heapq.heappop(waiting)
        begin = max(free, sent) + prefill_s()
        token_s = [begin + k * itl_s for k in range(tokens)]
        yield user, sent, token_s
        free = token_s[-1]
        heapq.heappush(waiting, (free, user))


def in_batches(users: int, prefill_s: float) -> Iterator[Request]:
    """Serves all prompts together, then all responses together, then the next batch."""
    at = 0.0
    while at < END_S:
        token_s = [at + prefill_s + 0.02 * k for k in range(50)]
        yield from ((user, at, token_s) for user in range(users))
        at = token_s[-1]


def frozen(requests: Iterator[Request], at: float, for_s: float) -> list[Request]:
    def shifted(t: float) -> float:
        return t + for_s if t > at else t

    return [
        (user, shifted(sent), [shifted(t) for t in token_s]) for user, sent, token_s in requests
    ]


def rows(requests: Any) -> list[dict[str, Any]]:
    template = synthetic_campaign.requests(1)[0]
    return [
        template
        | {
            "request": i,
            "user": user,
            "scheduled_s": sent,
            "sent_s": sent,
            "first_s": token_s[0],
            "last_s": token_s[-1],
            "done_s": token_s[-1],
            "token_s": token_s,
            "token_n": [1] * len(token_s),
            "tokens": len(token_s),
            "max_tokens": len(token_s),
        }
        for i, (user, sent, token_s) in enumerate(requests)
    ]


def uniform(low: float, high: float) -> Callable[[], float]:
    source = random.Random("prefill")
    return lambda: source.uniform(low, high)


def long_tailed() -> Callable[[], float]:
    source = random.Random("tail")
    return lambda: source.lognormvariate(0.0, 1.0)


@pytest.mark.parametrize(
    "served",
    [
        sharing(16),
        sharing(1),
        sharing(3, think_s=5.0),
        frozen(sharing(16), 30.0, 0.9),
        frozen(sharing(16), 5.0, 4.0),  # before the window
        one_by_one(16, uniform(0.0, 4.0)),
        one_by_one(2, uniform(0.0, 4.0)),
        one_by_one(1, uniform(0.0, 4.0)),
        one_by_one(16, uniform(4.0, 5.0)),
        one_by_one(1, uniform(0.0, 9.0), tokens=1),
        one_by_one(1, long_tailed(), tokens=1),
        in_batches(16, 5.0),
        in_batches(16, 0.5),
    ],
)
def test_a_server_that_is_always_slow_hides_no_pause(observe, served):
    check = load.check_hidden_pauses(observe(rows(served), **WINDOW))
    assert check is not None and check.ok is True, check
    assert "closed loop" not in check.detail


@pytest.mark.parametrize(
    ("served", "seconds", "waiting", "would_wait"),
    [
        (frozen(sharing(16), 30.0, 2.0), 2.0, 16, 16 + 2 * 16 / 0.2 * 58 / 60),
        (frozen(sharing(1), 30.0, 2.0), 2.0, 1, 1 + 2 / 0.2 * 58 / 60),
        # the first second is before the window
        (frozen(sharing(16), 9.0, 3.0), 2.0, 16, 16 + 2 * 16 / 0.2 * 58 / 60),
        (
            frozen(one_by_one(16, uniform(0.0, 0.4), tokens=10), 30.0, 25.0),
            25.0,
            16,
            16 + 25 / 0.38 * 35 / 60,
        ),
        (frozen(in_batches(4, 0.5), 30.0, 5.0), 5.0, 4, 4 + 5 * 4 / 1.48 * 55 / 60),
    ],
)
def test_a_stalled_server_hides_a_pause(observe, served, seconds, waiting, would_wait):
    o = observe(rows(served), **WINDOW)
    found, check = hidden_pauses.find_longest_pause(o), load.check_hidden_pauses(o)
    assert found.length_s == pytest.approx(seconds, abs=0.6) and found.waiting == waiting
    assert found.would_wait == pytest.approx(would_wait, rel=0.1)
    assert (check.ok, check.severity) == (False, "warning")
    assert (
        f"s while {waiting} requests waited" in check.detail
        and f"about {found.would_wait:,.0f} waiting" in check.detail
    )
    assert "open loop" in check.remedy


def test_the_sentence(observe):
    check = load.check_hidden_pauses(observe(rows(frozen(sharing(16), 30.0, 2.0)), **WINDOW))
    assert (
        check.detail
        == "nothing arrived for 2.0 s while 16 requests waited, 20 s after the window opened: users"
        " of a closed loop wait with the server, so only these requests show it; an open loop at"
        " this throughput would have had about 171 waiting"
    )


def test_an_open_loop_is_not_checked(observe):
    assert (
        load.check_hidden_pauses(
            observe(rows(frozen(sharing(16), 30.0, 2.0)), users=None, rate=80.0, **WINDOW)
        )
        is None
    )


def test_a_refusal_ends_a_silence_and_a_timeout_does_not(observe):
    frozen_rows = rows(frozen(sharing(16), 30.0, 2.0))
    for http_status, ok in ((503, True), (None, False)):
        failed = [
            dict(frozen_rows[0]) | {"scheduled_s": 30.0 + k / 10, "sent_s": 30.0 + k / 10}
            for k in range(20)
        ]
        for row in failed:
            synthetic_campaign.fail(row)
            row |= {"done_s": row["sent_s"] + 0.1, "http_status": http_status}
        assert load.check_hidden_pauses(observe(frozen_rows + failed, **WINDOW)).ok is ok


def test_without_tokens_nothing_is_known(observe):
    assert load.check_hidden_pauses(observe([], **WINDOW)).ok is None
    assert load.check_hidden_pauses(observe(synthetic_campaign.requests()[:1], **WINDOW)).ok is None


def test_no_case_of_the_reference_campaign_hides_a_pause():
    campaign = dataset.read_campaign(REFERENCE)
    for index in campaign.cases["index"]:
        check = load.check_hidden_pauses(read_case(campaign, index))
        assert check is not None and check.ok is True, check
