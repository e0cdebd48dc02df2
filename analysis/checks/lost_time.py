"""The time that the server lost to others on its cores, as a share of what it would have had."""

import math

import numpy as np

from analysis.case import CaseData
from analysis.stats import NAN

# A case is invalid above the first, and gets a warning above the second. In 12 disturbed runs of
# two servers that a core limits, throughput fell by the share that is computed here (9 to 78%),
# give or take 8 percentage points. In 9 runs of six servers shielded from their neighbours it was
# 3% at most. A program of low priority takes only what a server leaves, and costs it less than
# this.
MOST_LOST, SOME_LOST = 0.10, 0.05
SATURATED = 0.9  # share of a core's time; switching between processes takes some, too


def lost_to_others(case: CaseData) -> float:
    """The share that the server lost in the window because other processes used its cores; nan if
    it is not known.

    The kernel counts how long its threads were ready to run without a core. They wait for each
    other as well, hence at most the time in which others ran on its cores. That time alone proves
    nothing: the server may not have needed those cores.
    """
    busy, used, load, waited = _rates(
        case, "server_cores_busy_s", "server_cpu_s", "load_cpu_s", "server_waited_s"
    )
    if (case.campaign.get("machine_share") or {}).get("shared"):
        used += load  # the load generator is no other; the report names it
    # unlike min and max, these keep nan
    lost = np.minimum(waited, np.maximum(busy - used, 0.0))
    return _share(case, float(lost), used, busy)


def lost_to_hypervisor(case: CaseData) -> float:
    """The share that the server lost in the window because the hypervisor did not run its cores
    while they had work; nan if it is not known.
    """
    busy, stolen = _rates(case, "server_cores_busy_s", "server_cores_steal_s")
    return _share(case, stolen, busy, busy)


def _rates(case: CaseData, *counters: str) -> list[float]:
    """The rises per second of these counters between the same two samples of the window, the first
    and the last with all of them; nan with fewer than two.
    """
    known = case.samples_inside.reindex(columns=["time_s", *counters]).dropna()
    if len(known) < 2:
        return [NAN] * len(counters)
    risen = known.iloc[-1] - known.iloc[0]
    return [float(risen[name] / risen["time_s"]) for name in counters]


def _share(case: CaseData, lost: float, used: float, busy: float) -> float:
    """The share of the server's work that was not done, from the seconds per second that it lost
    and used, and that its cores were busy.

    A server that its cores limit does less by the share of its time that it lost. Any other has
    time to spare: a wait delays only the requests that it hits, so the share is of the time of the
    requests in flight.
    """
    if math.isnan(lost):
        return NAN
    cores = len((case.campaign.get("machine_share") or {}).get("server_cores") or [])
    wanted = used + lost
    limited = wanted >= SATURATED and max(busy, wanted) >= SATURATED * cores
    in_flight = float(case.scheduled["e2e_s"].sum()) / case.length if case.length > 0 else NAN
    return lost / max(1.0, wanted) / (1.0 if limited else max(1.0, in_flight))
