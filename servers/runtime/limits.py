"""All timeouts, in seconds, and the limits of a server. SERVEOFF_<NAME> in the environment
overrides each of them.

The planned times of a case are elsewhere: a scenario has `timeout_s` of a request, `warmup_max_s`,
`duration_s` and `drain_s`; a server.toml has `ready_timeout_s`. When these and the timeouts here
have passed, the case has failed, whatever hangs.
"""

import math
import os
import sys
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def _read(name: str, default: Number, kind: Callable[[str], Number], what: str) -> Number:
    text = os.environ.get(f"SERVEOFF_{name}")
    if text is None:
        return default
    try:
        if 0 < (number := kind(text)) < math.inf:
            return number
    except ValueError:
        pass
    print(
        f"error: SERVEOFF_{name} is {text!r}: set it to a {what} above 0, or unset it",
        file=sys.stderr,
    )
    raise SystemExit(2)


def _seconds(name: str, default: float) -> float:
    return _read(name, default, float, "number of seconds")


def _count(name: str, default: int) -> int:
    return _read(name, default, int, "whole number")


# Processes
# from asking a process to end until it and its descendants are killed
GRACE_S = _seconds("GRACE_S", 15)
# one attempt to find out whether a server is ready; the attempts repeat
HEALTH_S = _seconds("HEALTH_S", 2)
COMMAND_S = _seconds("COMMAND_S", 30)  # git, which identifies the measured revision
PROBE_S = _seconds("PROBE_S", 120)  # importing torch and computing on each GPU

# Verification of a server: how long it may be silent, and how long the whole verification may take
# however much it sends
SILENCE_S = _seconds("SILENCE_S", 60)
VERIFY_S = _seconds("VERIFY_S", 600)

# The load generator
# until its first request: Locust's own start, and the arrivals of a trace
START_S = _seconds("START_S", 60)
REMOTE_START_S = _seconds("REMOTE_START_S", 300)  # until load workers on other machines connect
# without a report of a load worker, which sends five per second
LOST_AFTER_S = _seconds("LOST_AFTER_S", 10)
SETTLE_S = _seconds("SETTLE_S", 20)  # checking the last responses after the drain
END_S = _seconds("END_S", 60)  # that, and Locust's own shutdown

# The server's own metrics. Gunicorn's sync workers queue a scrape behind all waiting requests, so
# SCRAPE_S also limits how far a scrape lags behind. QUIET_S: until a server has stopped the
# requests of clients that disconnected.
SCRAPE_S = _seconds("SCRAPE_S", 10)
QUIET_S = _seconds("QUIET_S", 10)

# In the servers themselves
CONNECT_TIMEOUT_S = _seconds("CONNECT_TIMEOUT_S", 5)  # from a gateway to its upstream
# the upstream's silence before a plain response, and between events (as in OpenAI's client)
READ_TIMEOUT_S = _seconds("READ_TIMEOUT_S", 600)
REDIS_S = _seconds("REDIS_S", 0.5)  # one command to the cache; then the server works without it
DRAIN_S = _seconds("DRAIN_S", 5)  # the rest of a body that the server does not read
CACHE_TTL_S = _seconds("CACHE_TTL_S", 3600)  # how long a response stays in the cache
CACHE_ENTRIES = _count("CACHE_ENTRIES", 1000)  # in one process; Redis has its own limit
# Requests in one process. More would only wait longer and longer; a server that refuses them
# recovers quickly from an overload.
MAX_IN_FLIGHT = _count("MAX_IN_FLIGHT", 512)
