"""docs/results-format.md has a row for every key on disk, with the words of loadtests/schema/, and
lists the files that analysis makes. The page is generated; tests/test_docs.py has its freshness.
"""

import re
from pathlib import Path

import pytest

from analysis.report import writer
from loadtests import schema
from tests.helpers import synthetic_campaign

PAGE = (Path(__file__).parents[2] / "docs" / "results-format.md").read_text()


def meanings() -> list[tuple[str, str]]:
    """(key, meaning) of everything on disk."""
    objects = (schema.CAMPAIGN_KEYS, schema.CALIBRATION_KEYS, schema.RUN_KEYS)
    tables = (
        schema.REQUEST_FIELDS,
        schema.TELEMETRY_FIELDS,
        schema.PROCESS_FIELDS,
        schema.GPU_FIELDS,
        schema.SERVER_METRICS_FIELDS,
    )
    keys = [pair for table in objects for pair in table.items()]
    return keys + [(key, field.meaning) for table in tables for key, field in table.items()]


def explained() -> list[tuple[str, str]]:
    """(key, meaning) of each row of a table of keys."""
    tables = PAGE.partition("\n## campaign.json")[2]
    cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in re.findall(r"^\| `.*$", tables, re.M)]
    return [(row[0].strip(" `"), row[-1].strip().replace("\\", "")) for row in cells]


def test_every_key_on_disk_is_explained_and_no_other():
    assert sorted(explained()) == sorted(meanings())
    assert f"Schema version {schema.SCHEMA}," in PAGE


@pytest.mark.usefixtures("undrawn")
def test_every_file_of_a_reported_campaign_is_listed(tmp_path):
    from analysis.report import notebooks  # not in each process that collects tests: it is large

    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    writer.write_report(folder)
    made = {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"}
    made |= {f"notebooks/{source.stem}.html" for source in notebooks.SOURCES.glob("*.py")}
    assert [name for name in made if f"`{name}`" not in PAGE] == []
    assert "one column per metric" in PAGE
