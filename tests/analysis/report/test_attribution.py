"""The parts of a request's time, on campaigns whose truth is known: the parts add up, and a cause
is named only where it is known.
"""

import heapq
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import attribution, dataset, summary
from analysis.attribution import CLIENT_PHASES, SERVER_PHASES
from analysis.report import writer
from tests.helpers import synthetic_campaign

SYNC = ["gunicorn", "app:app", "--worker-class", "sync", "--workers", "2", "--threads", "1"]


def frame(observe, rows):
    return attribution.split_latencies(summary.latency_frame(observe(rows)))


def one(**changes):
    """Scheduled 3.0, slot 3.1, sent 3.15, first token 3.65, done 4.75; the server reports
    200 + 100 + 1000 ms.
    """
    row = synthetic_campaign.requests(n=1)[0] | {
        "scheduled_s": 3.0,
        "slot_s": 3.1,
        "sent_s": 3.15,
        "first_s": 3.65,
        "last_s": 4.7,
        "done_s": 4.75,
        "queue_ms": 200.0,
        "prompt_ms": 100.0,
        "predicted_ms": 1000.0,
    }
    return row | changes


def test_each_part_has_its_true_length(observe):
    (row,) = frame(observe, [one()]).to_dict("records")
    assert {name: row[name] for name in SERVER_PHASES} == pytest.approx(
        {
            "slot_s": 0.1,
            "client_s": 0.05,
            "before_s": 0.2,
            "queue_s": 0.2,
            "prompt_s": 0.1,
            "generation_s": 1.0,
            "after_s": 0.1,
        }
    )
    assert {name: row[name] for name in CLIENT_PHASES} == pytest.approx(
        {"slot_s": 0.1, "client_s": 0.05, "first_s": 0.5, "stream_s": 1.1}
    )
    assert row["e2e_s"] == pytest.approx(1.75)


def test_the_parts_add_up_even_if_the_stream_was_held_back(observe):
    """A stream that arrives whole at its end did not wait before the engine, which generated
    meanwhile.
    """
    (row,) = frame(observe, [one(first_s=4.70, last_s=4.70)]).to_dict("records")
    assert row["before_s"] == pytest.approx(1.6 - 0.2 - 0.1 - 1.0) and row["after_s"] == 0
    random = np.random.default_rng(7)
    rows = [
        one(first_s=3.5 + a, last_s=5.0, done_s=5.0 + b, queue_ms=c)
        for a, b, c in random.uniform(0, 1, (200, 3)) * [1, 1, 40]
    ]
    found = frame(observe, rows)
    assert found[list(SERVER_PHASES)].sum(axis="columns").to_numpy() == pytest.approx(
        found["e2e_s"].to_numpy(), abs=1e-12
    )
    assert found[CLIENT_PHASES].sum(axis="columns").to_numpy() == pytest.approx(
        found["e2e_s"].to_numpy(), abs=1e-12
    )
    assert (found[list(SERVER_PHASES)] >= -1e-12).all(axis=None)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_ms": None},
        {"predicted_ms": None},
        {"queue_ms": None, "prompt_ms": None, "predicted_ms": None},
        {"predicted_ms": 5000.0},
    ],
)
def test_without_times_that_fit_only_the_clients_view_is_left(observe, changes):
    (row,) = frame(observe, [one(**changes)]).to_dict("records")
    assert (
        math.isnan(row["queue_s"])
        and math.isnan(row["before_s"])
        and row["first_s"] == pytest.approx(0.5)
    )
    rows = synthetic_campaign.requests()
    rows[100] |= changes
    rows[100]["done_s"] += 1e-9  # the slowest
    bar = attribution.tail_bar([frame(observe, rows)])
    assert not bar.has_server_phases and list(bar.parts) == CLIENT_PHASES, (
        "one such request among them, and their means would mix in others"
    )


def test_an_unreported_queue_is_before_the_engine(observe):
    (row,) = frame(observe, [one(queue_ms=None)]).to_dict("records")
    assert row["before_s"] == pytest.approx(0.4) and row["queue_s"] == 0


def test_failures_have_no_parts(observe):
    rows = synthetic_campaign.requests()
    synthetic_campaign.fail(rows[100])
    assert len(frame(observe, rows)) == 319


