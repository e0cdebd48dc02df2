"""Each check passes on a clean case and fails on the case that breaks it."""

import pytest

from analysis import checks
from analysis.checks import verdict
from tests.helpers import synthetic_campaign
from tests.helpers.checked_case import (
    COUNTS,
    FOREIGN,
    broken,
    drifting,
    early,
    failed,
    growing,
    rows_with,
)


def test_a_clean_case_passes_everything(observe):
    for o in (
        observe(samples=synthetic_campaign.telemetry(gpus=1)),
        observe(users=None, rate=40.0, counts=COUNTS | {"planned": 320}),
    ):
        assert failed(o) == {}
        assert [c.name for c in checks.run_checks(o) if c.ok is None] == []
    assert {c.name for c in checks.run_checks(observe())} | {
        "arrivals",
        "GPU clocks",
        "other GPUs",
    } >= {
        "contract",
        "answers",
        "rows",
        "token counts",
        "errors",
        "load generator's CPU",
        "send lag",
        "steadiness",
        "other processes",
        "steal",
        "swap",
        "P99 sample",
        "unanswered",
        "server's counts",
        "server's times",
    }


BAD = [{"name": "stream trickles", "ok": False, "detail": "one chunk"}]


def late(row):
    row.update(sent_s=row["scheduled_s"] + 0.02, prompt_ms=row["prompt_ms"] - 20)


def held_back(ms):
    return lambda row: row.update(predicted_ms=100.0 + ms)


def samples_with(**changes):
    return [
        sample | {key: change(i) for key, change in changes.items()}
        for i, sample in enumerate(synthetic_campaign.telemetry())
    ]


def gpu_samples(**changes):
    samples = synthetic_campaign.telemetry(gpus=1)
    for i, sample in enumerate(samples):
        sample["gpus"][0] |= {key: change(i) for key, change in changes.items()}
    return samples


def other_gpu(gpus=(0,), data=None, **changes):
    """A case on GPU 0, with a GPU 1 beside it."""
    samples = synthetic_campaign.telemetry(gpus=2)
    for sample in samples:
        sample["gpus"][1] |= {"utilization_percent": 0.0, "power_w": 60.0} | changes
    return {"samples": samples, "gpus": gpus and [*gpus], "data": data}


def with_limit(*limits):
    manifest = synthetic_campaign.campaign_data([])["manifest"]
    return {"manifest": manifest | {"gpus": [{"name": "x", "power_limit_w": w} for w in limits]}}


@pytest.mark.parametrize(
    ("ok", "case"),
    [
        (True, other_gpu()),
        (True, other_gpu(utilization_percent=4.0)),
        (False, other_gpu(utilization_percent=30.0)),
        # in MIG mode NVML reports no utilisation
        (True, other_gpu(utilization_percent=None, data=with_limit(300.0, 300.0))),
        (False, other_gpu(utilization_percent=None, power_w=200.0, data=with_limit(300.0, 300.0))),
        (None, other_gpu(utilization_percent=None)),
        (None, other_gpu(utilization_percent=None, data=with_limit(300.0, None))),
        ("no check", other_gpu((0, 1))),
        ("no check", other_gpu(None, utilization_percent=30.0)),
    ],
)
def test_gpus_beside_the_server_s_are_idle(ok, case, observe):
    found = [c for c in checks.run_checks(observe(**case)) if c.name == "other GPUs"]
    assert [c.ok for c in found] == ([] if ok == "no check" else [ok])
    assert all(c.severity == "warning" for c in found)
    assert ok is not False or "gpu1" in found[0].detail


def test_clocks_of_other_gpus_do_not_matter(observe):
    case = other_gpu(throttle_reasons=0x40, sm_clock_mhz=None)
    assert "GPU clocks" not in failed(observe(**case))


