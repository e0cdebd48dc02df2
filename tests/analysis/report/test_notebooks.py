"""The notebooks run on a campaign, and what they make opens without a network."""

import json
import re

import pytest

from analysis.report import notebooks
from loadtests import schema
from tests.helpers import synthetic_campaign

# nbclient's and ipykernel's own asynchronous clean-up of sockets, which happens when the collector
# pleases.
CLEANUP = (
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:.*[Uu]nclosed.*:ResourceWarning",
)


@pytest.mark.filterwarnings(*CLEANUP)
@pytest.mark.timeout(300)
def test_notebooks_execute_into_the_campaigns_folder(tmp_path):
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    pages = notebooks.run_notebooks(folder)
    assert [page.stem for page in pages] == ["tail_latency", "throughput", "utilisation"]
    for page in pages:
        html = page.read_text()
        assert "data:image/png;base64," in html
        # What a browser would fetch; addresses in the style sheet's comments are none.
        assert not re.findall(
            r"""(?:src|href)\s*=\s*["']?https?:|@import|url\(["']?https?:|import\(""", html
        )
        assert not re.findall(r"<script[^>]*\bsrc=|<link", html)
        cells = json.loads(page.with_suffix(".ipynb").read_text())["cells"]
        assert all(
            output["output_type"] != "error" for cell in cells for output in cell.get("outputs", [])
        )
    assert "alpha (simulated) sustained the most" in pages[1].read_text()


@pytest.mark.slow  # the notebooks a second time
@pytest.mark.filterwarnings(*CLEANUP)
@pytest.mark.timeout(300)
def test_notebooks_of_a_campaign_without_any_number(tmp_path):
    """Such as one whose load generator stood still in every case."""
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
