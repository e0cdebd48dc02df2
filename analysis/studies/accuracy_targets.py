"""What the load generator promises of its own accuracy and cost, and whether
loadtests/accuracy/__main__.py found it kept.

PROMISES is the only place where a bound stands. What an experiment found is judged here, never by
the experiment itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from analysis import dataset
from analysis.formatting import format_number

RESULTS = dataset.RESULTS / "instrument"

ExperimentResult = dict[str, Any]  # what one experiment found: its entry in results.json

TRUE_TTFT_S = 0.050  # of the reference server in all these experiments
RIGHT_WITHIN = 0.10  # then a time counts as right, however many events a second there are
CASES = 20  # in which starved and healthy load generators are to be judged
# of what is kept in seconds and as shares; others are shown as they are
UNITS = {"ms": 1e3, "us": 1e6, "%": 100.0}


class AccuracyTarget(NamedTuple):
    """`value` of what the experiment found is at most `bound` (`least`: at least), in seconds,
    shares or counts, shown in `unit`. It is null if it was not measured.
    """

    experiment: str
    what: str
    value: Callable[[ExperimentResult], Any]
    bound: float
    unit: str = ""
    least: bool = False


@dataclass(frozen=True)
class ResultAt:
    """The size of the number of that name, at the level of the experiment where others have these
    values.
    """

    name: str
    where: dict[str, Any]

    def __call__(self, found: ExperimentResult) -> float | None:
        for level in found["levels"]:
            if self.where.items() <= level.items() and level.get(self.name) is not None:
                return float(abs(level[self.name]))
        return None


def relative_error(a: float | None, b: float | None) -> float | None:
    """By which share a differs from b; null if either is not known."""
    return None if a is None or not b else abs(a / b - 1)


def events_seen_right(found: ExperimentResult) -> float:
    """The most events/s of a level where TTFT (mean, P99) and gaps (P50, P99) came out within 10%;
    0 if there is none.
    """
    right = [0.0]
    for level in found["levels"]:
        late = [level.get(f"ttft_error_{what}_s") for what in ("mean", "p99")]
        off = [
            relative_error(None if each is None else TRUE_TTFT_S + each, TRUE_TTFT_S)
            for each in late
        ]
        off += [
            relative_error(level.get(f"itl_seen_p{p}_s"), level.get(f"itl_true_p{p}_s"))
            for p in (50, 99)
        ]
        if level["stamps"] == "kernel" and all(
            share is not None and share <= RIGHT_WITHIN for share in off
        ):
            right.append(level["events_per_s"])
    return max(right)


def times_the_reader(users: int) -> Callable[[ExperimentResult], float | None]:
    return lambda found: found["ratio_to_c"].get(str(users))


def arrival_error(file: str) -> Callable[[ExperimentResult], float]:
    return lambda found: abs(found[file]["arrival_error_p99_s"])


def freeze_error(mode: str) -> Callable[[ExperimentResult], float | None]:
    return lambda found: relative_error(found[mode]["e2e_p99_s"], found[mode]["expected_p99_s"])


def judged_cases(right: str) -> Callable[[ExperimentResult], float | None]:
    """Share of the cases that were judged right, "flagged" or "spared"; null if all were, but they
    are too few to promise anything.
    """

    def value(found: ExperimentResult) -> float | None:
        cases, flagged = found["cases"], found["flagged"]
        count = flagged if right == "flagged" else cases - flagged
        return None if count == cases < CASES else count / cases

    return value


TTFT_ERRORS = (
    (64, "mean", 0.1e-3),
    (64, "P99", 0.5e-3),
    (256, "mean", 0.2e-3),
    (256, "P99", 1e-3),
    (512, "mean", 0.5e-3),
    (512, "P99", 3e-3),
)
LATENESS = (("P50", 0.3e-3), ("P99", 0.6e-3))  # of sending, up to 500 requests/s
KERNEL = {"stamps": "kernel"}
TARGETS = [
    *(
        AccuracyTarget(
            "accuracy",
            f"{users} streams: {what}, {p}",
            ResultAt(f"{name}_{p.lower()}_s", KERNEL | {"users": users}),
            bound,
            "ms",
        )
        for what, name in (
            ("TTFT error", "ttft_error"),
            ("TTFT error from sent on", "ttft_from_sent_error"),
        )
        for users, p, bound in TTFT_ERRORS
    ),
    *(
        AccuracyTarget(
            "accuracy",
            f"{users} streams: error of a single gap, P99",
            ResultAt("itl_error_p99_s", KERNEL | {"users": users}),
            20e-6,
            "us",
        )
        for users in (64, 256, 512)
    ),
    AccuracyTarget(
        "accuracy",
        "64 streams, without the kernel's stamps: error of a single gap, P99",
        ResultAt("itl_error_p99_s", {"users": 64, "stamps": "user"}),
        1e-3,
        "ms",
    ),
    AccuracyTarget(
        "accuracy",
        "events/s on one core with TTFT and gaps right within 10%",
        events_seen_right,
        48_000,
        least=True,
    ),
    AccuracyTarget(
        "stalls",
        "pauses of 50 ms that were found",
        lambda f: f["found"] / f["stalls"] if f["stalls"] else None,
        1.0,
        "%",
        least=True,
    ),
    AccuracyTarget("stalls", "other gaps that were taken for one", lambda f: f["false"], 0),
    *(
        AccuracyTarget(
            "cost",
            f"{users} streams: CPU time for an event, times that of the C reader",
            times_the_reader(users),
            2.2,
        )
        for users in (64, 256, 512)
    ),
    AccuracyTarget(
        "cost",
        "64 streams: CPU time for an event, times that of `vllm bench serve`",
        lambda f: f["ratio_to_vllm"],
        0.5,
    ),
    AccuracyTarget("start_up", "memory, MB", lambda f: f["rss_mb"], 100),
    AccuracyTarget("start_up", "CPU time to start, s", lambda f: f["cpu_s"], 1.0),
    *(
        AccuracyTarget(
            "open_loop",
            f"{rate:,} requests/s: the rate is off by",
            ResultAt("rate_error", {"rate": rate}),
            0.005,
            "%",
        )
        for rate in (50, 200, 500, 2000)
    ),
    *(
        AccuracyTarget(
            "open_loop",
            f"{rate} requests/s: sent late, {p}",
            ResultAt(f"send_lag_{p.lower()}_s", {"rate": rate}),
            bound,
            "ms",
        )
        for rate in (50, 200, 500)
        for p, bound in LATENESS
    ),
    *(
        AccuracyTarget(
            "open_loop",
            f"{rate:,} requests/s: least p (Kolmogorov-Smirnov), {what}",
            ResultAt(f"least_ks_{what}_p", {"rate": rate}),
            0.01,
            least=True,
        )
        for what in ("planned", "sent")
        for rate in (50, 200, 500, 2000)
    ),
    *(
        AccuracyTarget(
            "replay",
            f"{file}: sent at another time than recorded, P99",
            arrival_error(file),
            5e-3,
            "ms",
        )
        for file in ("azure.csv", "mooncake.jsonl")
    ),
    *(
        AccuracyTarget("freeze", f"{mode}: P99 of E2E is off by", freeze_error(mode), 0.02, "%")
        for mode in ("open", "capped", "replay")
    ),
    AccuracyTarget(
        "workers",
        "two load workers send the same requests at the same times as one",
        lambda f: f["same"],
        True,
        "yes",
        least=True,
    ),
    AccuracyTarget(
        "starved",
        f"of {CASES} starved load generators, caught",
        judged_cases("flagged"),
        1.0,
        "%",
        least=True,
    ),
    AccuracyTarget(
        "healthy",
        f"of {CASES} healthy load generators, not flagged",
        judged_cases("spared"),
        1.0,
        "%",
        least=True,
    ),
    AccuracyTarget(
        "soak",
        "memory in the last third, times that in the first",
        lambda f: f["last_third_mb"] / f["first_third_mb"],
        1.05,
    ),
]


class TargetVerdict(NamedTuple):
    """`verdict`: "met", "not met", "not run" (the experiment was not), or "not measured" (it was,
    but not this, or too little of it).
    """

    promise: AccuracyTarget
    promised: str
    measured: str
    verdict: str


def judge_target(promise: AccuracyTarget, results: dict[str, ExperimentResult]) -> TargetVerdict:
    found = results.get(promise.experiment)
    value = None if found is None else promise.value(found)
    promised = (
        "yes"
        if promise.unit == "yes"
        else (
            f"at {'least' if promise.least else 'most'}"
            f" {format_target_value(promise.bound, promise.unit)}"
        )
    )
    if value is None:
        return TargetVerdict(promise, promised, "–", "not run" if found is None else "not measured")
    met = value >= promise.bound if promise.least else value <= promise.bound
    return TargetVerdict(
        promise, promised, format_target_value(value, promise.unit), "met" if met else "not met"
    )


def format_target_value(value: float | None, unit: str = "") -> str:
    """
    >>> shown(0.0001, "ms"), shown(0.02, "%"), shown(48000.0), shown(3.15e-38), shown(None, "us")
    ('0.1 ms', '2%', '48,000', '3e-38', '–')
    """
    if value is None:
        return "–"
    if unit == "yes":
        return "yes" if value else "no"
    value *= UNITS.get(unit, 1.0)
    text = format_number(value) if value == 0 or abs(value) > 1e-4 else f"{value:.0e}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + (
        unit if unit in ("", "%") else f" {unit}"
    )
