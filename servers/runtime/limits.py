"""Every time-out of the harness, in seconds, and what a server holds at most: the one place to read
them, and by SERVEOFF_<name> in the environment to set them.

What a case takes by plan is no time-out: a scenario has `timeout_s` of a request, `warmup_max_s`,
`duration_s` and `drain_s`, and a server.toml `ready_timeout_s` until the server must be ready.
After these sums a case has failed, whatever stands still.
"""

import math
import os
import sys
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def _said(name: str, default: Number, kind: Callable[[str], Number], what: str) -> Number:
    said = os.environ.get(f"SERVEOFF_{name}")
    if said is None:
        return default
    try:
        if 0 < (number := kind(said)) < math.inf:
            return number
    except ValueError:
        pass
    print(
        f"error: SERVEOFF_{name} is {said!r}: set it to a {what} above 0, or not at all",
        file=sys.stderr,
    )
    raise SystemExit(2)


def _seconds(name: str, default: float) -> float:
    return _said(name, default, float, "number of seconds")


def _count(name: str, default: int) -> int:
    return _said(name, default, int, "whole number")


# Processes
# from asking any process to end to killing it, and whatever it has started
GRACE_S = _seconds("GRACE_S", 15)
# one answer to the question whether a server is ready: it is asked again
HEALTH_S = _seconds("HEALTH_S", 2)
COMMAND_S = _seconds("COMMAND_S", 30)  # git, which says what is measured

# A server that is verified: how long it may be silent, and how long all of its verification may
# take however much it says
SILENCE_S = _seconds("SILENCE_S", 60)
VERIFY_S = _seconds("VERIFY_S", 600)

# The load generator
# until it sends its first request: Locust's own start, and the arrivals of a trace
START_S = _seconds("START_S", 60)
REMOTE_START_S = _seconds("REMOTE_START_S", 300)  # until load workers on other machines are there
# no report of a load worker, of which there are five a second
LOST_AFTER_S = _seconds("LOST_AFTER_S", 10)
SETTLE_S = _seconds("SETTLE_S", 20)  # checking the last answers, after the drain
END_S = _seconds("END_S", 60)  # that and Locust's own end

# The server's own metrics. Gunicorn's sync workers take a scrape in its turn, behind all requests
# that wait, so SCRAPE_S also bounds how far one lags behind. QUIET_S: until a server has ended what
# clients have left.
SCRAPE_S = _seconds("SCRAPE_S", 10)
QUIET_S = _seconds("QUIET_S", 10)

# In the servers themselves
CONNECT_TIMEOUT_S = _seconds("CONNECT_TIMEOUT_S", 5)  # of a gateway to its upstream
# its silence before a plain answer, and between events (as in OpenAI's client)
READ_TIMEOUT_S = _seconds("READ_TIMEOUT_S", 600)
REDIS_S = _seconds("REDIS_S", 0.5)  # an answer of the cache: afterwards the server does without
DRAIN_S = _seconds("DRAIN_S", 5)  # the rest of a body that the server does not read
CACHE_TTL_S = _seconds("CACHE_TTL_S", 3600)  # how long an answer is kept
CACHE_ENTRIES = _count("CACHE_ENTRIES", 1000)  # of one process; Redis has a bound of its own
# Requests in one process. More would only wait, ever longer: a server that is overloaded is soon
# well again if it says so.
MAX_IN_FLIGHT = _count("MAX_IN_FLIGHT", 512)
