import io

import markupsafe
import pytest
from PIL import Image

from analysis import case, dataset
from analysis.case import CaseData
from analysis.plots import style, vector
from analysis.report import comparison_section
from analysis.studies import accuracy_page
from tests.helpers import synthetic_campaign


@pytest.fixture
def observe(tmp_path):
    """Writes one case and reads it again, so that the files are part of what is tested."""

    def make(
        rows=None, samples=None, slo=None, data=None, lines=False, said=None, **changes
    ) -> CaseData:
        folder = tmp_path / f"campaign-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        rows = synthetic_campaign.requests() if rows is None else rows
        run = synthetic_campaign.run(**{"served": synthetic_campaign.served(rows)} | changes)
        synthetic_campaign.schema.write_json(
            folder / "campaign.json",
            synthetic_campaign.campaign_data([run["case"]], **(data or {})),
        )
        synthetic_campaign.write_case(
            folder,
            run,
            rows,
            synthetic_campaign.telemetry() if samples is None else samples,
            lines,
            said,
        )
        return case.read_case(dataset.read_campaign(folder), 0, slo)

    return make


def draw_nothing(patch):
    white = io.BytesIO()
    Image.new("RGB", (1, 1), "white").save(white, "png")
    for module in (style, accuracy_page):
        patch.setattr(module, "encode_png", lambda figure: white.getvalue())
    blank = vector.Vector(markupsafe.Markup('<svg data-points=""></svg>'), [])
    patch.setattr(vector, "encode_svg", lambda *_: blank)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures of one pixel, for tests of a page's words: drawing takes most of a report's time.
    test_report.py, test_page.py, test_accuracy_page.py and plots/ draw them.
    """
    draw_nothing(monkeypatch)


@pytest.fixture
def unillustrated(undrawn, monkeypatch):
    """Reports without the figures of their comparisons, for tests of other sections."""
    monkeypatch.setattr(comparison_section, "_figures", lambda *_: [])


@pytest.fixture(scope="module")
def all_undrawn():
    """As undrawn, for a whole module with the fixtures that its tests share."""
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        yield
