"""The notebooks run on a campaign, and their pages open without a network."""

import json
import re

import pytest

from analysis import dataset, summary
from analysis.formatting import tabulate_metrics
from analysis.metrics import METRICS
from loadtests import schema
from tests.helpers import synthetic_campaign

# The garbage collector may clean up the sockets of nbclient and ipykernel at any time.
CLEANUP = (
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:.*[Uu]nclosed.*:ResourceWarning",
)


@pytest.mark.filterwarnings(*CLEANUP)
@pytest.mark.timeout(300)
def test_notebooks_run_into_the_folder_of_the_campaign(tmp_path):
    from analysis.report import notebooks  # not in each process that collects tests: it is large

    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    pages = notebooks.run_notebooks(folder)
    assert [page.stem for page in pages] == ["tail_latency", "throughput", "utilisation"]
    for page in pages:
        html = page.read_text()
        assert "data:image/png;base64," in html
        # A browser fetches these, but no addresses in comments of the style sheet.
        assert not re.findall(
            r"""(?:src|href)\s*=\s*["']?https?:|@import|url\(["']?https?:|import\(""", html
        )
        assert not re.findall(r"<script[^>]*\bsrc=|<link", html)
        cells = json.loads(page.with_suffix(".ipynb").read_text())["cells"]
        assert all(
            output["output_type"] != "error" for cell in cells for output in cell.get("outputs", [])
        )
    assert "alpha (simulated) sustained the highest" in pages[1].read_text()
    assert "Which cases are invalid, and why?" in pages[1].read_text()
    utilisation = pages[2].read_text()
    assert ", MiB</th>" in utilisation and "<td>1,072</td>" in utilisation
    assert "How busy is the GPU" in utilisation
    assert not re.findall(r"\de\+\d\d", utilisation)
    # The campaign has one load per scenario, so this question has no answer.
    assert "How does the tail grow" not in pages[0].read_text()


def test_a_table_of_metrics_has_units_and_only_known_columns(tmp_path):
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    valid = summary.summarise(dataset.read_campaign(folder), frames=False).valid
    names = ["server_peak_bytes", "gpu_power_w", "ttft_p99_s", "mfu"]
    table = tabulate_metrics(valid, names)
    assert table is not None
    labels = [METRICS[name].label for name in names]
    assert table.columns.tolist() == [f"{labels[0]}, MiB", f"{labels[1]}, W", f"{labels[2]}, ms"]
    assert table.index.tolist() == [
        ("chat, 8 users", "alpha (simulated)", 2),
        ("chat, 8 users", "beta (simulated)", 2),
    ]
    assert table.iloc[0].tolist() == ["1,072", "–", "50.3 ±3.2"]
    per_run = tabulate_metrics(valid, names, per_run=True)
    assert per_run is not None and per_run.index.get_level_values("run").tolist() == [1, 2, 1, 2]
    assert tabulate_metrics(valid, ["mfu"]) is None
    assert tabulate_metrics(valid.iloc[:0], names) is None


@pytest.mark.slow  # Runs the notebooks a second time.
@pytest.mark.filterwarnings(*CLEANUP)
@pytest.mark.timeout(300)
def test_notebooks_of_a_campaign_without_a_valid_case(tmp_path):
    """Such as one whose load generator stood still in every case."""
    from analysis.report import notebooks

    plan = [synthetic_campaign.run(0, users=8), synthetic_campaign.run(1, users=16)]
    folder = tmp_path / "campaign"
    folder.mkdir()
    for case in plan:
        synthetic_campaign.write_case(
            folder, case, synthetic_campaign.requests(50), synthetic_campaign.telemetry(2)
        )
    schema.write_json(
        folder / "campaign.json", synthetic_campaign.campaign_data([case["case"] for case in plan])
    )
    pages = notebooks.run_notebooks(folder)
    assert "alpha (simulated) has no valid case" in pages[1].read_text()
    assert "How much does each server sustain?" not in pages[1].read_text()
