import pytest

from analysis import load, observed
from analysis.observed import Observed
from tests.analysis import synthetic


@pytest.fixture
def observe(tmp_path):
    """Writes one case and reads it again, so that the files are part of what is tested."""

    def make(
        rows=None, samples=None, slo=None, data=None, lines=False, said=None, **changes
    ) -> Observed:
        folder = tmp_path / f"campaign-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        rows = synthetic.requests() if rows is None else rows
        run = synthetic.run(**{"served": synthetic.served(rows)} | changes)
        synthetic.records.write_json(
            folder / "campaign.json", synthetic.campaign_data([run["case"]], **(data or {}))
        )
        synthetic.write_case(
            folder, run, rows, synthetic.telemetry() if samples is None else samples, lines, said
        )
        return observed.observe(load.campaign(folder), 0, slo)

    return make
