"""results/README.md explains every key on disk as loadtests/schema/ does, and lists the files that
analysis writes.
"""

from pathlib import Path

from analysis.report import notebooks, writer
from loadtests import schema
from tests.helpers import synthetic_campaign

README = (Path(__file__).parents[2] / "results" / "README.md").read_text()


def rows() -> list[str]:
    """The rows that the file must have. To fix it, print them: `python -m
    tests.analysis.test_results_readme`.
    """
    objects = (schema.CAMPAIGN_KEYS, schema.CALIBRATION_KEYS, schema.RUN_KEYS)
    keys = [f"| `{key}` | {meaning} |" for table in objects for key, meaning in table.items()]
    tables = (
        schema.REQUEST_FIELDS,
        schema.TELEMETRY_FIELDS,
        schema.PROCESS_FIELDS,
        schema.GPU_FIELDS,
        schema.SERVER_METRICS_FIELDS,
    )
    fields = [
        f"| `{key}` | {field.type} | {field.unit} | {field.meaning} |"
        for table in tables
        for key, field in table.items()
    ]
    return keys + fields


def test_every_key_on_disk_is_explained():
    assert [row for row in rows() if row not in README.splitlines()] == []
    assert f"Schema version {schema.SCHEMA}." in README


def test_every_explained_key_exists():
    tables = [line for line in README.splitlines() if line.startswith("| `")]
    files = [
        line
        for line in tables
        if line.split("`")[1].endswith(
            (
                ".json",
                ".jsonl",
                ".parquet",
                ".log",
                ".html",
                ".md",
                ".csv",
                "/",
                ".png",
                ".ipynb",
                ".xml",
            )
        )
    ]
    assert set(tables) - set(files) == set(rows())


def test_every_file_of_a_reported_campaign_is_listed(tmp_path):
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    writer.write_report(folder)
    made = {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"}
    made |= {f"notebooks/{source.stem}.html" for source in notebooks.SOURCES.glob("*.py")}
    assert [name for name in made if f"`{name}`" not in README] == []
    assert "one column a metric" in README


if __name__ == "__main__":
    print("\n".join(rows()))
