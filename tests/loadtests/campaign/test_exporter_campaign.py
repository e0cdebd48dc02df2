"""A campaign against a target on another machine, from a machine with a GPU: only what the target's
exporters report is shown as the server's.
"""

import json
from pathlib import Path

import pytest

from analysis import dataset, summary
from tests.helpers.campaign_process import Bench, is_complete, runs, table
from tests.helpers.endpoint_campaign import CALM, SCENARIOS
from tests.helpers.endpoint_script import Script, serve_script
from tests.helpers.exporter_texts import dcgm_text, exporting, node_text
from tests.helpers.fake_nvml import ONE_CARD, compile_driver
from tests.helpers.http_proxy import forwarding
from tests.helpers.metrics_server import exposing, says

OURS = "Fake 300"  # the GPU of this machine
KEY = "sk-of-the-target-0123456789"


@pytest.fixture
def with_card(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.environment |= {
        "LD_LIBRARY_PATH": compile_driver(tmp_path, ONE_CARD),
        "SERVEOFF_API_KEY": KEY,
    }
    (bench.folder / "endpoints.toml").write_text(SCENARIOS)
    return bench


def command(*arguments: str) -> tuple[str, ...]:
    return ("--scenarios-file", "endpoints.toml", "--scenarios", "chats", *arguments)


@pytest.mark.slow
def test_only_its_exporters_describe_a_server_elsewhere(with_card: Bench, tmp_path: Path) -> None:
    """A proxy's host resolves the target's name, so the target is elsewhere. The one named `bare`
    has no exporters.
    """
    with (
        serve_script(tmp_path / "endpoint", Script(**CALM)) as endpoint,
        exporting(dcgm_text) as gpus,
        exporting(node_text) as node,
        forwarding() as (proxy, _),
    ):
        done = with_card.run(
            *command("--proxy", proxy, "--duration", "8", "--report", "page", "--out", "out"),
            *("--target", f"bare={endpoint.url}", "--target", f"east={endpoint.url}/v1"),
            *("--gpu-metrics", f"east={gpus.url}?gpu=0", "--host-metrics", f"east={node.url}"),
        )
        asked = [*gpus.asked, *node.asked]
    assert is_complete(done.returncode, done.stderr), done.stdout + done.stderr
    out = with_card.folder / "out"
    found = summary.summarise(dataset.read_campaign(out))
    cases = found.table.set_index("server")
    bare, east = cases.loc["bare"], cases.loc["east"]
    own = [name for name in cases if name.startswith(("gpu_", "machine_", "server_"))]
    assert bare[own].isna().all() and bare["mbu"] != bare["mbu"]
    assert (east["gpu_utilization_percent"], east["gpu_power_w"]) == (87, 500.5)
    assert east["gpu_memory_bytes"] == 70000 * 2**20
    assert east["machine_cores"] == pytest.approx(1.5, rel=0.05)
    assert east["machine_memory_bytes"] == 32e9
    watts = east["output_tokens_per_s"] / east["gpu_tokens_per_joule"]
    assert watts == pytest.approx(500.5, rel=0.05)
    for folder, run in runs(out):
        rows = table(folder, "telemetry")
        where = run["server_machine"]
        assert where["here"] is False and run["gpus"] == ([0] if where["gpus"] else [])
        assert bool([row for row in rows if row["gpus"]]) is bool(where["gpus"])
        assert all(row["cpu_busy_s"] is None for row in rows if row["load"])
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert "1 × NVIDIA H100 80GB HBM3" in text and "3,350 GB/s" in text, "its peaks"
    for shown in (page, text):
        above, _, method = shown.partition("machine of the load generator")
        assert OURS not in above and OURS in method and "manifest.gpus" not in shown
    assert json.loads((out / "campaign.json").read_text())["manifest"]["gpus"][0]["name"] == OURS
    assert not any(KEY in str(headers) or "Authorization" in headers for _, headers in asked)


def test_an_exporter_without_an_answer_ends_the_command(with_card: Bench, tmp_path: Path) -> None:
    target = ("--target", "east=http://127.0.0.1:9/v1", "--target", "west=http://127.0.0.1:9/v1")
    with exposing() as server:
        server.answers = [says("", 404)]
        with_card.refuses(
            f"--gpu-metrics {server.url}/metrics: http 404: give the URL of a DCGM exporter",
            *command(*target, "--gpu-metrics", f"east={server.url}", "--out", "out"),
        )
    assert not (with_card.folder / "out").exists()
