"""The report's first screen: the conclusion, the numbers that decide, and what could change it."""

import json
import math

import pytest

from analysis import dataset, hardware, summary
from analysis.report import writer
from tests.helpers import synthetic_campaign
from tests.studies import report_benchmark

pytestmark = pytest.mark.usefixtures("undrawn")


def view(folder, **options):
    return writer.build_view(summary.summarise(dataset.read_campaign(folder), **options))


def one_server(folder, engine="simulated", loads=(8,), gpus=0):
    folder.mkdir()
    cases = []
    for users in loads:
        rows = synthetic_campaign.requests()
        case = synthetic_campaign.run(
            len(cases), "alpha", users=users, served=synthetic_campaign.served(rows)
        )
        case["case"]["engine"] = engine
        cases.append(case)
        synthetic_campaign.write_case(folder, case, rows, synthetic_campaign.telemetry(gpus=gpus))
    synthetic_campaign.schema.write_json(
        folder / "campaign.json", synthetic_campaign.campaign_data([c["case"] for c in cases])
    )
    return folder


def test_a_contest_has_its_conclusion_its_numbers_and_its_doubts(tmp_path):
    first = view(synthetic_campaign.campaign(tmp_path / "campaign"))["first"]
    assert first["title"] == "Which server should run this model?"
    assert first["answers"][0].startswith("Under chat, 8 users, alpha sustained the highest")
    assert "(simulated)" not in first["answers"][0]
    (table,) = first["tables"]
    assert table["title"] == "chat, 8 users, 2 runs (±: 95% interval)"
    assert table["heads"] == [
        "server",
        "output, tokens/s",
        "95% of responses within, ms",
        "GPU busy, %",
    ], "one server has too few requests for a P99"
    assert [row[0] for row in table["rows"]] == ["alpha (simulated)", "beta (simulated)"]
    assert table["rows"][0][1].startswith("438 ±")
    assert first["figure"]["kind"] == "tail" and first["figure"]["first"]
    assert [c["severity"] for c in first["concerns"]][:2] == ["Invalid", "Warning"]
    assert first["concerns"][0]["text"].startswith(
        "gamma has no valid case: failed: load: the server died; delta has no valid case: skipped"
    )


def test_many_servers_show_the_best_of_each_family(tmp_path):
    folder = report_benchmark.campaign(tmp_path / "many", requests=1000, servers=16)
    found = view(folder)
    (table,) = found["first"]["tables"]
    assert table["title"].startswith("chat, 64 users, the best of each family")
    rows = [row[0].partition(":")[0] for row in table["rows"]]
    assert sorted(rows) == ["engines", "frameworks"] and table["more"] > 6
    (comparison,) = found["sweeps"][0]["comparisons"]
    assert comparison["families"] == rows, "the family of the best comes first"


def test_one_server_has_numbers_and_no_contest(tmp_path):
    folder = one_server(tmp_path / "campaign")
    found = view(folder)
    first = found["first"]
    assert first["title"] == "How fast is alpha?"
    (answer,) = first["answers"]
    assert answer == (
        "chat, 8 users: TTFT P99 50.0 ms (n = 320), E2E P99 150 ms (n = 320), 440 tokens/s."
    )
    (comparison,) = found["sweeps"][0]["comparisons"]
    assert not comparison["ranked"] and comparison["rows"][0]["rank"] is None
    writer.write_report(folder)
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text()
        assert "rank" not in text.partition("Can you trust")[0].partition("</style>")[2], name


def test_the_loads_of_one_server_are_the_rows(tmp_path):
    first = view(one_server(tmp_path / "campaign", loads=(4, 8)))["first"]
    (table,) = first["tables"]
    assert table["title"] == "chat, one run" and table["heads"][0] == "load"
    assert [row[:2] for row in table["rows"]] == [["4 users", "440"], ["8 users", "440"]]
    assert first["figure"]["kind"] == "curve-e2e"


def test_an_endpoint_is_called_by_its_address(tmp_path):
    folder = one_server(tmp_path / "campaign", "external")
    (path,) = folder.glob("cases/*/run.json")
    run = json.loads(path.read_text()) | {"profile": {"base_url": "http://127.0.0.1:8000/v1"}}
    synthetic_campaign.schema.write_json(path, run)
    assert view(folder)["first"]["title"] == "How fast is http://127.0.0.1:8000/v1?"


def test_no_column_is_empty(tmp_path):
    """Without a GPU there is no GPU column, on the first screen or below."""
    found = view(one_server(tmp_path / "without"))
    labels = [label for label, _, _ in found["sweeps"][0]["comparisons"][0]["headline"]]
    assert "GPU" not in labels and "server CPU" in labels
    assert found["first"]["tables"][0]["heads"][-1] == "CPU cores used"
    found = view(one_server(tmp_path / "with", gpus=1))
    labels = [label for label, _, _ in found["sweeps"][0]["comparisons"][0]["headline"]]
    assert "GPU" in labels and found["first"]["tables"][0]["heads"][-1] == "GPU busy, %"


def test_the_price_adds_the_cost_and_the_goodput_its_slo(tmp_path):
    price = hardware.read_machine_cost("2.50")
    found = view(one_server(tmp_path / "campaign"), machine_cost=price)
    assert found["first"]["tables"][0]["heads"][-1] == "cost per million good tokens, USD"
    units = {label: unit for label, unit, _ in found["sweeps"][0]["comparisons"][0]["headline"]}
    assert units["goodput"] == "1/s, if TTFT ≤ 1000 ms and TPOT ≤ 100 ms"


def test_definitions_are_of_what_the_page_shows(tmp_path):
    labels = {label for label, *_ in view(one_server(tmp_path / "campaign"))["definitions"]}
    assert {"output throughput", "TTFT P99", "E2E P99", "goodput"} <= labels
    assert not labels & {"GPU", "MBU", "cache hits", "slot wait P99", "visible TTFT P50"}


def test_several_loads_show_latency_over_load_and_the_highest_load(tmp_path):
    folder = report_benchmark.campaign(
        tmp_path / "campaign", 1000, 4, servers=5, loads=(16, 4), scenarios=("chat", "rag")
    )
    first = view(folder)["first"]
    assert first["figure"]["kind"] == "curve-e2e"
    assert [t["title"] for t in first["tables"]] == [
        "chat, 16 users, one run",
        "rag, 16 users, one run",
    ]
    assert [len(t["rows"]) for t in first["tables"]] == [3, 3]
    assert [t["more"] for t in first["tables"]] == [2, 2]
    assert "(n = " in first["tables"][0]["rows"][0][2], "one run has no interval"


def test_an_open_loop_is_about_latency(tmp_path):
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    found = summary.summarise(dataset.read_campaign(folder))
    found.table["users"], found.table["rate"] = math.nan, 3.0
    (table,) = writer.build_view(found)["first"]["tables"]
    assert table["heads"][1:3] == ["95% of responses within, ms", "95% of first tokens within, ms"]


def test_packages_are_one_line(tmp_path):
    rows = dict(view(one_server(tmp_path / "campaign"))["machine"])
    assert rows["manifest.packages"] == "locust 2.47"


def test_concerns_link_to_headings_that_exist(tmp_path):
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    found = writer.write_report(folder)
    page = (folder / "report.html").read_text()
    anchors = [c["anchor"] for c in writer.build_view(found)["first"]["concerns"]]
    assert anchors and all(f'id="{anchor}"' in page for anchor in anchors)
    assert page.index('class="concerns"') < page.index("<nav")
