"""The notebooks run on a campaign, and what they make opens without a network."""

import json
import re

import pytest

from analysis import execute
from tests.analysis import synthetic


# nbclient's and ipykernel's own asynchronous clean-up of sockets, which happens when the collector pleases.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:.*[Uu]nclosed.*:ResourceWarning")
@pytest.mark.timeout(300)
def test_notebooks_execute_into_the_campaigns_folder(tmp_path):
    folder = synthetic.campaign(tmp_path / "campaign")
    pages = execute.notebooks(folder)
    assert [page.stem for page in pages] == ["tail_latency", "throughput", "utilisation"]
    for page in pages:
        html = page.read_text()
        assert "data:image/png;base64," in html
        # What a browser would fetch; addresses in the style sheet's comments are none.
        assert not re.findall(r"""(?:src|href)\s*=\s*["']?https?:|@import|url\(["']?https?:|import\(""", html)
        assert not re.findall(r"<script[^>]*\bsrc=|<link", html)
        cells = json.loads(page.with_suffix(".ipynb").read_text())["cells"]
        assert all(output["output_type"] != "error" for cell in cells for output in cell.get("outputs", []))
    assert "alpha (simulated) carried the most" in pages[1].read_text()
