"""The report exists, is complete, escapes its values and needs no network, also for an unfinished
campaign.
"""

import base64
import hashlib
import io
import json
import math
import re
import shutil
from urllib.parse import unquote

import pandas as pd
import pytest
from rich.console import Console

from analysis import __main__, conclusions, dataset, formatting, summary
from analysis.metrics import METRICS
from analysis.plots import figures
from analysis.report import terminal, writer
from tests.helpers import synthetic_campaign
from tests.helpers.synthetic_campaign import ATTACK, spoilt


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = synthetic_campaign.campaign(tmp_path_factory.mktemp("results") / "synthetic")
    return writer.write_report(folder)


def text(found, name="report.html"):
    return (found.campaign.folder / name).read_text()


def test_the_scale_of_the_gpu_has_room_beside_the_next_picture(made):
    drawn = figures.draw_timeline(made, summary.build_comparisons(made)[0])
    drawn.figure.draw_without_rendering()
    labels = [
        axes.yaxis.label for axes in drawn.figure.axes if axes.get_ylabel() in ("GPU %", "requests")
    ]
    boxes = [label.get_window_extent() for label in labels]
    assert "GPU %" in [label.get_text() for label in labels]
    assert not [1 for i, box in enumerate(boxes) for other in boxes[:i] if box.overlaps(other)]
    assert all(
        axes.xaxis.label.get_window_extent().x1 <= drawn.figure.bbox.x1
        for axes in drawn.figure.axes
    )


def test_files(made):
    folder = made.campaign.folder
    assert {p.name for p in folder.iterdir()} == {
        "campaign.json",
        "cases",
        "figures",
        "metrics.csv",
        "report.html",
        "report.md",
    }
    figures = {p.name for p in (folder / "figures").iterdir()}
    kinds = ("throughput", "heat-map", "tail", "latency-cdf", "timeline", "why")
    assert figures == {f"1-chat-8-users-{kind}.png" for kind in kinds} | {"1-chat-pareto.png"}
    assert set(re.findall(r"\(figures/([^)]+)\)", text(made, "report.md"))) == figures
    table = pd.read_csv(folder / "metrics.csv", index_col="index")
    assert len(table) == 8 and set(METRICS) <= set(table)
    assert table.loc[0, "output_tokens_per_s"] == pytest.approx(440, rel=0.01)


def test_the_conclusion_comes_first_and_every_case_is_shown(made):
    page = text(made)
    answer = "alpha sustained the highest output throughput"
    assert page.index(answer) < page.index("<table")
    for name in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta"):
        assert f'<th scope="row">{name}<small>simulated' in page
    for reason in (
        "failed: load: the server died",
        "skipped: nginx is missing",
        "still running, or killed",
        "not started",
        "n too small (n=152)",
        "not complete",
        "no NVIDIA GPU",
        "TTFT ≤ 1000 ms and TPOT ≤ 100 ms",
        "0123abc",
        "prompt_tokens",
        "verify again 2.0 s",
    ):
        assert reason in page, reason
        assert reason in text(made, "report.md") or "_" in reason, reason


def test_opens_without_a_network(made):
    page = text(made)
    assert not re.findall(
        r"""(?:src|href)\s*=\s*["']?(?!["']|data:|#|link\.)""",
        re.sub("(link.href|image.src) =", "", page),
    )
    assert not re.findall(r"https?://|@import|url\((?!#)|<script .", page)
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(script) == 1, "the page's own policy allows only this one, by its hash"
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src"
        f" 'sha256-{digest}'" in page
    )


