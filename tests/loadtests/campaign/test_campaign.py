"""`python -m loadtests` in real processes: complete, consistent results, and nothing left behind.

There are few campaigns, and several tests check each of them. A mark in the environment identifies
their processes.
"""

import re
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from loadtests import schema
from loadtests.workload import arrivals
from servers.runtime import catalog, launch, models
from tests.helpers.campaign_process import (
    NOISE,
    PATIENCE_S,
    QUICK,
    STAGES,
    Bench,
    is_complete,
    rows_when_under_load,
    runs,
    said_of,
    table,
)

# --- a successful campaign


@pytest.fixture(scope="module")
def mini(bench: Bench) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """Two servers, without --out."""
    done = bench.run(
        *QUICK,
        "--servers",
        "fastapi_threadpool,flask_gunicorn",
        "--workers",
        "1",
        "--report",
        "page",
    )
    left = bench.left_over()
    assert is_complete(done.returncode, done.stderr), done.stdout + done.stderr
    assert left == []
    [campaign] = (bench.folder / "results").iterdir()
    return campaign, done


def test_the_files_are_complete(mini: tuple[Path, Any]) -> None:
    campaign, _ = mini
    file = schema.read_json(campaign / "campaign.json")
    assert file.keys() == schema.CAMPAIGN_KEYS.keys()
    assert [run["case"] for _, run in runs(campaign)] == file["plan"] and len(file["plan"]) == 2
    for folder, run in runs(campaign):
        assert run.keys() == schema.RUN_KEYS.keys()
        assert run["status"] == "ok" and run["startup_s"] > 0
        assert run["environment"]["TOKENIZERS_PARALLELISM"] == "false"
        for checks in (run["verify_before"], run["verify_after"]):
            assert checks and all(check["ok"] for check in checks)
        assert {path.name for path in folder.iterdir()} == {
            "run.json",
            "requests.parquet",
            "telemetry.parquet",
            "server_metrics.parquet",
            "server.log",
            "load.log",
        }
        for name, fields in (
            ("requests", schema.REQUEST_FIELDS),
            ("telemetry", schema.TELEMETRY_FIELDS),
            ("server_metrics", schema.SERVER_METRICS_FIELDS),
        ):
            assert pyarrow.parquet.read_schema(folder / f"{name}.parquet").names == list(fields)


def test_the_server_s_metrics_agree_with_the_rows(mini: tuple[Path, Any]) -> None:
    for folder, run in runs(mini[0]):
        rows, samples = table(folder, "requests"), table(folder, "server_metrics")
        assert run["served"] == {
            "requests": len(rows),
            "tokens": sum(row["tokens"] for row in rows),
        }
        [stage] = [stage for stage in run["stages"] if stage["name"] == "load"]
        times = sorted({row["time_s"] for row in samples})
        assert stage["start_s"] < times[0] and times[-1] < stage["end_s"] and len(times) >= 2
        in_flight = [
            row["value"] for row in samples if row["name"] == "serveoff_requests_in_flight"
        ]
        assert max(in_flight) in (
            [0] if run["case"]["server"] == "flask_gunicorn" else [1, 2, 3]
        ), "a sync worker serves metrics only between requests"
        tokens = [row["value"] for row in samples if row["name"] == "serveoff_tokens_total"]
        assert tokens == sorted(tokens) and tokens[-1] > tokens[0]


def test_counts_agree_and_every_response_is_exact(mini: tuple[Path, Any]) -> None:
    for folder, run in runs(mini[0]):
        rows = table(folder, "requests")
        counted = dict.fromkeys(("sent", "rows", "locust_requests"), len(rows))
        assert run["counts"] == counted | {"locust_failures": 0, "cut_off": 0, "planned": None}
        assert sorted(row["request"] for row in rows) == list(range(len(rows))) and len(rows) > 20
        for row in rows:
            assert (row["error"], row["answer"], row["http_status"], row["finish_reason"]) == (
                None,
                "exact",
                200,
                "length",
            )
            assert row["prompt_tokens"] == row["prompt_tokens_asked"]
            assert row["tokens"] == row["max_tokens"] == sum(row["token_n"])
            assert len(row["token_s"]) == len(row["token_n"])