@pytest.mark.parametrize(
    ("name", "severity", "case"),
    [
        ("contract", "invalid", {"verify_before": BAD}),
        ("contract", "invalid", {"verify_after": BAD}),
        ("contract", "invalid", {"verify_after": None}),
        ("contract", "invalid", {"verify_before": []}),
        ("answers", "invalid", {"rows": rows_with(lambda row: row.update(answer="wrong"), [399])}),
        (
            "answers",
            "invalid",
            {"rows": rows_with(lambda row: row.update(answer="unchecked"), [7])},
        ),
        ("agreement", "warning", {"agreement": {"with": "alpha/hf", "share": 0.75}}),
        ("rows", "invalid", {"counts": COUNTS | {"locust_requests": 401}}),
        ("rows", "invalid", {"counts": COUNTS | {"sent": 399}}),
        ("rows", "invalid", {"rows": synthetic_campaign.requests()[:-1]}),
        ("server's counts", "invalid", {"served": {"requests": 399, "tokens": 4400}}),
        ("server's counts", "invalid", {"served": {"requests": 401, "tokens": 4400}}),
        ("server's counts", "invalid", {"served": {"requests": 400, "tokens": 4399}}),
        ("server's counts", "invalid", {"served": {"requests": -30, "tokens": 4400}}),
        (
            "server's counts",
            "warning",
            {"served": {"requests": 900, "tokens": 9900}, "command": None},
        ),
        ("token counts", "invalid", {"rows": rows_with(lambda row: row.update(tokens=10), [7])}),
        ("token counts", "invalid", {"rows": rows_with(lambda row: row.update(tokens=None), [7])}),
        (
            "token counts",
            "invalid",
            {"rows": rows_with(lambda row: row.update(token_n=[1] * 9 + [0, 0]), [7])},
        ),
        ("errors", "warning", {"rows": rows_with(synthetic_campaign.fail)}),
        ("arrivals", "invalid", {"users": None, "rate": 60.0, "counts": COUNTS | {"planned": 480}}),
        (
            "arrivals",
            "invalid",
            {
                "users": None,
                "rate": 40.0,
                "counts": COUNTS | {"planned": 320},
                "rows": rows_with(lambda row: row.update(sent_s=None), range(200, 220)),
            },
        ),
        (
            "load generator's CPU",
            "invalid",
            {"samples": synthetic_campaign.telemetry(load_cores=0.9)},
        ),
        ("send lag", "invalid", {"rows": rows_with(late)}),
        ("server's times", "warning", {"rows": rows_with(early)}),
        ("server's times", "warning", {"rows": rows_with(held_back(13.0), range(400))}),
        ("server's times", "warning", {"rows": rows_with(held_back(-13.0), range(400))}),
        ("steadiness", "invalid", {"rows": drifting(0.5)}),
        ("steadiness", "warning", {"rows": drifting(0.1)}),
        ("steadiness", "invalid", {"rows": growing(0.25)}),
        ("other processes", "warning", {"samples": synthetic_campaign.telemetry(other_cores=1.0)}),
        ("steal", "warning", {"samples": samples_with(cpu_steal_s=lambda i: 0.05 * i)}),
        ("swap", "warning", {"samples": samples_with(swap_used_bytes=lambda i: i * 2**20)}),
        (
            "GPU clocks",
            "warning",
            {"samples": gpu_samples(throttle_reasons=lambda i: 0x40 if i == 20 else 0)},
        ),
        (
            "GPU clocks",
            "warning",
            {"samples": gpu_samples(sm_clock_mhz=lambda i: 1980.0 if i < 25 else 1500.0)},
        ),
        ("P99 sample", "warning", {"window": {"start_s": 2.0, "end_s": 9.0}}),
        ("unanswered", "warning", {"counts": COUNTS | {"cut_off": 3}}),
    ],
)
def test_a_check_fires_alone(observe, name, severity, case):
    o = observe(**case)
    assert failed(o) == {name: severity}
    assert bool(verdict.failed_checks(checks.run_checks(o))) == (severity == "invalid")
    for check in checks.run_checks(o):
        assert check.remedy and check.detail, check.name


def test_a_busy_machine_is_named_where_it_may_be_the_cause(observe):
    busy = synthetic_campaign.telemetry(other_cores=1.0)
    found = {c.name: c for c in checks.run_checks(observe(rows_with(late), busy))}
    assert "; meanwhile other processes used" in found["send lag"].detail
    assert found["send lag"].remedy.startswith(
        "stop other programs on this machine and measure again; "
    )
    assert "meanwhile" not in found["load generator's CPU"].detail, "it passed"
    assert "meanwhile" not in found["other processes"].detail
    twice = [found["send lag"], found["send lag"]._replace(name="client error")]
    text = checks.describe_failures(twice)
    assert text.startswith(f"send lag: {twice[0].detail}; client error: ")
    assert text.count("meanwhile") == 1, "one cause stands once"
    quiet = {c.name: c for c in checks.run_checks(observe(rows_with(late)))}
    assert "meanwhile" not in quiet["send lag"].detail


def test_a_small_sample_states_the_window_that_it_needs(observe):
    (found,) = (
        c
        for c in checks.run_checks(observe(window={"start_s": 2.0, "end_s": 9.0}))
        if c.name == "P99 sample"
    )
    assert found.detail == "280 requests in the window, P99 needs 299"
    assert found.remedy == "use a longer window: --duration 9", "7 s x 299 / 280, and a tenth"


def test_causes_come_first(observe):
    """Errors, wrong responses, contract, lengths and rows; then the load generator, the machine."""
    names = [
        c.name
        for c in checks.run_checks(
            observe(
                broken(8, "http 429"),
                synthetic_campaign.telemetry(gpus=1),
                users=None,
                rate=40.0,
                counts=COUNTS | {"planned": 320},
                agreement={"with": "alpha/hf", "share": 0.75},
                **FOREIGN,
            )
        )
    ]
    order = [
        "errors",
        "answers",
        "contract",
        "token counts",
        "response lengths",
        "rows",
        "arrivals",
        "client error",
        "steadiness",
        "other processes",
    ]
    assert [name for name in names if name in order] == order


def test_throttling_outside_the_window_does_not_matter(observe):
    assert (
        failed(observe(samples=gpu_samples(throttle_reasons=lambda i: 0x40 if i < 8 else 0x4)))
        == {}
    )


def test_what_was_not_measured_is_neither_good_nor_bad(observe):
    o = observe(
        rows=[],
        samples=[],
        counts=None,
        served=None,
        engine="hf",
        data={"model": {"planted": False}},
    )
    unknown = {c.name for c in checks.run_checks(o) if c.ok is None}
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
        "server's counts",
        "server's times",
    }
    assert failed(o) == {"P99 sample": "warning"}