def test_which_requests(observe):
    """E2E rises by 1 ms per request: the bars are those of P45 to P55, and of the last requests."""

    def run(n, offset_s=0.0):
        rows = synthetic_campaign.requests(n, rate=n / 8)
        for i, row in enumerate(rows):
            row |= {
                name: (
                    row[name]
                    + 2.0
                    + (i / 1000 + offset_s if name in ("first_s", "last_s", "done_s") else 0)
                )
                for name in ("scheduled_s", "sent_s", "first_s", "last_s", "done_s")
            }
        return frame(observe, rows)

    median, tail = attribution.median_bar([run(410)]), attribution.tail_bar([run(410)])
    assert (
        median.e2e_s == pytest.approx(0.15 + np.arange(184, 226).mean() / 1000)
        and median.requests == 42
    )
    assert (tail.which, tail.requests) == ("the slowest 1%", 5) and tail.e2e_s == pytest.approx(
        0.15 + 0.407
    )
    assert sum(tail.parts.values()) == pytest.approx(tail.e2e_s)
    assert attribution.tail_bar([run(410), run(100)]).which == "the slowest 5%", (
        "all runs need enough"
    )
    assert (
        attribution.tail_bar([run(410), run(58)]) is None
        and attribution.median_bar([run(4)]) is None
    )
    assert attribution.median_bar([]) is None and attribution.tail_bar([]) is None
    both = attribution.tail_bar([run(410), run(410, offset_s=1.0)])
    assert both.e2e_s == pytest.approx(0.15 + 0.407 + 0.5) and both.requests == 10, (
        "each run's own tail, not the pooled one"
    )


def queue(workers, users, n=400, service_s=0.1):
    """Rows of a closed loop before servers that take one request at a time, and each one's wait:
    service takes 100 to 150 ms.
    """
    free, users_free = [0.0] * workers, [(0.0, user) for user in range(users)]
    rows, waits = synthetic_campaign.requests(n), []
    for i, row in enumerate(rows):
        sent, user = heapq.heappop(users_free)
        begin = max(sent, heapq.heappop(free))
        took = service_s * (1 + (i % 6) / 10)
        heapq.heappush(free, begin + took)
        heapq.heappush(users_free, (begin + took, user))
        waits.append(begin - sent)
        row |= {
            "user": user,
            "scheduled_s": sent,
            "sent_s": sent,
            "first_s": begin + 0.02,
            "last_s": begin + took,
            "done_s": begin + took,
            "queue_ms": 0.0,
            "prompt_ms": 20.0,
            "predicted_ms": 1000 * (took - 0.02),
            "token_s": list(np.linspace(begin + 0.02, begin + took, 11)),
        }
    return rows, waits


def attributed(tmp_path, rows, said=None, **changes):
    folder = tmp_path / f"campaign-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    counts = {
        "sent": len(rows),
        "rows": len(rows),
        "locust_requests": len(rows),
        "locust_failures": 0,
        "cut_off": 0,
    }
    case = synthetic_campaign.run(
        0, "alpha", served=synthetic_campaign.served(rows), counts=counts, **changes
    )
    synthetic_campaign.write_case(folder, case, rows, synthetic_campaign.telemetry(), said=said)
    synthetic_campaign.schema.write_json(
        folder / "campaign.json", synthetic_campaign.campaign_data([case["case"]])
    )
    found = summary.summarise(dataset.read_campaign(folder))
    (made,) = attribution.attribute_latency(found, summary.build_comparisons(found)[0])
    return made


def test_the_wait_for_a_worker_has_its_true_length(tmp_path):
    rows, waits = queue(workers=2, users=8)
    made = attributed(tmp_path, rows, command=SYNC)
    e2e = pd.Series([row["done_s"] - row["scheduled_s"] for row in rows])
    inside = pd.Series([2 <= row["scheduled_s"] < 10 for row in rows])
    slowest = inside & (e2e >= np.percentile(e2e[inside], 95, method="inverted_cdf"))
    share = np.mean(np.array(waits)[slowest]) / e2e[slowest].mean()
    assert made.bars[1].share("before_s") == pytest.approx(share)
    assert made.sentence.startswith(
        f"{share:.0%} of the slowest 5% is waiting for one of 2 workers (including framework and"
        " network)"
    )


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"command": [*SYNC[:-3], "1", *SYNC[-2:]]}, "for the only worker ("),
        (
            {
                "command": [
                    "/usr/bin/gunicorn",
                    "--worker-class",
                    "gthread",
                    "--workers",
                    "2",
                    "--threads",
                    "4",
                ]
            },
            "for one of 8 threads (",
        ),
        ({"command": [*SYNC[:-1], "2"]}, "for one of 4 threads ("),
        # Eight users: when one sends, at most seven others can be with the server.
        ({"command": [*SYNC[:-3], "8", *SYNC[-2:]]}, "before the server's engine"),
        # Its workers take any number of requests.
        (
            {
                "command": [
                    "gunicorn",
                    "--worker-class",
                    "uvicorn_worker.UvicornWorker",
                    "--workers",
                    "2",
                ]
            },
            "before the server's engine",
        ),
        (
            {"command": ["python", "-m", "servers.frameworks.nginx", "--workers", "2"]},
            "before the server's engine",
        ),
        ({"command": None}, "before the server's engine"),
    ],
)
def test_the_cause_of_a_wait_is_named_only_where_it_is_known(tmp_path, changes, cause):
    rows, _ = queue(2, 9 if "8 threads" in cause else 8)
    assert f"is waiting {cause}" in attributed(tmp_path, rows, **changes).sentence


