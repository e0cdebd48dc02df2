"""Finds the pauses that a closed loop hides. Its users wait with the server, so a stalled server
gets no requests that would show the pause.

If nothing arrives for 2 s, a closed loop of 16 users has 16 slow responses, however many requests
other users would have sent meanwhile, and the percentiles hardly show the pause ("coordinated
omission").
"""

from typing import NamedTuple

import numpy as np

from analysis import metrics
from analysis.case import CaseData

LEAST_S = 1.0  # a shorter silence is no pause
TYPICAL_GAPS = 10
TIMES_AS_MANY = 3


class HiddenPause(NamedTuple):
    """A silence of `length_s`, which started `at_s` after the window opened. `waiting`: requests in
    flight at its end. `would_wait`: their number in an open loop of the same throughput, which is
    the requests in flight at its start plus all that would have been sent since. `typical_s`: gaps
    between arrivals up to this length hold half of the other time with requests in flight; nan if
    the silence is too short for a pause, since computing it takes as long as everything else.
    """

    length_s: float
    at_s: float
    waiting: int
    would_wait: float
    typical_s: float

    @property
    def hides(self) -> bool:
        """Whether the closed loop hides a pause: the silence is longer than 1 s and than ten
        typical gaps, and an open loop would have gathered at least three times as many waiting
        requests.

        The last condition separates a pause from a server that computes for seconds before each
        first token, or responds in one piece. By Little's law it means that the silence was more
        than twice as long as an average response. Long prompts served one at a time, or batches
        that start together, are silent only for a part of each response, and every request shows
        that.
        """
        return (
            self.length_s > LEAST_S
            and self.length_s > TYPICAL_GAPS * self.typical_s
            and self.would_wait >= TIMES_AS_MANY * self.waiting
        )


def find_longest_pause(case: CaseData) -> HiddenPause | None:
    """The longest time inside the window in which requests were in flight and nothing arrived,
    neither a token nor a refusal. None if fewer than two tokens arrived.
    """
    times, _ = case.tokens
    r = case.rows[case.rows["sent_s"].notna() & case.rows["done_s"].notna()]
    sent, done = np.sort(r["sent_s"]), np.sort(r["done_s"])
    refused = r.loc[r["http_status"].notna() & (r["http_status"] != 200), "done_s"].to_numpy()
    # Also cut where the last request in flight ends and where the next one is sent: between two
    # cuts, requests are in flight either all the time or not at all.
    idle = np.concatenate(
        [done[in_flight(sent, done, done) == 0], sent[in_flight(sent, done, gap_before(sent)) == 0]]
    )
    if np.count_nonzero(case.inside(times)) < 2:
        return None
    cuts = np.unique(
        np.concatenate([each[case.inside(each)] for each in (times, refused, idle)] + [case.window])
    )
    waited = np.where(in_flight(sent, done, (cuts[1:] + cuts[:-1]) / 2) > 0, np.diff(cuts), 0.0)
    i = int(np.argmax(waited))
    began, waiting = in_flight(sent, done, np.array([cuts[i], gap_before(cuts[i + 1])]))
    typical_s = half_lies_below(np.delete(waited, i)) if waited[i] > LEAST_S else np.nan
    would_wait = began + metrics.requests.requests_per_s(case) * waited[i]
    return HiddenPause(
        float(waited[i]),
        float(cuts[i] - case.window[0]),
        int(waiting),
        float(would_wait),
        typical_s,
    )


def half_lies_below(lengths: np.ndarray) -> float:
    """The length up to which gaps add up to half of their sum."""
    lengths = np.sort(lengths)
    return float(lengths[np.searchsorted(np.cumsum(lengths), lengths.sum() / 2)])


def in_flight(sent: np.ndarray, done: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The number of requests sent and not done at each time; one that is done at that very time no
    longer counts. `sent` and `done` are sorted.
    """
    return np.searchsorted(sent, at, side="right") - np.searchsorted(done, at, side="right")


def gap_before(at: np.ndarray) -> np.ndarray:
    return np.nextafter(at, -np.inf)