def test_each_figure_carries_its_data(made):
    links = dict(
        re.findall(
            r'<a download="([^"]+)\.csv" href="data:text/csv;charset=utf-8,([^"]+)">', text(made)
        )
    )
    assert set(links) == {f.stem for f in (made.campaign.folder / "figures").iterdir()}
    data = {stem: pd.read_csv(io.StringIO(unquote(link))) for stem, link in links.items()}
    assert list(data["1-chat-8-users-throughput"]["output_tokens_per_s"].round()) == [
        440,
        436,
        220,
        209,
    ]
    cdf = data["1-chat-8-users-latency-cdf"]
    assert cdf.groupby(["server", "repetition"]).ngroups == 4 and cdf[
        "ttft_s"
    ].min() == pytest.approx(0.05)
    pareto = data["1-chat-pareto"]
    assert list(pareto["on_frontier"]) == [True, False] and pareto["user_tokens_per_s"][
        0
    ] == pytest.approx(99.5, abs=0.1)


def hostile(folder):
    """A campaign in which every text from outside tries to be markup: from servers, users,
    telemetry and the machine.
    """
    synthetic_campaign.campaign(folder)
    for file in [folder / "campaign.json", *folder.glob("cases/*/run.json")]:
        synthetic_campaign.schema.write_json(file, spoilt(json.loads(file.read_text())))
    failed = synthetic_campaign.run(9, "failing")
    rows = synthetic_campaign.requests()
    for row in rows[::2]:
        synthetic_campaign.fail(row, ATTACK)
    said = [
        row | {"name": row["name"] and row["name"] + ATTACK, "labels": ATTACK}
        for row in synthetic_campaign.server_metrics()
    ]
    place = synthetic_campaign.write_case(
        folder, failed, rows, synthetic_campaign.telemetry(), said=said
    )
    failed = spoilt(failed | {"notes": ["telemetry: "], "agreement": False})
    failed["verify_after"] = [{"name": f"models{ATTACK}", "ok": False, "detail": ATTACK}]
    synthetic_campaign.schema.write_json(
        place / "run.json", failed | {"status": f"failed: load: {ATTACK}"}
    )
    data = json.loads((folder / "campaign.json").read_text())
    data["plan"].append(failed["case"])
    data["manifest"]["dirty"] = True
    synthetic_campaign.schema.write_json(folder / "campaign.json", data)
    return folder


def test_everything_is_escaped(tmp_path):
    found = writer.write_report(hostile(tmp_path / "campaign"))
    page, markdown = text(found), text(found, "report.md")
    assert page.count("<script") == 1 and "<script>alert" not in page and "<script" not in markdown
    assert page.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;") > 10
    tables = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    assert len(tables) > 5
    for table in tables:  # An unescaped bar in a cell would start a column.
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    console = Console(width=120, record=True, file=io.StringIO())
    terminal.show_summary(found, console)
    assert "<script>" in console.export_text()
    assert "uncommitted changes" in page


@pytest.mark.usefixtures("undrawn")
def test_a_campaign_that_only_began(tmp_path):
    folder = tmp_path / "campaign"
    folder.mkdir()
    synthetic_campaign.schema.write_json(
        folder / "campaign.json",
        synthetic_campaign.campaign_data([synthetic_campaign.run()["case"]]),
    )
    found = writer.write_report(folder)
    assert "alpha has no valid case: planned: not started." in text(found)
    synthetic_campaign.schema.write_json(
        folder / "campaign.json", synthetic_campaign.campaign_data([])
    )
    assert "has no case yet" in text(writer.write_report(folder))


@pytest.mark.usefixtures("undrawn")
def test_invalid_is_neither_a_number_nor_slow(tmp_path):
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    for path in sorted(folder.glob("cases/*alpha*/run.json")):
        run = json.loads(path.read_text())
        synthetic_campaign.schema.write_json(path, run | {"verify_after": None})
    found = writer.write_report(folder)
    (comparison,) = summary.build_comparisons(found)
    assert comparison.systems[0].server == "beta"
    assert (
        conclusions.describe_result(comparison)
        .split(", and ")[1]
        .startswith(
            "there is nothing to compare it with: alpha (simulated) has no valid case: contract: it"
            " was not verified after the load; "
        )
    )
    assert "invalid</span> contract: it was not verified after the load" in text(found)
    # The data keep the number.
    assert not found.table.loc[0, "valid"] and found.table.loc[0, "output_tokens_per_s"] > 0


