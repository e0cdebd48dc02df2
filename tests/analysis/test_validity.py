"""Each check is silent on a clean case and fires on the one that breaks it."""

import pytest

from analysis import metrics, validity
from analysis.metrics import Observed
from tests.analysis import synthetic


def failed(o: Observed) -> dict[str, str]:
    return {c.name: c.severity for c in validity.check(o) if c.ok is False}


def test_a_clean_case_passes_everything(observe):
    for o in (observe(samples=synthetic.telemetry(gpus=1)), observe(users=None, rate=40.0, counts=COUNTS | {"planned": 320})):
        assert failed(o) == {}
        assert [c.name for c in validity.check(o) if c.ok is None] == []
    assert {c.name for c in validity.check(observe())} | {"arrivals", "GPU clocks"} >= {
        "contract", "answers", "rows", "token counts", "errors", "load generator's CPU", "send lag", "steadiness",
        "other processes", "steal", "swap", "P99 sample", "unanswered"}  # fmt: skip


def rows_with(change, indices=range(100, 110)):
    rows = synthetic.requests()
    for i in indices:
        change(rows[i])
    return rows


BAD = [{"name": "stream trickles", "ok": False, "detail": "one chunk"}]
COUNTS = {"sent": 400, "rows": 400, "locust_requests": 400, "locust_failures": 0, "cut_off": 0}


def drifting():
    """The second half of the window has half the tokens."""
    return [row | ({"token_s": row["token_s"][:5], "token_n": [1] * 5, "tokens": 5, "max_tokens": 5} if row["scheduled_s"] > 6 else {})
            for row in synthetic.requests()]  # fmt: skip


def samples_with(**changes):
    return [sample | {key: change(i) for key, change in changes.items()} for i, sample in enumerate(synthetic.telemetry())]


def gpu_samples(**changes):
    samples = synthetic.telemetry(gpus=1)
    for i, sample in enumerate(samples):
        sample["gpus"][0] |= {key: change(i) for key, change in changes.items()}
    return samples


@pytest.mark.parametrize(
    ("name", "severity", "case"),
    [
        ("contract", "invalid", {"verify_before": BAD}),
        ("contract", "invalid", {"verify_after": BAD}),
        ("contract", "invalid", {"verify_after": None}),
        ("contract", "invalid", {"verify_before": []}),
        ("answers", "invalid", {"rows": rows_with(lambda row: row.update(answer="wrong"), [399])}),
        ("answers", "invalid", {"rows": rows_with(lambda row: row.update(answer="unchecked"), [7])}),
        ("agreement", "warning", {"agreement": {"with": "alpha/hf", "share": 0.75}}),
        ("rows", "invalid", {"counts": COUNTS | {"locust_requests": 401}}),
        ("rows", "invalid", {"counts": COUNTS | {"sent": 399}}),
        ("rows", "invalid", {"rows": synthetic.requests()[:-1]}),
        ("token counts", "invalid", {"rows": rows_with(lambda row: row.update(tokens=10), [7])}),
        ("token counts", "invalid", {"rows": rows_with(lambda row: row.update(tokens=None), [7])}),
        ("token counts", "invalid", {"rows": rows_with(lambda row: row.update(token_n=[1] * 9 + [0, 0]), [7])}),
        ("errors", "warning", {"rows": rows_with(synthetic.fail)}),
        ("arrivals", "invalid", {"users": None, "rate": 60.0, "counts": COUNTS | {"planned": 480}}),
        (
            "arrivals",
            "invalid",
            {"users": None, "rate": 40.0, "counts": COUNTS | {"planned": 320},
             "rows": rows_with(lambda row: row.update(sent_s=None), range(200, 220))},
        ),
        ("load generator's CPU", "invalid", {"samples": synthetic.telemetry(load_cores=0.9)}),
        ("send lag", "invalid", {"rows": rows_with(lambda row: row.update(sent_s=row["scheduled_s"] + 0.02))}),
        ("steadiness", "invalid", {"rows": drifting()}),
        ("other processes", "warning", {"samples": synthetic.telemetry(other_cores=1.0)}),
        ("steal", "warning", {"samples": samples_with(cpu_steal_s=lambda i: 0.05 * i)}),
        ("swap", "warning", {"samples": samples_with(swap_used_bytes=lambda i: i * 2**20)}),
        ("GPU clocks", "warning", {"samples": gpu_samples(throttle_reasons=lambda i: 0x40 if i == 20 else 0)}),
        ("GPU clocks", "warning", {"samples": gpu_samples(sm_clock_mhz=lambda i: 1980.0 if i < 25 else 1500.0)}),
        ("P99 sample", "warning", {"window": {"start_s": 2.0, "end_s": 9.0}}),
        ("unanswered", "warning", {"counts": COUNTS | {"cut_off": 3}}),
    ],
)
def test_a_check_fires_alone(observe, name, severity, case):
    o = observe(**case)
    assert failed(o) == {name: severity}
    assert bool(validity.reasons(validity.check(o))) == (severity == "invalid")
    for check in validity.check(o):
        assert check.remedy and check.detail, check.name


def test_throttling_outside_the_window_does_not_matter(observe):
    assert failed(observe(samples=gpu_samples(throttle_reasons=lambda i: 0x40 if i < 8 else 0x4))) == {}


def test_what_was_not_measured_is_neither_good_nor_bad(observe):
    o = observe(rows=[], samples=[], counts=None, engine="hf", data={"model": {"planted": False}})
    unknown = {c.name for c in validity.check(o) if c.ok is None}
    assert unknown >= {
        "answers",
        "token counts",
        "rows",
        "errors",
        "send lag",
        "steadiness",
        "other processes",
        "swap",
        "unanswered",
    }
    assert failed(o) == {"P99 sample": "warning"}


def test_bursts_are_no_drift(observe):
    """One answer of very many tokens in the second half: half means differ, the slices' spread says it is chance."""
    rows = synthetic.requests()
    rows[300] |= {"token_n": [*rows[300]["token_n"][:-1], 3000], "tokens": 3010, "max_tokens": 3010}
    assert "steadiness" not in failed(observe(rows))


def test_load_share_counts_the_cores_that_workers_can_use(observe):
    share = {"server_cores": [0], "load_cores": [1, 2, 3], "shared": False, "threads": 1}
    o = observe(samples=synthetic.telemetry(load_cores=1.0), data={"machine_share": share})
    assert metrics.load_cpu_share(o) == pytest.approx(0.5)  # two load workers


def test_a_wait_for_a_slot_is_not_the_client_s(observe):
    """Under a cap on concurrency requests are sent later by intention, here even after the window; the client's own part counts."""

    def waiting(own_s):
        rows = [row | {"slot_s": row["scheduled_s"] + 30, "sent_s": row["scheduled_s"] + 30 + own_s} for row in synthetic.requests()]
        return observe(rows=rows, users=None, rate=40.0, counts=COUNTS | {"planned": 320})

    assert not {"send lag", "arrivals"} & failed(waiting(0.001)).keys()
    assert {"send lag", "arrivals"} & failed(waiting(0.1)).keys() == {"send lag"}
    rows = synthetic.requests()
    del rows[100:120]
    assert "arrivals" in failed(observe(rows=[row | {"slot_s": row["sent_s"]} for row in rows], users=None, rate=40.0,
                                        counts=COUNTS | {"planned": 320}))  # fmt: skip
