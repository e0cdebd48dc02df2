"""How long a thread ran, and how long it waited for a core, as Linux counts it."""

from pathlib import Path
from typing import NamedTuple


class ThreadTimes(NamedTuple):
    ran_s: float
    waited_s: float  # ready to run, on a run queue


def read_thread_times(thread: int | None = None) -> ThreadTimes | None:
    """Times since the start of one of this process's threads, by its native id, or of the calling
    thread. None where the kernel does not count them, as only Linux does. Source: the kernel's
    documentation of /proc/<pid>/schedstat.
    """
    folder = "/proc/thread-self" if thread is None else f"/proc/self/task/{thread}"
    try:
        ran_ns, waited_ns, _slices = Path(folder, "schedstat").read_text().split()
        return ThreadTimes(int(ran_ns) * 1e-9, int(waited_ns) * 1e-9)
    except (OSError, ValueError):
        return None
