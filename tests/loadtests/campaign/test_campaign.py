"""`python -m loadtests` for real: complete and consistent results, whatever is killed meanwhile,
and nothing left behind.

The campaigns are few and each is asserted on by several tests. Their processes are recognised by a
mark in their environment.
"""

import fcntl
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet
import pytest

from analysis import dataset
from loadtests import schema
from loadtests.workload import arrivals
from servers.runtime import catalog, launch, models
from tests.helpers.campaign_process import (
    ESCAPES,
    PATIENCE_S,
    QUICK,
    STAGES,
    Bench,
    case_folder,
    is_complete,
    rows_when_under_load,
    runs,
    said_of,
    table,
    wait_for,
)
from tests.helpers.installed import require_installed

# --- a campaign that goes well


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


def test_what_is_on_disk_is_complete(mini: tuple[Path, Any]) -> None:
    campaign, _ = mini
    said = schema.read_json(campaign / "campaign.json")
    assert said.keys() == schema.CAMPAIGN_KEYS.keys()
    assert [run["case"] for _, run in runs(campaign)] == said["plan"] and len(said["plan"]) == 2
    for folder, run in runs(campaign):
        assert run.keys() == schema.RUN_KEYS.keys()
        assert run["status"] == "ok" and run["startup_s"] > 0
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


def test_the_server_counts_the_same_and_says_how_it_goes(mini: tuple[Path, Any]) -> None:
    for folder, run in runs(mini[0]):
        rows, said = table(folder, "requests"), table(folder, "server_metrics")
        assert run["served"] == {
            "requests": len(rows),
            "tokens": sum(row["tokens"] for row in rows),
        }
        [stage] = [stage for stage in run["stages"] if stage["name"] == "load"]
        times = sorted({row["time_s"] for row in said})
        assert stage["start_s"] < times[0] and times[-1] < stage["end_s"] and len(times) >= 2
        in_flight = [row["value"] for row in said if row["name"] == "serveoff_requests_in_flight"]
        assert max(in_flight) in (
            [0] if run["case"]["server"] == "flask_gunicorn" else [1, 2, 3]
        ), "a sync worker answers between requests"
        tokens = [row["value"] for row in said if row["name"] == "serveoff_tokens_total"]
        assert tokens == sorted(tokens) and tokens[-1] > tokens[0]


def test_counts_agree_and_every_answer_is_exact(mini: tuple[Path, Any]) -> None:
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


