"""Reads how long a thread ran, and how long it or any thread of the machine waited for a core, as
counted by Linux.
"""

from pathlib import Path
from typing import NamedTuple


class ThreadTimes(NamedTuple):
    ran_s: float
    waited_s: float  # ready to run, on a run queue


def read_thread_times(thread: int | None = None, process: int | None = None) -> ThreadTimes | None:
    """Read the times of the calling thread, or of another thread by its native id, since its start;
    without `process`, it is one of this process. None where the kernel does not count them (only
    Linux does), or if the thread has ended. Source: the kernel's documentation of
    /proc/<pid>/schedstat.
    """
    folder = "/proc/thread-self" if thread is None else f"/proc/{process or 'self'}/task/{thread}"
    try:
        # a third of the cost of pathlib's text, which counts with hundreds of threads
        with open(f"{folder}/schedstat", "rb", buffering=0) as handle:
            ran_ns, waited_ns, _slices = handle.read(128).split()
        return ThreadTimes(int(ran_ns) * 1e-9, int(waited_ns) * 1e-9)
    except (OSError, ValueError):
        return None


def read_machine_wait_s() -> float | None:
    """Read for how long, since the machine's start, some thread was ready to run without a core.
    None where the kernel does not count it. Source: the kernel's documentation of
    /proc/pressure/cpu.
    """
    try:
        some = Path("/proc/pressure/cpu").read_text().splitlines()[0]
        return int(some.partition("total=")[2]) * 1e-6
    except (OSError, ValueError, IndexError):
        return None
