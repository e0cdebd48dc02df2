"""Rows of cases on which a check fails, and the checks that fail on a case."""

from collections.abc import Callable, Iterable
from typing import Any

from analysis import checks
from analysis.case import CaseData
from tests.helpers import synthetic_campaign

Row = dict[str, Any]

COUNTS = {"sent": 400, "rows": 400, "locust_requests": 400, "locust_failures": 0, "cut_off": 0}

PROFILE = {
    "base_url": "http://127.0.0.1:8000",
    "dialect": {
        "root": "/v1",
        "query": "",
        "max_tokens_field": "max_tokens",
        "omitted": ["ignore_eos"],
        "usage": "stream",
        "has_system_role": True,
    },
    "model": "m",
    "models": ["m"],
    "endpoints": ["chat", "completions"],
    "fields": {"ignore_eos": "refused"},
    "usage": "stream",
    "tokens_per_chunk": 1.0,
    "reasoning": None,
    "early_chunks": 0,
    "repeats_alone": True,
    "repeats_under_load": False,
    "tokens_per_word": 1.3,
    "template_tokens": 9,
    "context": 4096,
    "metrics": None,
    "notes": ["greedy text is not stable under load: 20% of the responses differ"],
}
FOREIGN: dict[str, Any] = {
    "engine": "external",
    "data": {"model": {"name": "m", "planted": False}},
    "profile": PROFILE,
}


def failed(o: CaseData) -> dict[str, str]:
    return {c.name: c.severity for c in checks.run_checks(o) if c.ok is False}


def rows_with(
    change: Callable[[Row], object], indices: Iterable[int] = range(100, 110)
) -> list[Row]:
    rows = synthetic_campaign.requests()
    for i in indices:
        change(rows[i])
    return rows


def drifting(share: float) -> list[Row]:
    """Rows of a window in whose second half `share` of the requests have a single token."""
    rows = synthetic_campaign.requests()
    for i, row in enumerate(rows):
        if row["scheduled_s"] >= 6 and i % 10 < 10 * share:
            row |= {"token_s": row["token_s"][:1], "token_n": [1]}
            row |= dict.fromkeys(("tokens", "tokens_counted", "max_tokens"), 1)
    return rows


def growing(share: float) -> list[Row]:
    """Rows of a growing queue: E2E and TTFT grow by `share` of their mean over the window, while
    tokens/s stay.
    """
    rows = synthetic_campaign.requests()
    for row in rows:
        later = 0.15 * share * (row["scheduled_s"] - 6) / 8
        row |= {name: row[name] + later for name in ("first_s", "last_s", "done_s")} | {
            "prompt_ms": row["prompt_ms"] + 1e3 * later
        }
    return rows


def early(row: Row) -> None:
    """Give a row server timings that are longer than its TTFT."""
    row.update(queue_ms=1.0 + 1.5, prompt_ms=50.0)


def broken(
    n: int, error: str = "http 500", detail: str | None = None, start: int = 80
) -> list[Row]:
    """Rows of a window in which `n` of 320 requests failed."""
    rows = synthetic_campaign.requests()
    for row in rows[start : start + n]:
        synthetic_campaign.fail(row, error, detail)
    return rows
