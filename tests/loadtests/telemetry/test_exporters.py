"""Exporters on real sockets, with the texts that they write: columns equal to what they report, and
nothing of this machine beside them.
"""

import os
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from loadtests import schema
from loadtests.telemetry import exporters, server_machine
from loadtests.telemetry.exporter_formats import MACHINE_FIELDS, read_cards, read_host
from loadtests.telemetry.exporters import (
    Checked,
    ExporterError,
    ExporterReader,
    check_exporters,
    exporter_environment,
    parse_exporter,
)
from loadtests.telemetry.server_machine import find_forwarder, find_machine, is_own_address
from loadtests.telemetry.server_metrics import MetricsUnavailable
from tests.helpers.campaign_process import wait_for
from tests.helpers.exporter_texts import AMD, dcgm_text, exporting, node_text
from tests.helpers.metrics_server import Server, exposing, says

MIB = 2**20
KEY = "sk-of-the-target-0123456789"


def check(kind: str, url: str) -> Checked:
    return check_exporters([parse_exporter(kind, url, False, None)])


def test_columns_are_what_a_dcgm_exporter_reports() -> None:
    first, second = read_cards(dcgm_text())
    assert first.values == dict.fromkeys(schema.GPU_FIELDS) | {
        "utilization_percent": 87,
        "memory_used_bytes": 70000 * MIB,
        "power_w": 500.5,
        "energy_j": pytest.approx(15152422.938),
        "sm_clock_mhz": 1980,
        "temperature_c": 61,
        "throttle_reasons": 4,
        "memory_clock_mhz": 2619,
    }
    assert (first.name, first.host, first.gpu) == ("NVIDIA H100 80GB HBM3", "node-1", "0")
    assert first.memory_bytes == (70000 + 10559 + 1000) * MIB
    assert (second.uuid, second.values["power_w"]) == ("GPU-bbbbbbbb", 120)


def test_columns_are_what_amd_s_exporter_reports() -> None:
    newer = AMD.replace("GPU_CLOCK_TYPE_SYSTEM", "system").replace("GPU_CLOCK_TYPE_MEM", "mem")
    for text in (AMD, AMD.replace("\ngpu_", "\namd_gpu_"), newer):
        (card,) = read_cards(text)
        assert card.values == dict.fromkeys(schema.GPU_FIELDS) | {
            "utilization_percent": 93,
            "memory_used_bytes": 183265 * MIB,
            "power_w": 748,
            "energy_j": pytest.approx(1.5e7),
            "sm_clock_mhz": 132,
            "temperature_c": 76,
            "memory_clock_mhz": 900,
        }
        assert (card.name, card.gpu, card.memory_bytes) == (
            "AMD Instinct MI300X OAM",
            "3",
            196592 * MIB,
        )


def test_columns_are_what_a_node_exporter_reports() -> None:
    columns, machine = read_host(node_text())
    assert columns == {
        "cpu_busy_s": 1 + 2 + 3 + 100 + 400 + 600,  # as for this machine, without a wait for a disk
        "cpu_steal_s": 8,
        "load_average": 3.25,
        "memory_available_bytes": 32 * 10**9,
        "swap_used_bytes": 2 * 10**9,
    }
    assert machine == {"cores": 2, "memory_bytes": 64 * 10**9}
    assert tuple(columns) == MACHINE_FIELDS


def test_values_that_are_not_of_the_whole_card_or_not_known_are_null() -> None:
    """DCGM's blanks; instances of MIG; partitions; a card that two pods share."""
    blank = dcgm_text(gpus=(0,)).replace(" 61\n", " 9223372036854775794\n")
    blank = blank.replace("} 1980\n", "} 2147483632\n").replace("} 87\n", "} NaN\n")
    (card,) = read_cards(blank)
    unknown = ("temperature_c", "sm_clock_mhz", "utilization_percent")
    assert [card.values[name] for name in unknown] == [None] * 3 and card.values["power_w"] == 500.5
    parts = "".join(
        dcgm_text(gpus=(0,)).replace('",Hostname', f'",GPU_I_PROFILE="1g",GPU_I_ID="{n}",Hostname')
        for n in (7, 8)
    )
    (card,) = read_cards(parts)
    assert (card.values["memory_used_bytes"], card.memory_bytes) == (None, None)
    assert (card.values["utilization_percent"], card.values["power_w"]) == (None, 500.5)
    shared = "".join(
        dcgm_text(gpus=(0,)).replace('",Hostname', f'",pod="p{n}",Hostname') for n in (1, 2)
    )
    assert [card.values["power_w"] for card in read_cards(shared)] == [500.5]
    second = AMD.replace('"spx"', '"cpx"').replace('partition_id="0"', 'partition_id="1"')
    (card,) = read_cards(second.replace("} 748", "} 0"))
    assert (card.values["power_w"], card.values["utilization_percent"]) == (None, None)
    assert card.values["memory_used_bytes"] == 183265 * MIB


