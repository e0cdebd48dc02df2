"""Campaigns against scripted endpoints, compared with what the endpoint itself recorded."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import dataset, stats, summary
from analysis.checks import DISTURBABLE, DISTURBING
from tests.helpers.campaign_process import Bench, runs, table
from tests.helpers.endpoint_script import Endpoint, Script, Served, serve_script

SCENARIO = """
[{name}]
summary = "closed loop"
arrivals = "closed"
users = 2
endpoint = "{endpoint}"
prompt_tokens = [16, 64]
output_tokens = {tokens}
warmup_s = 0.5
warmup_max_s = 0.5
duration_s = 3.0
drain_s = 10
timeout_s = 30
"""
SCENARIOS = (
    "".join(
        SCENARIO.format(name=name, endpoint=endpoint, tokens=tokens)
        for name, endpoint, tokens in (
            ("chats", "chat", "[16, 48]"),
            ("texts", "completions", "[16, 48]"),
            ("chats32", "chat", "[32, 32]"),
            ("chats48", "chat", "[48, 48]"),
            ("texts32", "completions", "[32, 32]"),
        )
    )
    + SCENARIO.format(name="shared", endpoint="chat", tokens="[16, 32]\nshared_tokens = 32")
    + SCENARIO.format(name="open", endpoint="completions", tokens="[16, 48]")
    .replace('arrivals = "closed"\nusers = 2', 'arrivals = "poisson"\nrate = 6.0')
    .replace("closed loop", "open loop")
)
# So slow that 2% is more than a busy machine adds. A profile reports no times, so it need not wait
# for them.
CALM: dict[str, Any] = {"first_s": 0.150, "step_s": 0.010, "probe_pace": 0.05}
WITHIN = 0.02
# Checks that fail on an otherwise correct case when the machine is busy.
BUSY_MACHINE = tuple(sorted(DISTURBABLE | DISTURBING))
TRIES = 3
# Names of exceptions, and causes that were not established.
UNTRUE = re.compile(
    r"Traceback|\b[A-Z]\w+(?:Error|Exception)\b|Errno|buffered|client-bound|differs from the right"
)


@dataclass
class Measured:
    """A campaign that has ended, with one case per scenario."""

    done: "subprocess.CompletedProcess[str]"
    folder: Path
    endpoint: Endpoint

    @property
    def text(self) -> str:
        """Its output on both streams."""
        return self.done.stdout + self.done.stderr

    @cached_property
    def cases(self) -> pd.DataFrame:
        """One row per case: valid, why, and the metrics."""
        return summary.summarise(dataset.read_campaign(self.folder), frames=False).table

    @cached_property
    def checks(self) -> pd.DataFrame:
        """One row per check and case."""
        return summary.summarise(dataset.read_campaign(self.folder), frames=False).checks

    @property
    def case(self) -> Any:
        return self.cases.iloc[0]

    @property
    def run(self) -> dict[str, Any]:
        return runs(self.folder)[0][1]

    @cached_property
    def profile(self) -> dict[str, Any]:
        profile = self.run["profile"]
        assert isinstance(profile, dict), self.text
        return profile

    @property
    def notes(self) -> str:
        return "\n".join([*self.run["notes"], *self.profile["notes"]])

    @cached_property
    def all_rows(self) -> list[dict[str, Any]]:
        """The rows of the first case."""
        return table(runs(self.folder)[0][0], "requests")

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Rows scheduled in the window of the first case; all rows if it has no window."""
        rows, run = self.all_rows, self.run
        if (window := run["window"]) is None:
            return rows
        inside = [r for r in rows if window["start_s"] <= r["scheduled_s"] < window["end_s"]]
        return inside or rows

    def served(self, case: int = 0) -> list[Served]:
        """Requests of the load that reached the server in the window of a case."""
        run = runs(self.folder)[case][1]
        zero_s, window = run["clock_zero_s"], run["window"]
        return [
            served
            for served in self.endpoint.load()
            if window["start_s"] <= served.at_s - zero_s < window["end_s"]
        ]


@dataclass
class Truth:
    """The metrics of a case, computed from the server's own record."""

    tokens_per_s: float
    ttft_s: float
    tpot_s: float

    @classmethod
    def of_case(cls, measured: Measured, case: int = 0) -> "Truth":
        run = runs(measured.folder)[case][1]
        zero_s, window = run["clock_zero_s"], run["window"]
        start_s, end_s = window["start_s"] + zero_s, window["end_s"] + zero_s
        tokens = sum(
            n
            for served in measured.endpoint.load()
            for at_s, n in served.sent
            if served.whole and start_s <= at_s < end_s
        )
        inside = [each for each in measured.served(case) if each.whole and each.sent]
        ttft = np.array([each.sent[0][0] - each.at_s for each in inside])
        tpot = np.array(
            [
                (each.sent[-1][0] - each.sent[0][0]) / (each.tokens - each.sent[0][1])
                for each in inside
                if each.tokens > each.sent[0][1]
            ]
        )
        return cls(
            tokens / (end_s - start_s),
            stats.percentile(ttft, 50),
            stats.percentile(tpot, 50) if len(tpot) else 0.0,
        )


