"""Two campaigns are compared case by case. Unlike machines are refused, and small samples have no
verdict.
"""

import numpy as np
import pytest

from analysis import __main__, dataset, summary
from analysis.gate import compare
from tests.helpers import synthetic_campaign


@pytest.mark.parametrize(
    ("a", "b", "metric", "verdict"),
    [
        ([100, 101, 99], [130, 131, 129], "output_tokens_per_s", "faster"),
        ([100, 101, 99], [130, 131, 129], "ttft_p50_s", "slower"),
        ([100, 101, 99], [100.5, 101, 99], "ttft_p50_s", "no difference within 5%"),
        ([100, 100.2, 99.8], [103, 103.1, 103.2], "ttft_p50_s", "no difference within 5%"),
        ([100, 101, 99], [108, 109, 107], "e2e_p99_s", "no difference within 15%"),
        ([100, 120, 80], [105, 125, 85], "ttft_p50_s", "inconclusive: could only detect 83%"),
        ([100, 2000], [200, 100], "ttft_p50_s", "inconclusive: could only detect a tenfold change"),
        ([100], [200], "ttft_p50_s", "one run: no verdict"),
        ([1, np.nan], [1, 2], "ttft_p99_s", "invalid: too few requests in some run"),
        ([1, np.inf], [1, 2], "ttft_p99_s", "failed requests: no ratio"),
    ],
)
def test_verdicts(a, b, metric, verdict):
    found = compare.measure_change(metric, a, b)
    assert found.verdict == verdict
    assert np.isnan(found.ratio) or found.ratio == pytest.approx(
        np.exp(np.log(b).mean() - np.log(a).mean())
    )


def test_equal_pairs_rarely_differ():
    rng = np.random.default_rng(1)
    pairs = rng.lognormal(0, 0.1, (1000, 2, 3))
    different = sum(
        compare.measure_change("ttft_p50_s", a, b).verdict in ("faster", "slower") for a, b in pairs
    )
    assert different / 1000 < 0.07


def test_the_smallest_detectable_difference_is_found_with_its_probability():
    """Of pairs that differ by the smallest detectable difference, 80% are found."""
    rng = np.random.default_rng(2)
    scatter = 0.1
    known = np.mean(
        [compare.stats.welch_test(*rng.normal(0, scatter, (2, 5))).detectable for _ in range(300)]
    )
    found = 0
    for _ in range(1000):
        a, b = rng.normal(0, scatter, (2, 5))
        w = compare.stats.welch_test(a + known, b)
        found += w.low > 0 or w.high < 0
    assert 0.72 < found / 1000 < 0.88


def pair(tmp_path, **changes):
    return [
        synthetic_campaign.campaign(tmp_path / name, **more)
        for name, more in (("a", {}), ("b", changes))
    ]


def one_case(folder, server="alpha", **changes):
    folder.mkdir()
    case = synthetic_campaign.run(0, server)
    synthetic_campaign.write_case(
        folder, case, synthetic_campaign.requests(), synthetic_campaign.telemetry()
    )
    synthetic_campaign.schema.write_json(
        folder / "campaign.json", synthetic_campaign.campaign_data([case["case"]], **changes)
    )
    return folder


def manifest(**changes):
    return {"manifest": synthetic_campaign.campaign_data([])["manifest"] | changes}


def run(capsys, *arguments):
    code = __main__.main(["compare", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_differences_and_missing_cases_are_named(tmp_path, capsys):
    a, b = pair(tmp_path, **manifest(commit="fedcba9", kernel="7.0", packages={"locust": "2.48"}))
    code, out, error = run(capsys, a, b)
    assert code == 1 and "no valid case of gamma (simulated), chat, 8 users: in A: failed" in error
    assert "delta" not in error, "it was skipped in both"
    for line in (
        "manifest.commit: 0123abc -> fedcba9",
        "manifest.kernel: 6.1 -> 7.0",
        "manifest.packages.locust: 2.47 -> 2.48",
        "alpha (simulated), chat, 8 users: 2 and 2 runs",
        "1.000",
        "in A: failed: load: the server died",
    ):
        assert line in out, line
    assert "UNLIKE" not in out and out.count("invalid: in A:") == 4


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (manifest(cpu={"model": "other", "cores": 4}), "manifest.cpu.model (synthetic, other)"),
        (manifest(gpus=[{"name": "H200"}]), "manifest.gpus"),
        (manifest(limits={"nofile": 5}), "manifest.limits"),
        (
            {
                "machine_share": {
                    "server_cores": [0, 1],
                    "load_cores": [1],
                    "shared": True,
                    "threads": 2,
                }
            },
            "machine_share.server_cores ([0], ",
        ),
        (
            {"model": {"name": "llama", "path": "x", "planted": False}},
            "model.name (planted, llama)",
        ),
        (
            {
                "scenarios": {
                    "chat": {
                        "arrivals": "closed",
                        "users": 8,
                        "prompt_tokens": [16, 512],
                        "max_tokens": 11,
                    }
                }
            },
            "scenarios.chat.prompt_tokens",
        ),
    ],
)
def test_unlike_campaigns_are_refused_unless_anyway(tmp_path, capsys, changes, key):
    a, b = (one_case(tmp_path / name, **more) for name, more in (("a", {}), ("b", changes)))
    code, out, error = run(capsys, a, b)
    assert (
        code == 2 and out == "" and key in error and "--anyway" in error and error.count("\n") == 1
    )
    code, out, _ = run(capsys, a, b, "--anyway")
    assert code == 0 and "UNLIKE: " in out