def test_a_percentile_that_is_a_failed_request_is_not_compared(tmp_path):
    """It was reported as "0 times that of beta"."""
    found = summary.summarise(
        dataset.read_campaign(synthetic_campaign.campaign(tmp_path / "campaign"))
    )
    found.table["users"], found.table["rate"] = math.nan, 3.0
    found.table.loc[found.table["server"] == "beta", "e2e_p95_s"] = math.inf
    (comparison,) = summary.build_comparisons(found)
    said = conclusions.describe_result(comparison)
    assert "alpha (simulated) has an E2E P95 of " in said and " times" not in said
    assert (
        ", and there is nothing to compare it with: too many requests of beta (simulated) failed;"
        " gamma (simulated) has no valid case: failed: load: the server died;" in said
    )
    found.table["e2e_p95_s"] = math.inf
    (comparison,) = summary.build_comparisons(found)
    assert conclusions.describe_result(comparison).startswith(
        "Under chat, 3 requests/s, no server has a finite E2E P95: too many requests failed."
        " Not ranked: gamma (simulated) has no valid case: failed: load: the server died;"
    )


@pytest.mark.usefixtures("undrawn")
def test_warnings_stand_below_the_table_as_well(tmp_path):
    found = writer.write_report(synthetic_campaign.campaign(tmp_path / "campaign"))
    warned = {
        c["name"]
        for c in found.checks[
            found.checks["ok"].eq(False) & found.checks["severity"].eq("warning")
        ].to_dict("records")
    }
    console = Console(width=200, record=True, file=io.StringIO())
    terminal.show_summary(found, console)
    said = re.findall(
        r"^warning: (.+), in (\d+) of (\d+) cases: ", console.export_text(), re.MULTILINE
    )
    assert (
        warned
        and {name for name, *_ in said} == warned
        and all(0 < int(n) <= int(of) == len(found.table) for _, n, of in said)
    )


def ranks(tmp_path, speeds, **load_changes):
    folder = tmp_path / "campaign"
    folder.mkdir()
    cases = []
    for server, steps in speeds.items():
        for repetition, step in enumerate(steps, 1):
            n = int(4 / step)
            cases.append(
                synthetic_campaign.run(
                    len(cases),
                    server,
                    repetition,
                    counts={"sent": n, "rows": n, "locust_requests": n, "cut_off": 0},
                    **load_changes,
                )
            )
            synthetic_campaign.write_case(
                folder,
                cases[-1],
                synthetic_campaign.requests(n, n / 10, 5 * step, step),
                synthetic_campaign.telemetry(),
            )
    synthetic_campaign.schema.write_json(
        folder / "campaign.json", synthetic_campaign.campaign_data([c["case"] for c in cases])
    )
    (comparison,) = summary.build_comparisons(summary.summarise(dataset.read_campaign(folder)))
    return {s.server: s.rank for s in comparison.systems}, conclusions.describe_result(comparison)


def test_responses_of_one_token_make_a_report(tmp_path):
    """They have no TPOT, so no figure of it."""
    folder = tmp_path / "campaign"
    folder.mkdir()
    case = synthetic_campaign.run(0, "alpha")
    synthetic_campaign.write_case(
        folder, case, synthetic_campaign.requests(tokens=1), synthetic_campaign.telemetry()
    )
    synthetic_campaign.schema.write_json(
        folder / "campaign.json", synthetic_campaign.campaign_data([case["case"]])
    )
    found = writer.write_report(folder)
    assert found.table["valid"].all() and text(found).count("<svg role=") == 5


