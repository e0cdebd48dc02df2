"""Time and memory that the report of a large campaign takes: `python -m
tests.studies.report_benchmark`.

Not a test, as machines are noisy. It writes 20 cases of 50,000 requests with 32 tokens each, that
is 1,000,000 rows with 32,000,000 token times, as the load generator would write them. Then a
process of its own makes the report without notebooks, as a user would.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from loadtests import schema
from tests.helpers import synthetic_campaign

SERVERS = 20
FAMILIES = ("frameworks", "engines")
SCENARIOS = {
    name: {"arrivals": "closed", "users": 64, "max_tokens": 32} for name in ("chat", "rag")
}


def rows(
    n: int, tokens: int, users: int, speed: float, seed: int, length_s: float = 12.0
) -> pa.Table:
    """Rows of a closed loop, evenly scheduled over `length_s`. Times are proportional to `speed`
    and grow with the number of users.
    """
    rng = np.random.default_rng(seed)
    scheduled = np.sort(rng.uniform(0, length_s, n))
    ttft = speed * 0.02 * (1 + users / 16) * rng.lognormal(0, 0.35, n)
    gaps = speed * 0.008 * (1 + users / 48) * rng.lognormal(0, 0.2, (n, tokens - 1))
    first = scheduled + ttft
    times = np.concatenate([first[:, None], first[:, None] + np.cumsum(gaps, axis=1)], axis=1)
    offsets = pa.array(np.arange(0, n * tokens + 1, tokens), pa.int32())
    predicted = 1000 * (times[:, -1] - first)
    values = {
        "request": np.arange(n),
        "worker": np.zeros(n, int),
        "user": np.arange(n) % users,
        "scheduled_s": scheduled,
        "sent_s": scheduled + 1e-4,
        "first_s": first,
        "last_s": times[:, -1],
        "done_s": times[:, -1] + 1e-4,
        "http_status": np.full(n, 200),
        "answer": ["exact"] * n,
        "prompt_tokens_asked": np.full(n, 32),
        "prompt_tokens": np.full(n, 32),
        "max_tokens": np.full(n, tokens),
        "tokens": np.full(n, tokens),
        "finish_reason": ["length"] * n,
        "token_s": pa.ListArray.from_arrays(offsets, pa.array(times.ravel())),
        "token_n": pa.ListArray.from_arrays(offsets, pa.array(np.ones(n * tokens, int))),
        "bytes": np.full(n, 100 * tokens),
        "reads": np.full(n, tokens + 1),
        "read_lag_mean_s": np.full(n, 1e-4),
        "read_lag_max_s": np.full(n, 1e-3),
        "queue_ms": np.zeros(n),
        "prompt_ms": 1000 * ttft - 2,
        "predicted_ms": predicted,
    }
    columns = {
        name: (
            values[name]
            if name in values
            else pa.nulls(n, {"string": pa.string()}.get(kind.type, pa.float64()))
        )
        for name, kind in schema.REQUEST_FIELDS.items()
    }
    return pa.table(columns)


def campaign(
    folder: Path,
    requests: int = 50_000,
    tokens: int = 32,
    servers: int = SERVERS,
    loads: tuple[int, ...] = (64,),
    scenarios: tuple[str, ...] = ("chat",),
    repetitions: int = 1,
) -> Path:
    """Write a campaign with `requests` rows per case. Below 50,000, slower servers and lower loads
    get fewer.
    """
    folder.mkdir(parents=True)
    cases = []
    for scenario in scenarios:
        for users in loads:
            for server in range(servers):
                for repetition in range(1, repetitions + 1):
                    speed = 1.15**server * (1 + 0.01 * repetition)
                    n = (
                        int(requests / 1.15**server * users / max(loads))
                        if requests < 50_000
                        else requests
                    )
                    counts = {
                        "sent": n,
                        "rows": n,
                        "locust_requests": n,
                        "locust_failures": 0,
                        "cut_off": 0,
                    }
                    case = synthetic_campaign.run(
                        len(cases),
                        f"architecture_{server:02d}",
                        repetition,
                        users=users,
                        scenario=scenario,
                        counts=counts,
                        served={"requests": n, "tokens": n * tokens},
                    )
                    case["family"] = FAMILIES[server % len(FAMILIES)]
                    telemetry = synthetic_campaign.telemetry(
                        server_cores=min(0.95, 0.02 * users + 0.02 * server)
                    )
                    path = synthetic_campaign.write_case(
                        folder, case, None, telemetry, said=synthetic_campaign.server_metrics()
                    )
                    table = rows(n, tokens, users, speed, len(cases))
                    pyarrow.parquet.write_table(
                        table, path / "requests.parquet", compression="zstd"
                    )
                    cases.append(case)
    data = synthetic_campaign.campaign_data(
        [case["case"] for case in cases], scenarios={name: SCENARIOS[name] for name in scenarios}
    )
    schema.write_json(folder / "campaign.json", data)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--requests", type=int, default=50_000, help="per case (default: %(default)s)"
    )
    parser.add_argument(
        "--servers", type=int, default=SERVERS, help="with one case each (default: %(default)s)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = campaign(Path(temporary) / "large", options.requests, servers=options.servers)
        began = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-m", "analysis", "report", str(folder), "--no-notebooks"],
            stdout=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(child.pid, 0)
        took = time.monotonic() - began
        size = (folder / "report.html").stat().st_size
    print(
        f"{options.servers} cases of {options.requests:,} requests: {took:.1f} s"
        f" ({used.ru_utime + used.ru_stime:.1f} s of CPU time), {used.ru_maxrss / 2**20:.2f} GiB,"
        f" report.html {size / 1e6:.1f} MB, exit code {os.waitstatus_to_exitcode(status)}"
    )


if __name__ == "__main__":
    main()
