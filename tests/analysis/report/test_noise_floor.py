"""The report shows the load generator's own errors, or that they were not measured."""

import pytest

from analysis.report import noise_floor_section, writer
from loadtests import schema
from tests.helpers import synthetic_campaign

pytestmark = pytest.mark.usefixtures("unillustrated")


def pages(tmp_path, calibration=None):
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    if calibration is not None:
        schema.write_json(folder / "calibration.json", calibration)
    writer.write_report(folder)
    return (folder / "report.html").read_text(), (folder / "report.md").read_text()


def test_both_pages_show_the_errors(tmp_path):
    page, markdown = pages(tmp_path, synthetic_campaign.calibration(8, 12.5, failed=3))
    section = markdown.partition("## Noise floor")[2].partition("\n## ")[0]
    for shown in (
        "| the load generator's own error | closed loop, 8 users | open loop, 12.5 requests/s |",
        "| requests; failed | 400; 3 | 400; 3 |",
        "| TTFT, measured minus true: mean, P99 | 0.050 ms, 0.400 ms | 0.050 ms, 0.400 ms |",
        "mean, P99 | 0.004 ms, 0.011 ms |",
        "off by: P99 | 0.012 ms |",
        "P50, P99 | 0.040 ms, 0.300 ms |",
        "| 25.0 us |",
        "| 0.400% |",
        "The load generator measured up to 4,000 events/s correctly; no higher rate was tried.",
        "A case with more than 5% is invalid.",
        "| alpha (simulated), chat, 8 users, run 1 | at most 0.0% (TTFT P50) |",
    ):
        assert shown in section, shown
    assert "not measured before this campaign" not in section
    section = page.partition('<h2 id="noise-floor">')[2].partition("<h2")[0]
    assert (
        '<th scope="col" class="n">open loop, 12.5 requests/s</th>' in section
        and '<td class="n">0.050 ms, 0.400 ms</td>' in section
    )
    assert section.count("<tr>") == 2 + len(noise_floor_section.ROWS) + 4, (
        "two headings, the table, and the four cases that ended"
    )


def test_one_kind_of_load_has_one_column(tmp_path):
    _, markdown = pages(tmp_path, synthetic_campaign.calibration(None, 4.0))
    assert (
        "| the load generator's own error | open loop, 4 requests/s |\n| --- | ---: |\n" in markdown
    )


def test_nothing_was_calibrated(tmp_path):
    for text in pages(tmp_path):
        section = text.rpartition("Noise floor")[2].partition("How it was measured")[0]
        assert "were not measured before this campaign" in section and "--no-calibration" in section
        assert (
            "own error |" not in section and "but the load generator was not calibrated" in section
        )


def test_a_missing_value_is_a_dash(tmp_path):
    nothing = dict.fromkeys(
        ("ttft_error_mean_s", "ttft_error_p99_s", "cpu_per_event_s", "waited_share")
    )
    _, markdown = pages(tmp_path, synthetic_campaign.calibration(**nothing, requests=0))
    assert "| –, – |" in markdown and "| – us |" in markdown and "| –% |" in markdown


def steps(*said):
    """(asked, server kept up, sustained)"""
    return [
        {"asked_per_s": asked, "server_kept_up": kept_up, "sustained": sustained}
        for asked, kept_up, sustained in said
    ]


@pytest.mark.parametrize(
    ("ladder", "sustained", "sentence"),
    [
        ([], 0, ""),
        (
            steps((2000, True, True), (4000, True, True)),
            4000,
            "The load generator measured up to 4,000 events/s correctly; no higher rate was tried.",
        ),
        (
            steps((2000, True, True), (4000, True, False)),
            2000,
            (
                "The load generator measured up to 2,000 events/s correctly; 4,000 events/s exceed"
                " its limit."
            ),
        ),
        (
            steps((2000, True, True), (4000, False, False)),
            2000,
            (
                "The load generator measured up to 2,000 events/s correctly; the ground truth"
                " server could not send 4,000, so the load generator's limit is higher."
            ),
        ),
        (
            steps((2000, True, False), (4000, True, True)),
            0,
            (
                "The load generator did not measure even the lowest rate of events correctly;"
                " 2,000 events/s exceed its limit."
            ),
        ),
    ],
)
def test_the_limit_is_named(ladder, sustained, sentence):
    assert (
        noise_floor_section.describe_load_steps(
            {"ladder": ladder, "sustained_events_per_s": sustained}
        )
        == sentence
    )