@pytest.mark.parametrize(
    ("engine", "options", "cause"),
    [
        ("hf", {"threads": "4"}, "for one of 4 threads;"),
        ("hf", {"threads": "16"}, "for its engine;"),
        ("hf", {}, "for its engine;"),
        ("simulated", {"threads": "4"}, "for its engine;"),
    ],
)
def test_a_thread_of_a_pool_likewise(tmp_path, engine, options, cause):
    rows, waits = queue(2, 8)
    for row, wait in zip(rows, waits, strict=True):
        row["queue_ms"] = 1000 * wait
    made = attributed(
        tmp_path, rows, engine=engine, options=options, command=["uvicorn", "app:app"]
    )
    assert f"is waiting in the server's own queue {cause}" in made.sentence


def test_generation_names_how_many_ran_at_once(tmp_path):
    text = attributed(tmp_path, synthetic_campaign.requests()).sentence
    assert (
        text == "67% of the slowest 1% is generation, from the first token to the last, with 5.92"
        " requests at once on average; of the median request it is 67% (mean E2E 150 and 150 ms)."
    )


@pytest.mark.parametrize(("bound", "said"), [("1.0", True), ("0.001", False), ("+Inf", False)])
def test_a_late_event_loop_is_named_where_it_matters(tmp_path, bound, said):
    """All values are in the second bucket. +Inf is no bound."""
    rows, _ = queue(2, 8)
    lag = []
    for t in range(12):
        for le, value in {"0.0001": 0.0, bound: 100.0 * t, "+Inf": 100.0 * t}.items():
            lag.append(
                {
                    "time_s": float(t),
                    "took_s": 0.1,
                    "name": "serveoff_event_loop_lag_seconds_bucket",
                    "labels": f'{{"le": "{le}"}}',
                    "value": value,
                }
            )
    text = attributed(tmp_path, rows, lag, command=["uvicorn", "app:app"]).sentence
    assert (
        "framework, network), with an event loop that was up to 1,000 ms late (P99); of" in text
    ) == said
    assert ("event loop" in text) == said


def test_too_few_requests(tmp_path):
    assert attributed(tmp_path, synthetic_campaign.requests(n=50, rate=5)).sentence.startswith(
        "67% of the median request is generation"
    )
    assert (
        attributed(tmp_path, synthetic_campaign.requests(n=5, rate=0.5)).sentence
        == "too few completed requests for an explanation."
    )


def test_the_readmes_sentence_is_of_the_reference():
    root = Path(__file__).parents[3]
    found = summary.summarise(dataset.read_campaign(root / "results" / "reference-cpu-2core"))
    made = {
        a.system.server: a
        for a in attribution.attribute_latency(found, summary.build_comparisons(found)[0])
    }
    said, _, _ = made["flask_gunicorn"].sentence.partition(" (")
    assert "waiting for the only worker" in said and f'"{said}"' in " ".join(
        (root / "README.md").read_text().split()
    )
    for a in made.values():
        for bar in a.bars:
            assert (
                bar.has_server_phases
                and sum(bar.parts.values()) == pytest.approx(bar.e2e_s)
                and min(bar.parts.values()) >= 0
            )


def test_the_report_has_the_section(tmp_path):
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    for path in folder.glob("cases/*beta*/requests.parquet"):
        rows = pd.read_parquet(path)
        rows[["queue_ms", "prompt_ms", "predicted_ms"]] = None
        rows.to_parquet(path)
    writer.write_report(folder)
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    section = text.partition("### Why")[2].partition("\n## ")[0]
    for shown in (
        "- **alpha (simulated)**: 67% of the slowest 1% is generation",
        "- **beta (simulated)**: 67% of the slowest 5% is the stream from the first token on;",
        "Only the client's view is known of beta (simulated), which reported no usable times",
        "(figures/1-chat-8-users-why.png)",
        "| alpha (simulated) | the slowest 1% |",
        "| beta (simulated) | – | – |",
    ):
        assert shown in section, shown
    row = next(
        line for line in section.splitlines() if line.startswith("| beta (simulated) | the median")
    )
    assert row.count("–") == 5, (
        "before, queue, prompt, generation and the stream beyond it are unknown: no zeros"
    )
    assert (folder / "figures" / "1-chat-8-users-why.png").stat().st_size > 10_000
    assert "<h3>Why</h3>" in page and "67% of the slowest 1%" in page
    assert len(re.findall(r"<figure", page)) == 7 and "1-chat-8-users-why.csv" in page