def test_times_are_in_order_and_the_window_lies_in_the_load(mini: tuple[Path, Any]) -> None:
    for folder, run in runs(mini[0]):
        rows, window = table(folder, "requests"), run["window"]
        assert window["end_s"] - window["start_s"] == pytest.approx(2.0)
        for row in rows:
            token_s = row["token_s"]
            assert (
                row["scheduled_s"] <= row["sent_s"] < row["first_s"]
                and row["last_s"] <= row["done_s"]
            )
            assert token_s == sorted(token_s) and (token_s[0], token_s[-1]) == (
                row["first_s"],
                row["last_s"],
            )
            assert row["first_s"] - row["sent_s"] > 0.02, (
                "the simulated engine takes 20 ms to the first token"
            )
            assert row["prompt_ms"] >= 20 and row["queue_ms"] >= 0
        done = [row["done_s"] for row in rows]
        assert min(done) < window["start_s"] and max(done) >= window["end_s"] - 0.5
        [stage] = [stage for stage in run["stages"] if stage["name"] == "load"]
        assert (
            stage["start_s"] < min(row["scheduled_s"] for row in rows)
            and max(done) < stage["end_s"]
        )
        samples = [sample["time_s"] for sample in table(folder, "telemetry")]
        assert (
            samples == sorted(samples)
            and stage["start_s"] < samples[0]
            and samples[-1] < stage["end_s"]
        )
        assert [s for s in samples if window["start_s"] < s < window["end_s"]]


def test_a_user_of_the_closed_loop_sends_when_its_last_response_has_ended(
    mini: tuple[Path, Any],
) -> None:
    asked = []
    for folder, _ in runs(mini[0]):
        by_user = {
            user: [row for row in table(folder, "requests") if row["user"] == user]
            for user in range(3)
        }
        assert sum(map(len, by_user.values())) == len(table(folder, "requests"))
        for rows in by_user.values():
            for before, after in pairwise(rows):
                assert after["scheduled_s"] == pytest.approx(before["done_s"], abs=2e-6)
        asked.append(
            {
                user: [(row["prompt_tokens"], row["max_tokens"]) for row in rows]
                for user, rows in by_user.items()
            }
        )
    for user in range(3):  # one server is slower, but it got the same first requests
        shorter = min(len(lengths[user]) for lengths in asked)
        assert asked[0][user][:shorter] == asked[1][user][:shorter]


def test_stages_are_in_order_and_cases_one_after_the_other(mini: tuple[Path, Any]) -> None:
    moments = []
    for _, run in runs(mini[0]):
        assert [stage["name"] for stage in run["stages"]] == STAGES
        moments += [
            run["clock_zero_s"] + stage[edge]
            for stage in run["stages"]
            for edge in ("start_s", "end_s")
        ]
    assert moments == sorted(moments)


def test_the_log_has_one_line_per_case(mini: tuple[Path, Any]) -> None:
    first, *cases = mini[1].stdout.splitlines()[:3]
    assert re.fullmatch(r"2 cases, about [\dhmins ]+; each prints a line when it ends", first)
    number = r"([\d,.]+|∞|unknown \(n=\d+\))( ms)?"
    for index, (line, (_, run)) in enumerate(zip(cases, runs(mini[0]), strict=True), 1):
        case = run["case"]
        assert re.fullmatch(
            rf"case {index} of 2  {case['server']} / simulated / quick 3 users, run 1: "
            rf"(valid, {number} tokens/s, TTFT P50 {number} P99 {number}, E2E P50 {number} P99"
            rf" {number}, [\d.]+% errors|invalid: ({'|'.join(NOISE)}).*)"
            r" \(\d+ s(; about .* left)?\)",
            line,
        ), line
    assert "case " not in "\n".join(mini[1].stdout.splitlines()[3:])


def test_the_terminal_shows_a_table_and_the_report_s_path(mini: tuple[Path, Any]) -> None:
    campaign, done = mini
    page = str(campaign.relative_to(campaign.parents[1]) / "report.html")
    after = done.stdout.splitlines()[done.stdout.splitlines().index(page) + 1 :]
    busy = done.stderr.count("no valid case of ") == 2  # then the reasons come first
    assert after[:2] == ([] if busy else ["", "Next steps:"])
    assert len(after) == (0 if busy else 8)
    for what, command in zip(after[2::2], after[3::2], strict=True):
        assert what.startswith("  # ") and re.match(r"  \S*python\S* -m loadtests --", command)
    for words in ("fastapi_threadpool (simulated)", "flask_gunicorn (simulated)"):
        assert words in done.stdout
    assert busy or "tokens/s" in done.stdout, "only a valid case has throughput"
    assert (campaign / "report.html").stat().st_size > 10_000 and not (
        campaign / "notebooks"
    ).exists()
    assert all(line.startswith("no valid case of ") for line in done.stderr.splitlines())


