"""What a closed loop cannot see: its users wait with the server, so a server that stands still is
asked by nobody.

When nothing comes for 2 s, a closed loop of 16 users has 16 requests that show it, however many
would have been sent meanwhile: one slow answer each, and percentiles that look as if the pause had
hardly been there ("coordinated omission").
"""

from typing import NamedTuple

import numpy as np

from analysis import metrics
from analysis.case import CaseData

LEAST_S = 1.0  # shorter than that, people do not call it a pause
TYPICAL_GAPS = 10
TIMES_AS_MANY = 3


class HiddenPause(NamedTuple):
    """`length_s`, from `at_s` after the window opened. `waiting`: requests in flight at its end.
    `would_wait`: what an open loop with the same throughput would have had then, those in flight
    when it began and all that would have come since. `typical_s`: half of the other time with
    requests in flight lies in gaps between arrivals that are not longer than that; nan for a
    silence too short to be called a pause, since finding it takes as long as all the rest.
    """

    length_s: float
    at_s: float
    waiting: int
    would_wait: float
    typical_s: float

    @property
    def hides(self) -> bool:
        """Whether the closed loop shows too little of it: a pause, no gap of the everyday kind,
        during which an open loop would have gathered at least three times as many waiting requests.

        The last is what tells a pause from a server that computes for seconds before each first
        token, or answers in one piece. By Little's law it means that the silence was more than
        twice as long as an answer takes on average; one request at a time with long prompts, or
        batches that begin together, are silent for a part of each answer only, and every request
        shows it.
        """
        return (
            self.length_s > LEAST_S
            and self.length_s > TYPICAL_GAPS * self.typical_s
            and self.would_wait >= TIMES_AS_MANY * self.waiting
        )


def find_longest_pause(case: CaseData) -> HiddenPause | None:
    """The longest time inside the window in which requests were in flight and nothing came, no
    token and no refusal. Null if not even two tokens came.
    """
    times, _ = case.tokens
    r = case.rows[case.rows["sent_s"].notna() & case.rows["done_s"].notna()]
    sent, done = np.sort(r["sent_s"]), np.sort(r["done_s"])
    refused = r.loc[r["http_status"].notna() & (r["http_status"] != 200), "done_s"].to_numpy()
    # Cut also where the last one waiting is answered and where the next one asks: between two cuts
    # somebody waits all the time, or nobody.
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
    """The length up to which gaps hold half of their sum."""
    lengths = np.sort(lengths)
    return float(lengths[np.searchsorted(np.cumsum(lengths), lengths.sum() / 2)])


def in_flight(sent: np.ndarray, done: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Requests sent and not answered at each time, `sent` and `done` in order; one that is answered
    just then has been.
    """
    return np.searchsorted(sent, at, side="right") - np.searchsorted(done, at, side="right")


def gap_before(at: np.ndarray) -> np.ndarray:
    return np.nextafter(at, -np.inf)
