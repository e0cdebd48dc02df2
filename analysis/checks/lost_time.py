"""The time that the server lost to others on its cores, as a share of what it would have had."""

import math

import numpy as np

from analysis.case import CaseData
from analysis.stats import NAN

# A case is invalid above the first, and gets a warning above the second. In eight disturbed runs of
# two servers that a core limits, throughput fell by the share that is computed here (9 to 78%), or
# by up to 8 percentage points more. A program of low priority takes only what a server leaves, and
# costs it less than this share. In quiet runs it was 0.2% at most.
MOST_LOST, SOME_LOST = 0.10, 0.05
SATURATED = 0.9  # share of a core's time; switching between processes takes some, too


def lost_to_others(case: CaseData) -> float:
    """The share that the server lost in the window because other processes used its cores; nan if
    it is not known.

    The kernel counts how long its threads were ready to run without a core. They wait for each
    other as well, hence at most the time in which others ran on its cores. That time alone proves
    nothing: the server may not have needed those cores.
    """
    used, busy = case.slope("server_cpu_s"), case.slope("server_cores_busy_s")
    if (case.campaign.get("machine_share") or {}).get("shared"):
        used += case.slope("load_cpu_s")  # the load generator is no other; the report names it
    # unlike min and max, these keep nan
    lost = np.minimum(case.slope("server_waited_s"), np.maximum(busy - used, 0.0))
    return _share(case, float(lost), used, busy)


def lost_to_hypervisor(case: CaseData) -> float:
    """The share that the server lost in the window because the hypervisor did not run its cores
    while they had work; nan if it is not known.
    """
    busy = case.slope("server_cores_busy_s")
    return _share(case, case.slope("server_cores_steal_s"), busy, busy)


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
