import pytest

from analysis import load, metrics
from analysis.metrics import Observed
from tests.analysis import synthetic


@pytest.fixture
def observe(tmp_path):
    """Writes one case and reads it again, so that the files are part of what is tested."""

    def make(rows=None, samples=None, slo=None, data=None, lines=False, **changes) -> Observed:
        folder = tmp_path / f"campaign-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        run = synthetic.run(**changes)
        synthetic.records.write_json(folder / "campaign.json", synthetic.campaign_data([run["case"]], **(data or {})))
        synthetic.write_case(folder, run, synthetic.requests() if rows is None else rows,
                             synthetic.telemetry() if samples is None else samples, lines)  # fmt: skip
        return metrics.observe(load.campaign(folder), 0, slo)

    return make
