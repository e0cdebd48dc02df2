"""Statuses of a load as in load.json."""

from loadtests.generator.messages import Window
from loadtests.generator.status import RUNNING, LoadStatus


def running_status(
    now_s: float, rows: int, tokens: int, e2e_p99_s: float, window: Window
) -> LoadStatus:
    return LoadStatus(
        state=RUNNING,
        now_s=now_s,
        began_s=0.0,
        warmup=None,
        window=window,
        planned=None,
        sent=rows,
        rows=rows,
        cut_off=0,
        tokens=tokens,
        workers=[],
        locust_requests=rows,
        locust_failures=0,
        e2e_p99_s=e2e_p99_s,
    )