def test_a_user_of_the_closed_loop_asks_when_its_last_answer_has_ended(
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
    for user in range(3):  # one server is slower, but as far as it came it was asked the same
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
    said = re.findall(
        r"^case (\d) of 2 .*: (prepare|launch|verify|load|verify again|stop|ok \(\d+ s\))$",
        mini[1].stdout,
        re.MULTILINE,
    )
    assert [(number, stage.split(" (")[0]) for number, stage in said] == [
        (n, stage) for n in "12" for stage in [*STAGES, "ok"]
    ]


def test_the_terminal_shows_a_table_and_where_the_report_is(mini: tuple[Path, Any]) -> None:
    campaign, done = mini
    assert done.stdout.splitlines()[-1] == str(
        campaign.relative_to(campaign.parents[1]) / "report.html"
    )
    for said in ("fastapi_threadpool (simulated)", "flask_gunicorn (simulated)", "tokens/s"):
        assert said in done.stdout
    assert (campaign / "report.html").stat().st_size > 10_000 and not (
        campaign / "notebooks"
    ).exists()
    assert done.stderr == ""


# --- one campaign: killed, interrupted, its server killed, and at last ended

COMMAND = (
    *QUICK,
    "--servers",
    "fastapi_threadpool,flask_gunicorn",
    "--workers",
    "1",
    "--duration",
    "4",
    "--out",
    "broken",
)


@pytest.fixture(scope="module")
def killed(bench: Bench) -> dict[str, Any]:
    """`kill -9` of the driver."""
    campaign = bench.folder / "broken"
    driver = bench.start(*COMMAND)
    seen = rows_when_under_load(campaign, 1)
    driver.kill()
    driver.communicate()
    wait_for(lambda: not bench.left_over(), "nothing left of a killed campaign")
    folder = case_folder(campaign, 1)
    return {
        "seen": seen,
        "files": sorted(path.name for path in folder.iterdir()),
        "run": schema.read_json(folder / "run.json"),
        "rows": schema.read_lines(folder / "requests.jsonl"),
        "telemetry": schema.read_lines(folder / "telemetry.jsonl"),
    }


@pytest.fixture(scope="module")
def interrupted(bench: Bench, killed: dict[str, Any]) -> dict[str, Any]:
    """Ctrl-C on a terminal."""
    campaign = bench.folder / "broken"
    terminal = bench.on_terminal(*COMMAND)
    seen = rows_when_under_load(campaign, 1)
    wait_for(lambda: "P99" in terminal.text, "the live line")
    terminal.press(b"\x03")
    code = terminal.wait()
    left = bench.left_over()
    folder = case_folder(campaign, 1)
    return {
        "code": code,
        "left": left,
        "seen": seen,
        "text": ESCAPES.sub("", terminal.text),
        "rows": table(folder, "requests"),
        "run": schema.read_json(folder / "run.json"),
        "cases": len(runs(campaign)),
    }


@pytest.fixture(scope="module")
def server_died(bench: Bench, interrupted: dict[str, Any]) -> dict[str, Any]:
    """`kill -9` of the first server's root process."""
    campaign = bench.folder / "broken"
    driver = bench.start(*COMMAND)
    rows_when_under_load(campaign, 1)
    wanted = {"servers.runtime.supervise", "servers.flask_gunicorn.app:app"}
    [supervisor] = [process for process in bench.processes() if wanted <= {*said_of(process)}]
    [root] = supervisor.children()
    root.kill()
    text, _ = driver.communicate(timeout=PATIENCE_S)
    left = bench.left_over()
    return {
        "code": driver.returncode,
        "left": left,
        "text": text,
        "runs": runs(campaign),
        "cases": dataset.read_campaign(campaign).cases,
        "rows": table(case_folder(campaign, 1), "requests"),
    }


@pytest.fixture(scope="module")
def ended(bench: Bench, server_died: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
    return bench.run(*COMMAND)


def test_a_killed_driver_leaves_every_row_and_nothing_running(killed: dict[str, Any]) -> None:
    assert (
        killed["run"]["status"] == "running" and killed["run"]["case"]["server"] == "flask_gunicorn"
    )
    assert len(killed["rows"]) >= killed["seen"]
    numbers = {row["request"] for row in killed["rows"]}
    assert len(numbers) == len(killed["rows"])
    assert len(set(range(max(numbers))) - numbers) <= 3, (
        "only what the 3 users had in flight may be missing"
    )
    assert {row["answer"] for row in killed["rows"][: killed["seen"]]} == {"exact"}
    assert len(killed["telemetry"]) >= 1


def test_ctrl_c_ends_at_once_and_keeps_the_rows(interrupted: dict[str, Any]) -> None:
    assert interrupted["code"] == 130 and interrupted["left"] == []
    assert interrupted["run"]["status"] == "failed: load: interrupted by Ctrl-C"
    assert interrupted["run"]["counts"]["rows"] == len(interrupted["rows"]) >= interrupted["seen"]
    assert interrupted["cases"] == 1, "the next case must not begin"
    assert "the same command with --out broken continues it" in interrupted["text"]
    assert "Traceback" not in interrupted["text"]


def test_the_live_line_shows_how_it_goes(interrupted: dict[str, Any]) -> None:
    text = interrupted["text"]
    assert re.search(
        r"case 1 of 2  flask_gunicorn / simulated / quick 3 users, run 1: load "
        r" (warm-up|measuring), \d+ requests, "
        r"[\d,]+ tokens/s, P99 \d+\.\d\d s",
        text,
    )
    assert re.search(r"\d+ s elapsed, about \d+ s left", text)


def test_the_next_run_says_what_it_found(
    interrupted: dict[str, Any], server_died: dict[str, Any], ended: Any
) -> None:
    name = "001-flask_gunicorn-simulated-quick-r1"
    found, again = f"found case 1 ({name}): ", f"kept as attempts/{name}.%d, and run again"
    assert f"{found}was interrupted; {again % 1}" in interrupted["text"]
    assert f"{found}failed: load: interrupted by Ctrl-C; {again % 2}" in server_died["text"]
    assert f"{found}failed: load: the server ended by itself (exit code 137)" in ended.stdout


def test_a_server_that_dies_fails_its_case_and_not_the_next(server_died: dict[str, Any]) -> None:
    assert server_died["code"] == 1 and server_died["left"] == []
    first, second = (run for _, run in server_died["runs"])
    assert first["status"].startswith(
        "failed: load: the server ended by itself (exit code 137); its last log lines:\n"
    )
    assert [stage["name"] for stage in first["stages"]] == STAGES[:4]
    assert first["verify_after"] is None and first["counts"]["rows"] == len(server_died["rows"])
    assert second["status"] == "ok" and [stage["name"] for stage in second["stages"]] == STAGES
    assert second["clock_zero_s"] > first["clock_zero_s"] + first["stages"][-1]["end_s"]
    assert server_died["cases"]["state"].tolist() == ["failed", "ok"]


def test_a_load_generator_that_was_killed_leaves_its_rows_and_no_counts(bench: Bench) -> None:
    """It has written more than it had counted when it last said so."""
    campaign = bench.folder / "no-load"
    driver = bench.start(
        *QUICK, "--servers", "fastapi_threadpool", "--duration", "600", "--out", "no-load"
    )
    seen = rows_when_under_load(campaign, 1)
    bench.load_workers()[0].kill()
    driver.communicate(timeout=PATIENCE_S)
    [(folder, run)] = runs(campaign)
    assert driver.returncode == 1 and run["status"].startswith(
        "failed: load: the load generator ended with exit code 137 (running)"
    )
    assert (
        run["counts"] is None and len(table(folder, "requests")) >= seen and bench.left_over() == []
    )


def test_what_is_done_is_not_done_again_and_what_was_broken_is_kept(
    bench: Bench, ended: Any, killed: dict[str, Any]
) -> None:
    campaign = bench.folder / "broken"
    assert is_complete(ended.returncode, ended.stderr), ended.stdout + ended.stderr
    assert (
        "continuing broken: 1 of 2 cases are done" in ended.stdout
        and "case 2 of 2" not in ended.stdout
    )
    assert [run["status"] for _, run in runs(campaign)] == ["ok", "ok"]
    assert dataset.read_campaign(campaign).cases["state"].tolist() == ["ok", "ok"], (
        "an attempt must not stand in for its case"
    )
    attempts = sorted((campaign / "attempts").iterdir())
    assert [path.suffix for path in attempts] == [".1", ".2", ".3"]
    assert schema.read_lines(attempts[0] / "requests.jsonl") == killed["rows"]
    assert len(table(attempts[1], "requests")) > 0 and len(table(attempts[2], "requests")) > 0
    assert bench.left_over() == []


def test_a_campaign_is_continued_only_by_its_own_command_and_by_one_driver(
    bench: Bench, ended: Any
) -> None:
    bench.refuses(
        "broken is a campaign with another seed: repeat its command to continue it, or choose"
        " another --out",
        *COMMAND,
        "--seed",
        "3",
    )
    published = shutil.copytree(
        bench.folder / "broken", bench.folder / "published", ignore=lambda *_: ["cases"]
    )
    (published / "cases.json").touch()
    bench.refuses(
        "published is published without its requests and cannot be continued: choose another --out",
        *COMMAND,
        "--out",
        "published",
    )
    with (bench.folder / "broken" / "campaign.json").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # as the driver that runs it does
        bench.refuses(
            "broken is being measured by another process: wait for its end, or choose another"
            " --out",
            *COMMAND,
        )


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
    lines = [re.split(r"  +", line.strip()) for line in done.stdout.splitlines()]
    assert len(lines) == 2 * 2 * 3 * 2 and [int(line[0]) for line in lines] == list(range(1, 25))
    assert {tuple(line[3:]) for line in lines if line[1] == "flask_gunicorn"} >= {
        ("quick", "8 users", "2 s", "run 2"),
        ("random", "2.5 requests/s", "2 s", "run 1"),
    }
    assert sorted(bench.folder.rglob("*")) == before


# --- a server of somebody else


def test_a_target_is_measured_and_left_alone(bench: Bench) -> None:
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
        run["startup_s"] is None and run["command"] is None and not (folder / "server.log").exists()
    )
    assert {sample["server"] for sample in table(folder, "telemetry")} == {None}

    # The open loop sends what the seed says, when it says: the load does not yield.
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


def test_a_key_reaches_whoever_needs_it_and_is_written_nowhere(
    bench: Bench, tmp_path: Path
) -> None:
    key = "s3cret-0123456789"
    (tmp_path / "key").write_text(f"{key}\n")
    bench.environment["SERVEOFF_API_KEY_FILE"] = str(tmp_path / "key")
    try:
        driver = bench.start(
            "--servers", "fastapi_threadpool,fastapi_gateway", *QUICK, "--out", "with_key"
        )
        rows_when_under_load(bench.folder / "with_key", 2)
        said = [said_of(process) for process in bench.processes()]
        text, _ = driver.communicate(timeout=PATIENCE_S)
    finally:
        del bench.environment["SERVEOFF_API_KEY_FILE"]
    assert is_complete(driver.returncode, text), text
    assert all(
        run["status"] == "ok" and run["served"]["requests"]
        for _, run in runs(bench.folder / "with_key")
    )
    assert len(said) > 5 and key not in str(said) and key not in text
    holding = [
        file
        for file in (bench.folder / "with_key").rglob("*")
        if file.is_file() and key.encode() in file.read_bytes()
    ]
    assert not holding


# --- a full disk

# longer than our patience: the failure must end it
LONG = ("--servers", "fastapi_threadpool", *QUICK, "--duration", "600")


def test_a_recorder_that_cannot_write_fails_the_case(bench: Bench) -> None:
    """Only the load generator's files are limited: a quota, say."""
    driver = bench.start(*LONG, "--out", "limited")
    rows_when_under_load(bench.folder / "limited", 1)
    [locust] = bench.load_workers()
    size = case_folder(bench.folder / "limited", 1).joinpath("requests.jsonl").stat().st_size
    locust.rlimit(psutil.RLIMIT_FSIZE, (size + 5000, resource.RLIM_INFINITY))
    text, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 1 and bench.left_over() == []
    [(folder, run)] = runs(bench.folder / "limited")
    assert run["status"].startswith(
        "failed: load: the load generator ended with exit code 4 (running)"
    ), run["status"]
    assert "gave up: [Errno 2" in run["status"] and "gave up: [Errno 2" in text
    rows = table(folder, "requests")
    assert len(rows) >= 10 and {row["answer"] for row in rows} == {"exact"}


@pytest.fixture
def small_disk(bench: Bench) -> Iterator[Path]:
    require_installed("mount")
    place = bench.folder / "disk"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(place)], capture_output=True
    ).returncode:
        pytest.skip("a file system of 128 KB cannot be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_ends_the_campaign_with_one_sentence_and_the_rows_so_far(
    bench: Bench, small_disk: Path
) -> None:
    done = bench.run(*LONG, "--out", "disk/campaign")
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.fullmatch(r"error: .*No space left on device: give a folder .*\n", done.stderr), (
        done.stderr
    )
    assert bench.left_over() == []
    [(folder, run)] = runs(small_disk / "campaign")
    assert run["status"].startswith(
        "failed: load: no space left on the disk: the load generator ended"
    ), run["status"]
    assert not any(folder.glob("*.partial")) and not (folder / "reserve").exists()
    rows = schema.read_lines(folder / "requests.jsonl")
    assert len(rows) >= 10 and {row["answer"] for row in rows} == {"exact"}
