"""The unpaired gate: two campaigns measured one after the other, and stored baselines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import __main__ as command
from analysis import session
from analysis.dataset import InputError
from tests.helpers import synthetic_campaign


def test_two_campaigns_are_compared_and_unlike_ones_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, same, other = (
        repeated(tmp_path / "a"),
        repeated(tmp_path / "b"),
        repeated(tmp_path / "c", seed=8),
    )
    assert command.main(["gate", "--campaigns", str(base), str(same)]) == 0
    assert (
        "let a paired gate (--base) decide" in capsys.readouterr().out
        and (same / "gate.json").exists()
    )
    assert command.main(["gate", "--campaigns", str(base), str(other)]) == 2
    assert "they differ in seed (7, 8)" in capsys.readouterr().err
    assert (
        command.main(
            ["gate", "--campaigns", str(base), str(other), "--anyway", "--metrics", "e2e_p50_s"]
        )
        == 0
    )
    broken = synthetic_campaign.campaign(tmp_path / "d")  # some of its cases are invalid
    assert (
        command.main(
            ["gate", "--campaigns", str(broken), str(synthetic_campaign.campaign(tmp_path / "e"))]
        )
        == 2
    )
    assert "base: no valid case: failed: load: the server died" in capsys.readouterr().out


def repeated(folder: Path, factor: float = 1.0, **changes: Any) -> Path:
    """Five runs of alpha."""
    folder.mkdir(parents=True)
    cases = []
    for repetition, step in enumerate(np.random.default_rng(5).normal(0.01, 1e-5, 5) * factor, 1):
        n = int(4 / step)
        counts = {"sent": n, "rows": n, "locust_requests": n, "locust_failures": 0, "cut_off": 0}
        rows = synthetic_campaign.requests(n, n / 10, 5 * step, step)
        cases.append(
            synthetic_campaign.run(
                repetition,
                "alpha",
                repetition,
                counts=counts,
                served=synthetic_campaign.served(rows),
            )
        )
        synthetic_campaign.write_case(folder, cases[-1], rows, synthetic_campaign.telemetry())
    synthetic_campaign.schema.write_json(
        folder / "campaign.json",
        synthetic_campaign.campaign_data([case["case"] for case in cases], **changes),
    )
    return folder


def test_a_baseline_is_stored_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(["baseline", str(repeated(tmp_path / "a"))]) == 0
    assert (
        capsys.readouterr().out == "results/baselines/synthetic-4-cores-2026-11-20-0123abc.json\n"
    )
    assert (
        command.main(["baseline", str(tmp_path / "a")]) == 2
        and "exists: give another name" in capsys.readouterr().err
    )
    for factor, code in ((1.0, 0), (1.3, 1), (0.7, 0)):
        folder = repeated(tmp_path / f"b{factor}", factor)
        assert command.main(["gate", str(folder), "--baseline", "newest"]) == code, (
            capsys.readouterr().out
        )
        assert (
            command.main(
                ["gate", str(folder), "--baseline", "synthetic-4-cores-2026-11-20-0123abc"]
            )
            == code
        )
    capsys.readouterr()
    assert command.main(["gate", str(folder), "--baseline", "zzz"]) == 2
    assert (
        "there is no baseline 'zzz' in results/baselines: choose from synthetic-4-cores"
        in capsys.readouterr().err
    )
    assert command.main(["baseline", str(tmp_path / "b1.3"), "--name", "later"]) == 0
    assert command.main(["history"]) == 0
    assert (
        Path("results/baselines/history-synthetic-4-cores.png").read_bytes().startswith(b"\x89PNG")
    )


def test_a_baseline_s_name_is_checked_before_anything_is_measured(tmp_path: Path) -> None:
    def check(baseline: str | None, record: str | None) -> None:
        session.check_gate("", [], "", baseline, record, str(tmp_path))

    for name in ("zzz", "newest"):
        with pytest.raises(InputError, match=f"there is no baseline '{name}'"):
            check(name, None)
    (tmp_path / "mine.json").touch()
    check("mine", None)
    check("newest", None)
    with pytest.raises(InputError, match="exists: give another name"):
        check(None, "mine")
    with pytest.raises(InputError, match="cannot name a baseline"):
        check(None, "a/b")
    check(None, "other")


def test_an_invalid_campaign_cannot_become_a_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(["baseline", str(synthetic_campaign.campaign(tmp_path / "a"))]) == 2
    assert "cannot become a baseline: a case is invalid" in capsys.readouterr().err
    assert command.main(["history"]) == 2 and "there is no baseline" in capsys.readouterr().err
    Path("results/baselines").mkdir(parents=True)
    Path("results/baselines/broken.json").write_text("{}")
    assert command.main(["history"]) == 2 and "is not a baseline" in capsys.readouterr().err