def test_an_older_campaign_without_a_key_of_its_gpus_is_comparable(tmp_path):
    """But one with another value is not, and neither is one with another card."""
    older = {"name": "NVIDIA H200", "memory_bytes": 150 << 30, "driver": "580.1", "mig": False}
    newer = older | {"compute_capability": "9.0", "power_limit_w": 700.0, "driver_cuda": "13.0"}

    def differences(number, a, b):
        folders = [
            one_case(tmp_path / f"{name}{number}", **manifest(**each))
            for name, each in (("a", a), ("b", b))
        ]
        left, right = (summary.summarise(dataset.read_campaign(folder)) for folder in folders)
        return {d.key: d.unlike for d in compare.list_differences(left, right)}

    now = {"gpus": [newer], "torch_cuda": "13.0"}
    assert differences(1, {"gpus": [older]}, now) == differences(2, now, {"gpus": [older]}) == {}
    capped = {"gpus": [newer | {"power_limit_w": 500.0}], "torch_cuda": "12.8"}
    assert differences(3, now, capped) == {
        "manifest.gpus[0].power_limit_w": True,
        "manifest.torch_cuda": False,
    }
    found = differences(4, {"gpus": [older]}, {"gpus": [older, newer]})
    assert found["manifest.gpus[1].name"] and found["manifest.gpus[1].power_limit_w"]


def test_a_little_less_memory_is_the_same_machine(tmp_path):
    sizes = [
        {"memory": {"total_bytes": 16 * synthetic_campaign.GIB - n, "swap_bytes": 0}}
        for n in (0, 5 * 2**20)
    ]
    folders = [
        one_case(tmp_path / name, **manifest(**size))
        for name, size in zip("ab", sizes, strict=True)
    ]
    found = compare.list_differences(
        *(summary.summarise(dataset.read_campaign(folder)) for folder in folders)
    )
    assert found == []


def test_another_description_is_the_same_scenario(tmp_path):
    chat = {"arrivals": "closed", "users": 8, "prompt_tokens": [16, 512], "max_tokens": 10}
    folders = [
        one_case(tmp_path / name, scenarios={"chat": chat | {"summary": name}}) for name in "ab"
    ]
    assert (
        compare.list_differences(
            *(summary.summarise(dataset.read_campaign(folder)) for folder in folders)
        )
        == []
    )


def test_cases_of_only_one_campaign_are_named(tmp_path, capsys):
    a, b = synthetic_campaign.campaign(tmp_path / "a"), one_case(tmp_path / "b", "other")
    code, out, error = run(capsys, a, b)
    assert code == 1 and error == "no valid case of both campaigns: they have no case in common\n"
    assert (
        "Only in A: alpha (simulated), chat, 8 users; beta" in out
        and "Only in B: other (simulated), chat, 8 users" in out
    )


def test_another_device_of_the_engines_is_another_machine(tmp_path):
    """A campaign may compute on the CPU beside a GPU. Older campaigns did not record it."""
    on_gpu = {"engine_device": {"type": "cuda", "dtype": "bfloat16", "devices": []}}
    on_cpu = {"engine_device": {"type": "cpu", "dtype": "bfloat16", "devices": []}}
    folders = [tmp_path / name for name in "abc"]
    for folder, data in zip(folders, (on_gpu, on_cpu, {}), strict=True):
        one_case(folder, **data)
    a, b, older = (summary.summarise(dataset.read_campaign(folder)) for folder in folders)
    [found] = compare.list_differences(a, b)
    assert (found.key, found.a, found.b, found.unlike) == (
        "engine_device.type",
        "cuda",
        "cpu",
        True,
    )
    assert compare.list_differences(a, older) == []
