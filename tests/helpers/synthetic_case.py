"""Cases in the schema of loadtests/schema/, with known values and no server.

`requests(...)` makes rows of a perfectly regular load: request i is scheduled at i/rate and sent at
once, its first token arrives after `ttft_s` and each further one after `tpot_s`. So every metric
can be computed by hand. Change the rows as needed, and write them with `write_case`.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from loadtests import schema

GIB = 2**30


def requests(
    n: int = 400,
    rate: float = 40.0,
    ttft_s: float = 0.05,
    tpot_s: float = 0.01,
    tokens: int = 11,
    users: int = 8,
) -> list[dict[str, Any]]:
    """Rows from second 0 on: `rate` per second, `tokens` each, one token per chunk."""
    rows = []
    for i in range(n):
        scheduled = i / rate
        token_s = [scheduled + ttft_s + k * tpot_s for k in range(tokens)]
        row = {
            "request": i,
            "worker": i % 2,
            "user": i % users,
            "scheduled_s": scheduled,
            "slot_s": None,
            "sent_s": scheduled,
            "first_s": token_s[0],
            "last_s": token_s[-1],
            "first_visible_s": token_s[0],
            "done_s": token_s[-1],
            "http_status": 200,
            "error": None,
            "error_detail": None,
            "retry_after_s": None,
            "resent": False,
            "connect_s": None,
            "answer": "exact",
            "prompt_tokens_asked": 32,
            "prompt_tokens": 32,
            "max_tokens": tokens,
            "tokens": tokens,
            "reasoning_tokens": 0,
            "tokens_counted": tokens,
            "token_source": "usage",
            "finish_reason": "length",
            "token_s": token_s,
            "token_n": [1] * tokens,
            "bytes": 100 * tokens,
            "reads": tokens + 1,
            "read_lag_mean_s": 0.0001,
            "read_lag_max_s": 0.001,
            "queue_ms": 1.0,
            "prompt_ms": 1000 * ttft_s - 2,
            "predicted_ms": 1000 * tpot_s * (tokens - 1),
        }
        assert row.keys() == schema.REQUEST_FIELDS.keys()
        rows.append(row)
    return rows


def fail(row: dict[str, Any], error: str = "http 503", detail: str | None = None) -> None:
    """Turn a row into a request without a response; `detail` is the server's message."""
    row |= {
        "error": error,
        "error_detail": detail,
        "answer": "unchecked",
        "http_status": 503,
        "first_s": None,
        "last_s": None,
        "first_visible_s": None,
        "tokens": None,
        "reasoning_tokens": None,
        "tokens_counted": None,
        "token_source": None,
        "prompt_tokens": None,
        "finish_reason": None,
        "token_s": [],
        "token_n": [],
        "queue_ms": None,
        "prompt_ms": None,
        "predicted_ms": None,
    }


def telemetry(
    seconds: float = 12.0,
    gpus: int = 0,
    server_cores: float = 0.5,
    load_cores: float = 0.25,
    other_cores: float = 0.0,
    beside_cores: float = 0.0,
    waited_cores: float | None = 0.0,
    stolen_cores: float = 0.0,
) -> list[dict[str, Any]]:
    """Four samples per second; every counter rises evenly from an odd start. `beside_cores`: what
    others use of the server's cores; `waited_cores`: the server's threads that wait for one of
    them; `stolen_cores`: what the hypervisor takes of them.
    """
    samples = []
    for i in range(int(seconds * 4) + 1):
        t = i / 4
        pss_bytes = GIB + i * 2**20 if i % 4 == 0 else None
        trees = [
            dict(
                zip(
                    schema.PROCESS_FIELDS,
                    (
                        *(3, 9, 7.0 + cores * t, pss_bytes, 100 + 50 * i),
                        None if waited is None else 2.0 + waited * t,
                    ),
                    strict=True,
                )
            )
            for cores, waited in ((server_cores, waited_cores), (load_cores, 0.0))
        ]
        devices = [
            dict(
                zip(
                    schema.GPU_FIELDS,
                    (
                        g,
                        80.0,
                        2 * GIB,
                        300.0,
                        5000 + 300.0 * t,
                        1980.0,
                        60.0,
                        0,
                        2619.0,
                        *[None] * 3,
                    ),
                    strict=True,
                )
            )
            for g in range(gpus)
        ]
        busy = 1000 + (server_cores + load_cores + other_cores) * t
        samples.append(
            dict(
                zip(
                    schema.TELEMETRY_FIELDS,
                    (
                        *(t, *trees, busy, 3.0, 0.7, 8 * GIB, 0),
                        *(600 + (server_cores + beside_cores) * t, 1.0 + stolen_cores * t),
                        *(None, devices),
                    ),
                    strict=True,
                )
            )
        )
    return samples