def measure(
    bench: Bench, endpoint: Endpoint, *arguments: str, target: str = "", scenarios: str = "chats"
) -> Measured:
    """Run a campaign against `target`, or against the endpoint's URL if `target` is empty."""
    (bench.folder / "endpoints.toml").write_text(SCENARIOS)
    out = bench.folder / f"{endpoint.record.parent.name}-{len(list(bench.folder.iterdir()))}"
    report = () if "--report" in arguments else ("--report", "none")
    done = bench.run(
        "--scenarios-file",
        "endpoints.toml",
        "--scenarios",
        scenarios,
        "--target",
        target or endpoint.url,
        *(() if scenarios == "open" or "--users" in arguments else ("--users", "2")),
        *(() if "--duration" in arguments else ("--duration", "3")),
        "--out",
        str(out),
        *report,
        *arguments,
    )
    return Measured(done, out, endpoint)


def measure_script(
    bench: Bench, folder: Path, script: Script, *arguments: str, path: str = "", **more: Any
) -> Measured:
    """Run a campaign against a server that ends with it; `path` is part of the target's URL."""
    with serve_script(folder, script) as endpoint:
        return measure(bench, endpoint, *arguments, target=f"{endpoint.url}{path}", **more)


def measure_valid(
    bench: Bench, folder: Path, script: Script, *arguments: str, path: str = "", **more: Any
) -> Measured:
    """Like measure_script; every case must be valid and agree with the server's record."""
    return repeat_until_valid(
        lambda attempt: measure_script(
            bench, folder / str(attempt), script, *arguments, path=path, **more
        )
    )


def repeat_undisturbed(measure: Callable[[int], Measured], tries: int = TRIES) -> Measured:
    """Call `measure` with the number of the attempt until no case is spoilt by a busy machine."""
    for attempt in range(tries):
        measured = measure(attempt)
        if not any(str(why).startswith(BUSY_MACHINE) for why in measured.cases["why"]):
            return measured
    raise AssertionError(f"the machine is too busy: {measured.cases['why'].tolist()}")


def repeat_until_valid(measure: Callable[[int], Measured], tries: int = TRIES) -> Measured:
    """Like repeat_undisturbed; every case must be valid and agree with the server's record."""
    for attempt in range(tries):
        measured = measure(attempt)
        problem = find_problem(measured)
        if problem is None:
            return measured
        if not problem.startswith(BUSY_MACHINE):
            break
    raise AssertionError(problem)


def find_problem(measured: Measured) -> str | None:
    """What is wrong with the campaign. If a busy machine can be the cause, the text starts with one
    of BUSY_MACHINE.
    """
    if not (measured.folder / "cases").exists():
        return f"exit code {measured.done.returncode}: {measured.text}"
    for index, (_, case) in enumerate(measured.cases.iterrows()):
        if not case["valid"]:
            return str(case["why"])
        truth = Truth.of_case(measured, index)
        for name, reported, true in (
            ("tokens/s", case["output_tokens_per_s"], truth.tokens_per_s),
            ("TTFT", case["ttft_p50_s"], truth.ttft_s),
            ("TPOT", case["tpot_p50_s"], truth.tpot_s),
        ):
            if true == 0 and (np.isnan(reported) or reported < 1e-4):
                continue
            if not abs(reported / true - 1) <= WITHIN:
                found = f"{name} is {reported:.5g}, the server's own {true:.5g}"
                # a busy machine can explain a few per cent, but no more
                off = abs(reported / true - 1) < 0.1
                return f"steadiness: {found}" if off else found
    return None if measured.done.returncode == 0 else f"exit code: {measured.text}"


def check_refused(measured: Measured, *words: str) -> str:
    """Expect no valid case, and output with these words and without an untrue one."""
    text = " ".join(measured.text.split())
    assert measured.done.returncode != 0, text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    assert not UNTRUE.search(text), text
    if (measured.folder / "cases").exists():
        assert not measured.cases["valid"].any(), text
    else:
        assert measured.done.returncode == 2, text
        assert measured.done.stderr.startswith("error: "), text
        assert measured.done.stderr.count("\n") == 1, text
    check_no_winner(text)
    return text


def check_no_winner(text: str) -> None:
    """Expect nothing ranked, recommended or called valid."""
    for winner in (
        "highest output throughput",
        "had the lowest",
        "no other server has a valid",
        "sustains",
    ):
        assert winner not in text, text


def check_invalid(measured: Measured, *reasons: str) -> str:
    """Expect invalid cases, with these words in the first reason of each, and no winner."""
    assert measured.done.returncode != 0, measured.text
    check_reasons(measured, *reasons)
    check_no_winner(measured.text)
    return measured.text


def check_reasons(measured: Measured, *reasons: str) -> None:
    """Expect invalid cases, with these words in the first reason of each."""
    assert not measured.cases["valid"].any(), measured.text
    for why in measured.cases["why"]:
        first = why.split("; ")[0]
        for reason in reasons:
            assert reason in first, why
        assert not UNTRUE.search(why), why