def test_plan_prints_the_cases_and_creates_nothing(bench: Bench, mini: Any) -> None:
    before = sorted(bench.folder.rglob("*"))
    done = bench.run(
        "--plan",
        "--servers",
        "flask_gunicorn,fastapi_threadpool",
        "--engines",
        "hf,simulated",
        "--scenarios",
        "quick,random",
        "--users",
        "1,8",
        "--rate",
        "2.5",
        "--repeat",
        "2",
        "--out",
        "not_to_be",
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [re.split(r"  +", line) for line in re.findall(r"^# +(\d.+  .+)", done.stdout, re.M)]
    assert len(lines) == 2 * 2 * 3 * 2 and [int(line[0]) for line in lines] == list(range(1, 25))
    assert {tuple(line[3:]) for line in lines if line[1] == "flask_gunicorn"} >= {
        ("quick", "8 users", "2 s", "run 2"),
        ("random", "2.5 requests/s", "2 s", "run 1"),
    }
    assert sorted(bench.folder.rglob("*")) == before


# --- a server that is already running


def test_a_target_is_measured_and_left_running(bench: Bench) -> None:
    log = bench.folder / "target.log"
    model = models.Model("serveoff-small", "", True)
    with launch.run_server(
        catalog.find_server("fastapi_threadpool"), "simulated", model, launch.CoreShare(), log
    ) as server:
        done = bench.run(
            "--target",
            server.base_url,
            "--scenarios",
            "random",
            "--seed",
            "5",
            "--report",
            "none",
            "--out",
            "target",
        )
        assert not server.ended()
    assert is_complete(done.returncode, done.stderr), done.stdout + done.stderr
    assert bench.left_over() == []
    [(folder, run)] = runs(bench.folder / "target")
    assert (
        run["status"] == "ok"
        and run["case"]["server"] == "target"
        and run["case"]["engine"] == "external"
    )
    assert (
        run["startup_s"] is None
        and run["command"] is None
        and run["environment"] is None
        and not (folder / "server.log").exists()
    )
    assert {sample["server"] for sample in table(folder, "telemetry")} == {None}

    # The open loop sends the seed's requests at their times: the load does not yield.
    rows = sorted(table(folder, "requests"), key=lambda row: row["scheduled_s"])
    wanted = [
        arrival.at_s
        for arrival in arrivals.window_arrivals(
            "5/random/1", {"arrivals": "poisson", "warmup_s": 0.5}, 25.0, 2.0
        )
    ]
    start_s, end_s = run["window"]["start_s"], run["window"]["end_s"]
    assert run["counts"]["planned"] == len(wanted) and run["counts"]["sent"] == run["counts"][
        "rows"
    ] == len(rows)
    in_window = [row["scheduled_s"] for row in rows if start_s <= row["scheduled_s"] < end_s]
    assert in_window == pytest.approx([start_s + at for at in wanted], abs=1e-5)
    assert {row["answer"] for row in rows} == {"exact"} and {row["user"] for row in rows} == {None}
    assert all(row["sent_s"] >= row["scheduled_s"] for row in rows)


def test_a_key_reaches_the_server_and_is_written_nowhere(bench: Bench, tmp_path: Path) -> None:
    key = "s3cret-0123456789"
    (tmp_path / "key").write_text(f"{key}\n")
    bench.environment["SERVEOFF_API_KEY_FILE"] = str(tmp_path / "key")
    try:
        # the server behind the gateway needs the key as well
        driver = bench.start("--servers", "fastapi_gateway", *QUICK, "--out", "with_key")
        rows_when_under_load(bench.folder / "with_key", 1)
        commands = [said_of(process) for process in bench.processes()]
        text, _ = driver.communicate(timeout=PATIENCE_S)
    finally:
        del bench.environment["SERVEOFF_API_KEY_FILE"]
    assert is_complete(driver.returncode, text), text
    assert all(
        run["status"] == "ok" and run["served"]["requests"]
        for _, run in runs(bench.folder / "with_key")
    )
    assert len(commands) > 5 and key not in str(commands) and key not in text
    holding = [
        file
        for file in (bench.folder / "with_key").rglob("*")
        if file.is_file() and key.encode() in file.read_bytes()
    ]
    assert not holding