def served(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Counts of a server that answered all these rows, also those whose response was lost."""
    return {
        "requests": len(rows),
        "tokens": sum(row["tokens"] or row["max_tokens"] for row in rows),
    }


def server_metrics(seconds: float = 12.0, running: float = 3.0) -> list[dict[str, Any]]:
    """One scrape per second, each answered after 0.25 s; the one at second 4 failed."""
    values = {
        "serveoff_requests_running": running,
        "serveoff_requests_waiting": 1.0,
        "serveoff_tokens_total": 0.0,
    }
    return [
        dict(
            zip(
                schema.SERVER_METRICS_FIELDS,
                (float(t), 0.25, name, None if name is None else "{}", value),
                strict=True,
            )
        )
        for t in range(int(seconds))
        for name, value in (values.items() if t != 4 else [(None, None)])
    ]


def run(
    index: int = 0, server: str = "alpha", repetition: int = 1, **changes: Any
) -> dict[str, Any]:
    """run.json of a valid case: a closed loop of 8 users, window [2, 10)."""
    case = schema.Case(index, server, "simulated", "chat", repetition, 8, None, 8.0).as_dict()
    case |= {key: changes.pop(key) for key in list(changes) if key in case}
    checks = [
        {"name": "models", "ok": True, "detail": ""},
        {"name": "stream trickles", "ok": True, "detail": "11 chunks"},
    ]
    names = ("start", "verify", "load", "verify again", "stop")
    found = {
        "schema": schema.SCHEMA,
        "case": case,
        "status": "ok",
        "started_utc": "2026-11-20T10:00:00Z",
        "clock_zero_s": 5000.0,
        "summary": "a synthetic server",
        "family": "frameworks",
        "command": ["serve", "--port", "1"],
        "environment": {},
        "gpus": None,
        "server_machine": None,
        "stages": [
            {"name": name, "start_s": 2.0 * i, "end_s": 2.0 * i + 2} for i, name in enumerate(names)
        ],
        "startup_s": 1.5,
        "warmup": {"took_s": 2.0, "steady": True, "why": "made so"},
        "load_workers": [
            {
                "worker": n,
                "rows": 200,
                "offset_s": 0.0,
                "estimated_offset_s": 0.0,
                "round_trip_s": 0.0,
            }
            for n in range(2)
        ],
        "window": {"start_s": 2.0, "end_s": 10.0},
        "profile": None,
        "prompt_lengths": None,
        "verify_before": checks,
        "verify_after": checks,
        "counts": {
            "sent": 400,
            "rows": 400,
            "locust_requests": 400,
            "locust_failures": 0,
            "cut_off": 0,
        },
        "served": None,
        "devices": None,
        "agreement": None,
        "notes": [],
    }
    assert found.keys() == schema.RUN_KEYS.keys()
    return found | changes


def write_case(
    folder: Path,
    run: dict[str, Any],
    rows: list[dict[str, Any]] | None = None,
    samples: list[dict[str, Any]] | None = None,
    lines: bool = False,
    said: list[dict[str, Any]] | None = None,
) -> Path:
    """Write the folder of a case: Parquet as at its end, or JSON lines as while it runs. Without
    rows only run.json. `said` are the scrapes of the server's metrics.
    """
    path = (
        folder
        / "cases"
        / schema.Case(**run["case"]).folder.replace("/", "-").replace("<", "").replace(">", "")
    )
    path.mkdir(parents=True)
    schema.write_json(path / "run.json", run)
    for stem, content in (("requests", rows), ("telemetry", samples), ("server_metrics", said)):
        if content is None:
            continue
        if lines:
            text = "".join(schema.json.dumps(row) + "\n" for row in content)
            # a killed process leaves half a line
            (path / f"{stem}.jsonl").write_text(text + '{"request": 9')
        else:
            pyarrow.parquet.write_table(
                pa.Table.from_pylist(content), path / f"{stem}.parquet", compression="zstd"
            )
    return path