def test_gpus_are_chosen_by_number_or_uuid_and_keep_their_numbers() -> None:
    with exporting(dcgm_text) as server:
        everything = check("gpu", server.url)
        assert [card["index"] for card in everything.gpus] == [0, 1]
        assert "all 2 GPUs" in everything.notes[0] and "?gpu=0,1" in everything.notes[0]
        for choice in ("1", "GPU-bbbbbbbb"):
            chosen = check("gpu", f"{server.url}/metrics?gpu={choice}")
            (card,) = chosen.gpus
            assert (card["index"], card["uuid"], chosen.notes) == (1, "GPU-bbbbbbbb", [])
        with pytest.raises(ExporterError, match=r"has no GPU 4: choose from 0, 1$"):
            check("gpu", f"{server.url}?gpu=0,4")
        two = [parse_exporter("gpu", server.url, False, None) for _ in range(2)]
        numbers = [card["index"] for card in check_exporters(two).gpus]
        assert numbers == [0, 1, 2, 3], "two machines number their cards alike"
        assert {path for path, _ in server.asked} == {"/metrics"}, "?gpu= is not for the exporter"


@pytest.mark.parametrize(
    ("kind", "text", "status", "words"),
    [
        ("gpu", "", 404, "http 404: give the URL of a DCGM exporter"),
        ("gpu", node_text(), 200, "no series of a GPU that is known: give the URL of a DCGM"),
        ("gpu", "<html>Sign in</html>", 200, "no series of a GPU that is known"),
        ("host", dcgm_text(), 200, "no series of a node exporter: give the URL of a node exporter"),
        ("host", "", 500, "http 500: give the URL of a node exporter"),
    ],
)
def test_an_unusable_exporter_is_one_sentence(
    kind: str, text: str, status: int, words: str
) -> None:
    with exposing() as server:
        server.answers = [says(text, status)]
        with pytest.raises(ExporterError) as refused:
            check(kind, server.url)
        assert words in str(refused.value)
        assert str(refused.value).startswith(f"{exporters.OPTIONS[kind]} {server.url}/metrics: ")
    with pytest.raises(ExporterError, match=r"metrics: Connection refused: give the URL"):
        check(kind, server.url)
    for url in ("10.0.0.5:9400", "ftp://host", "http://", "http://host:port"):
        with pytest.raises(ExporterError, match=r"metrics: it is not the URL of an exporter: give"):
            parse_exporter(kind, url, False, None)


def test_an_exporter_never_gets_the_target_s_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVEOFF_API_KEY", KEY)
    with exporting(dcgm_text) as server:
        check("gpu", server.url)
        exporter = parse_exporter(
            "gpu", server.url.replace("//", "//me:p%40ss-word-1@"), False, None
        )
        check_exporters([exporter])
        plain, basic = (headers for _, headers in server.asked)
        assert "Authorization" not in plain and KEY not in f"{plain}{basic}"
        assert basic["Authorization"] == "Basic bWU6cEBzcy13b3JkLTE="
        assert "p@ss" not in exporter.shown and "me" not in exporter.url.partition("/metrics")[0]


def test_a_node_exporter_is_asked_for_what_is_needed_if_it_can_choose() -> None:
    with exporting(node_text) as server:
        assert "collect" in check("host", server.url).exporters[0].url
        refuses = says("unknown collector", 400)
        server.answers = [refuses, says(node_text())]
        assert "collect" not in check("host", server.url).exporters[0].url


def reader_of(server: Server, out: Path, reports: list[str]) -> ExporterReader:
    (exporter,) = check("gpu", server.url).exporters
    return ExporterReader(exporter, out, 0.0, reports.append)


def test_a_value_that_repeats_is_no_new_sample(tmp_path: Path) -> None:
    """The exporter measures every 30 s: its first values may be that old, and others repeat."""
    reports: list[str] = []
    with exposing() as server:
        server.answers = [says(dcgm_text())]
        reader = reader_of(server, tmp_path / "out", reports)
        assert [reader.sample(), reader.sample()] == [None, None]
        server.answers = [says(dcgm_text(30)), says(dcgm_text(30)), says("", 503)]
        row = reader.sample()
        assert row is not None and [card["index"] for card in row["gpus"]] == [0, 1]
        assert set(row) == set(schema.TELEMETRY_FIELDS) and row["load"] is row["cpu_busy_s"] is None
        assert set(row["gpus"][0]) == set(schema.GPU_FIELDS)
        assert reader.sample() is None
        assert [reader.sample(), reader.sample()] == [None, None]
        server.answers = [says(dcgm_text(60)), says(dcgm_text(90))]
        assert reader.sample() is None, "its age is not known after a gap"
        assert reader.sample()
    assert reports == [
        f"--gpu-metrics {server.url}/metrics: http 503: the GPU columns are null where that happens"
    ]


