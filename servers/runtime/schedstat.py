"""Reads how long a thread ran, and how long it waited for a core, as counted by Linux."""

from pathlib import Path
from typing import NamedTuple


class ThreadTimes(NamedTuple):
    ran_s: float
    waited_s: float  # ready to run, on a run queue


def read_thread_times(thread: int | None = None) -> ThreadTimes | None:
    """Read the times of the calling thread, or of another thread of this process by its native id,
    since its start. None where the kernel does not count them; only Linux does. Source: the
    kernel's documentation of /proc/<pid>/schedstat.
    """
    folder = "/proc/thread-self" if thread is None else f"/proc/self/task/{thread}"
    try:
        ran_ns, waited_ns, _slices = Path(folder, "schedstat").read_text().split()
        return ThreadTimes(int(ran_ns) * 1e-9, int(waited_ns) * 1e-9)
    except (OSError, ValueError):
        return None