def test_ties_are_ties(tmp_path):
    found, answer = ranks(
        tmp_path, {"alpha": [0.010, 0.012], "beta": [0.011, 0.0125], "gamma": [0.10, 0.101]}
    )
    assert found["alpha"] == found["beta"] == 1
    assert "a tie with beta (simulated)" in answer
    (tmp_path / "many").mkdir()
    _, answer = ranks(tmp_path / "many", {name: [0.010, 0.012] for name in "abcdefg"})
    assert "c (simulated), d (simulated), e (simulated) and 2 more: the" in answer


def test_a_single_run_is_named_as_one(tmp_path):
    found, answer = ranks(tmp_path, {"alpha": [0.010], "beta": [0.020]})
    assert found == {"alpha": 1, "beta": 2}
    assert "(one run)" in answer and "±" not in answer and "no interval" in answer


def test_single_runs_tie_if_two_starts_of_one_server_may_differ_as_much(tmp_path):
    found, answer = ranks(tmp_path, {"alpha": [0.0100], "beta": [0.0108], "gamma": [0.020]})
    assert found == {"alpha": 1, "beta": 1, "gamma": 3}
    assert "a tie with beta (simulated): two starts of one server may differ as much" in answer


def test_an_open_loop_is_judged_by_latency(tmp_path):
    """All servers get the same load, so throughput only repeats the demand: here the slower server
    happens to have more.
    """
    found, answer = ranks(tmp_path, {"alpha": [0.0200], "beta": [0.0160]}, users=None, rate=20.0)
    assert found == {"alpha": 2, "beta": 1}
    assert "beta (simulated) had the lowest E2E P95" in answer


def test_numbers_as_text():
    shown = {
        0: "0",
        0.1234: "0.123",
        12.345: "12.3",
        999.6: "1,000",
        9.9999: "10.0",
        1234567: "1,234,567",
        math.nan: "–",
        math.inf: "∞",
        -0.05: "-0.0500",
    }
    assert {value: formatting.format_number(value) for value in shown} == shown


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: shutil.rmtree(folder), "no campaign at"),
        (
            lambda folder: (folder / "campaign.json").write_text('{"schema": 99}'),
            "schema version 99",
        ),
        (lambda folder: (folder / "campaign.json").write_text("{"), "is not JSON"),
        (
            lambda folder: next(folder.glob("cases/*gamma*/requests.jsonl")).write_text(
                "{broken\n{}\n"
            ),
            "broken line",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(tmp_path, capsys, spoil, sentence):
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    spoil(folder)
    assert __main__.main(["report", str(folder), "--no-notebooks"]) == 2
    out, error = capsys.readouterr()
    assert sentence in error and error.count("\n") == 1 and out == ""


@pytest.mark.usefixtures("undrawn")
def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert __main__.main(["report", "--no-notebooks"]) == 2
    assert "no campaign in results" in capsys.readouterr().err
    synthetic_campaign.campaign(tmp_path / "results" / "one", created_utc="2026-11-19T10:00:00Z")
    newest = synthetic_campaign.campaign(tmp_path / "results" / "a-newer-one")
    assert __main__.main(["report", "--no-notebooks", "--slo", "ttft=1ms"]) == 0
    out = capsys.readouterr().out
    assert "\nresults/a-newer-one/report.html\n\nNext steps:\n" in out
    assert "with TTFT ≤ 1 ms (the SLO)" in (newest / "report.html").read_text()
    assert __main__.main(["report", "--slo", "fast"]) == 2
    assert "write it as" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_scenario_is_described_as_it_was_measured(tmp_path):
    """Options may have replaced its load and its length."""
    folder = synthetic_campaign.campaign(tmp_path / "campaign")
    data = synthetic_campaign.schema.read_json(folder / "campaign.json")
    data["scenarios"]["chat"] |= {"users": 1, "duration_s": 99.0}
    synthetic_campaign.schema.write_json(folder / "campaign.json", data)
    writer.write_report(folder)
    method = (folder / "report.md").read_text().partition("## How it was measured")[2]
    assert "| users | 8 |" in method and "99" not in method.partition("#### Definitions")[0]
