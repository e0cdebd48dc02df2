"""Prices and peaks on the report's page."""

import re

import pytest

from analysis import __main__
from tests.analysis.report.test_cost import MODEL, manifest
from tests.helpers import synthetic_campaign


def pages(folder, *options):
    assert __main__.main(["report", str(folder), "--no-notebooks", *options]) == 0
    return (folder / "report.html").read_text(), (folder / "report.md").read_text()


def section(text):
    return re.split(r'<h2 id="cost">Cost</h2>|## Cost\n', text)[1].partition("Noise floor")[0]


@pytest.fixture
def folder(tmp_path):
    return synthetic_campaign.campaign(tmp_path / "campaign")


def test_no_dollars_without_a_price(folder):
    for page in pages(folder):
        above = re.split('<h2 id="can-you-trust|## Can you trust', page)[0]
        assert "No price was given" in section(page) and "aws-g6.xlarge" in section(page)
        assert "no MBU and no MFU" in section(page) and "shape was not recorded" in section(page)
        assert "cost per million good tokens" not in above
        assert "tokens per joule" in above, "one server has a GPU whose energy was measured"
    table = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {
        "usd_per_million_tokens",
        "gpu_tokens_per_joule",
        "mbu",
        "mfu",
        "goodput_tokens_per_s",
    } <= set(table)


def test_a_price_that_is_given(folder, capsys):
    page, markdown = pages(folder, "--price", "2.50")
    for text in (page, markdown):
        assert (
            "Price: 2.5 USD per hour, given with the command." in section(text)
            and "No price" not in text
        )
    assert re.search(
        r"\| alpha \(simulated\), chat, 8 users \| 43\d(\.\d)? .*\| 1\.\d\d ", section(markdown)
    ), "2.50 / 3600 / 436 x 10^6"
    assert "| – |" in section(markdown), "no energy of the server without a GPU"
    assert "cost per million good tokens, USD |" in markdown.partition("Can you trust")[0]
    assert "USD for" in capsys.readouterr().out


def test_a_list_price_has_its_source_date_and_machine(folder):
    for text in pages(folder, "--price", "aws-g6.xlarge"):
        said = section(text)
        assert (
            "0.8048 USD per hour, the list price of aws-g6.xlarge (1 × L4) on 2026-02-09" in said
            and "AWS Price List" in said
        )
        assert "another machine: it has 1 × NVIDIA L4, and these results come from no GPU" in said
    for text in pages(folder, "--price", "aws-c7i.xlarge"):
        assert "another machine" not in section(text)


def test_the_page_names_the_gpus_that_are_used_and_those_that_are_not(tmp_path):
    folder = tmp_path / "campaign"
    folder.mkdir()
    case = synthetic_campaign.run(engine="hf", gpus=[1])
    synthetic_campaign.write_case(
        folder, case, synthetic_campaign.requests(), synthetic_campaign.telemetry(gpus=2)
    )
    data = synthetic_campaign.campaign_data([case["case"]], model=MODEL)
    data["manifest"] |= manifest("NVIDIA L4", "NVIDIA H200")["manifest"]
    synthetic_campaign.schema.write_json(folder / "campaign.json", data)
    for text in pages(folder):
        said = section(text)
        assert "stated for 1 × NVIDIA H200" in said and "stated for 1 × NVIDIA L4" not in said
        assert "use 1 × NVIDIA H200 of 1 × NVIDIA L4, 1 × NVIDIA H200 in this machine" in said
        assert "power of other GPUs" in text


def test_the_machine_behind_a_target_is_unknown(tmp_path):
    folder = tmp_path / "campaign"
    folder.mkdir()
    synthetic_campaign.write_case(
        folder,
        case := synthetic_campaign.run(engine="external"),
        synthetic_campaign.requests(),
        synthetic_campaign.telemetry(),
    )
    synthetic_campaign.schema.write_json(
        folder / "campaign.json", synthetic_campaign.campaign_data([case["case"]])
    )
    for text in pages(folder, "--price", "aws-g6.xlarge"):
        assert "0.8048 USD" in section(text) and "another machine" not in section(text)


def test_shares_of_the_limit_have_their_sources(tmp_path):
    folder = tmp_path / "campaign"
    folder.mkdir()
    rows = synthetic_campaign.requests()
    case = synthetic_campaign.run(engine="hf", served=synthetic_campaign.served(rows))
    synthetic_campaign.write_case(folder, case, rows, synthetic_campaign.telemetry())
    synthetic_campaign.schema.write_json(
        folder / "campaign.json", synthetic_campaign.campaign_data([case["case"]], model=MODEL)
    )
    for text in pages(folder, "--peak-bandwidth", "0.001", "--peak-flops", "0.001"):
        said = section(text)
        for shown in (
            "0.001 GB/s, given with the command",
            "0.001 TFLOP/s, given",
            "one per token",
            "appendix B",
            "Databricks",
            "3 layers",
        ):
            assert shown in said, shown
        assert "MBU, %" in text or "MBU<small>%" in text
    _, markdown = pages(folder, "--peak-flops", "0.001")
    assert (
        "MFU, % |" in markdown
        and "MBU, %" not in markdown
        and "forward passes, for" not in markdown
    )


def test_a_bad_option_is_one_sentence_and_exit_2(folder, capsys):
    assert __main__.main(["report", str(folder), "--price", "aws"]) == 2
    out, error = capsys.readouterr()
    assert "one of aws-c7i.xlarge" in error and error.count("\n") == 1 and out == ""