def test_nothing_of_this_machine_is_in_the_rows_of_another(tmp_path: Path) -> None:
    """A real sampler of a server elsewhere, while its exporters report, and after one died."""
    out = tmp_path / "telemetry.jsonl"
    with exporting(dcgm_text) as gpus, exporting(node_text) as node:
        used = [*check("gpu", f"{gpus.url}?gpu=0").exporters, *check("host", node.url).exporters]
        zero_s = time.perf_counter()
        module = [sys.executable, "-m", "loadtests.telemetry", "--load-pid", str(os.getpid())]
        sampler = subprocess.Popen(
            [
                *(*module, "--out", str(out), "--clock-zero", str(zero_s)),
                *("--without", "gpus", "--without", "machine"),
            ],
            env={**os.environ, **exporter_environment(used)},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_for(lambda: count(out, "gpus") >= 1 and count(out, "load_average") >= 2, "rows")
            gpus.answers = [says("", 404)]
            asked = len(gpus.asked)
            wait_for(lambda: len(gpus.asked) > asked + 1, "scrapes that fail")
        finally:
            sampler.terminate()
            notes = sampler.communicate()[1]
    rows = schema.read_lines(out)
    own = [row for row in rows if row["load"]]
    assert own and all(row["gpus"] == [] and row["server"] is None for row in own)
    assert all(row[name] is None for row in own for name in MACHINE_FIELDS)
    cards = [row["gpus"] for row in rows if row["gpus"]]
    assert all(len(found) == 1 and found[0]["power_w"] == 500.5 for found in cards) and cards
    machine = [row for row in rows if row["load_average"]]
    assert {row["load_average"] for row in machine} == {3.25}
    (first, last) = machine[0], machine[-1]
    cores = (last["cpu_busy_s"] - first["cpu_busy_s"]) / (last["time_s"] - first["time_s"])
    assert cores == pytest.approx(1.5, rel=0.05)
    assert notes.count("http 404") == 1 and "NVIDIA" not in notes, notes


def count(out: Path, name: str) -> int:
    return sum(1 for row in schema.read_lines(out) if row[name]) if out.exists() else 0


Address = namedtuple("Address", "address")


@pytest.mark.parametrize(
    ("host", "is_here"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("fe80::1", True),
        ("no-such-host.invalid", False),
        ("a..b", False),
        ("", False),
    ],
)
def test_only_this_machine_s_addresses_are_here(host: str, is_here: bool) -> None:
    cards = {"eth0": [Address("192.0.2.7"), Address("fe80::1%eth0"), Address("00:00:5e:00:53:01")]}
    assert is_own_address(host, lambda: cards) is is_here


def test_where_a_server_runs_decides_what_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    with exporting(dcgm_text) as server:
        local, gpu = server.url, [parse_exporter("gpu", server.url, False, None)]
        here = find_machine(local, False, [])
        assert here.samples_gpus and here.samples_host and here.gpus is None
        assert here.to_json()["here"] and "the address is this machine's" in here.notes[0]
        for away in (
            find_machine("http://192.0.2.8/v1", False, []),
            find_machine(local, True, []),  # a proxy resolves the name, elsewhere
        ):
            assert not (away.samples_gpus or away.samples_host) and away.gpus == []
            assert [note.partition(" not")[0] for note in away.notes] == [
                "this machine's GPUs are",
                "this machine's CPU and memory are",
            ]
        with_cards = find_machine(local, False, gpu)
        assert (with_cards.samples_gpus, with_cards.samples_host) == (False, True)
        assert with_cards.gpus == [0, 1] and len(with_cards.to_json()["gpus"]) == 2
        hidden = find_machine(local, False, [parse_exporter("gpu", "none", False, None)])
        assert (hidden.samples_gpus, hidden.samples_host, hidden.gpus) == (False, True, [])
        monkeypatch.setattr(server_machine, "FORWARDERS", {find_name()})
        tunnel = find_machine(local, False, [])
        assert not tunnel.here and "forwards port" in tunnel.notes[0]
    assert find_forwarder(1) is None


def find_name() -> str:
    return server_machine.psutil.Process().name()


def test_a_text_without_a_gpu_is_named() -> None:
    with pytest.raises(MetricsUnavailable, match="no series of a GPU"):
        read_cards(AMD.replace("gpu_id", "other"))
    broken: Any = dcgm_text().replace("} 87", "} x")
    with pytest.raises(MetricsUnavailable, match="not Prometheus text"):
        read_cards(broken)
