"""Promises about the load generator's accuracy and cost, and whether the results of
loadtests/accuracy/__main__.py meet them.

TARGETS is the only place with bounds. An experiment's results are judged here, never by the
experiment itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from analysis.formatting import format_number

ExperimentResult = dict[str, Any]  # one experiment's entry in results.json

TRUE_TTFT_S = 0.050  # of the ground-truth server in all these experiments
RIGHT_WITHIN = 0.10  # error up to which a time counts as right, at any number of events/s
CASES = 20  # starved ones to judge, and as many healthy ones
# factors for values in seconds and shares; other units are shown as they are
UNITS = {"ms": 1e3, "us": 1e6, "%": 100.0}


class AccuracyTarget(NamedTuple):
    """A promise: `value` of the experiment's results is at most `bound` (with `least`: at least),
    in seconds, shares or counts, shown in `unit`. `value` returns None if it was not measured.
    """

    experiment: str
    what: str
    value: Callable[[ExperimentResult], Any]
    bound: float
    unit: str = ""
    least: bool = False


@dataclass(frozen=True)
class ResultAt:
    """The absolute value of the result of that name, at the experiment's level with the values in
    `where`.
    """

    name: str
    where: dict[str, Any]

    def __call__(self, found: ExperimentResult) -> float | None:
        for level in found["levels"]:
            if self.where.items() <= level.items() and level.get(self.name) is not None:
                return float(abs(level[self.name]))
        return None


def relative_error(a: float | None, b: float | None) -> float | None:
    """The difference between a and b as a share of b; None if either is unknown."""
    return None if a is None or not b else abs(a / b - 1)


def events_seen_right(found: ExperimentResult) -> float:
    """The most events/s of a level at which TTFT (mean, P99) and gaps (P50, P99) were measured
    within 10%; 0 if there is none.
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
    """The share of the cases that were judged right, "flagged" or "spared". None if all were, but
    they are fewer than CASES: too few to keep a promise.
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
            ("TTFT error from sent", "ttft_from_sent_error"),
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
        "events/s on one core with TTFT and gaps within 10% of the truth",
        events_seen_right,
        48_000,
        least=True,
    ),
    AccuracyTarget(
        "stalls",
        "pauses of 50 ms found",
        lambda f: f["found"] / f["stalls"] if f["stalls"] else None,
        1.0,
        "%",
        least=True,
    ),
    AccuracyTarget("stalls", "other gaps mistaken for a pause", lambda f: f["false"], 0),
    *(
        AccuracyTarget(
            "cost",
            f"{users} streams: CPU time per event, ratio to the C reader",
            times_the_reader(users),
            2.2,
        )
        for users in (64, 256, 512)
    ),
    AccuracyTarget(
        "cost",
        "64 streams: CPU time per event, ratio to `vllm bench serve`",
        lambda f: f["ratio_to_vllm"],
        0.5,
    ),
    AccuracyTarget("start_up", "memory, MB", lambda f: f["rss_mb"], 100),
    AccuracyTarget("start_up", "CPU time to start, s", lambda f: f["cpu_s"], 1.0),
    *(
        AccuracyTarget(
            "open_loop",
            f"{rate:,} requests/s: error of the rate",
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
            "replay", f"{file}: error of the sending time, P99", arrival_error(file), 5e-3, "ms"
        )
        for file in ("azure.csv", "mooncake.jsonl")
    ),
    *(
        AccuracyTarget("freeze", f"{mode}: error of E2E P99", freeze_error(mode), 0.02, "%")
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
        f"{CASES} starved load generators: share caught",
        judged_cases("flagged"),
        1.0,
        "%",
        least=True,
    ),
    AccuracyTarget(
        "healthy",
        f"{CASES} healthy load generators: share not flagged",
        judged_cases("spared"),
        1.0,
        "%",
        least=True,
    ),
    AccuracyTarget(
        "soak",
        "memory in the last third, ratio to the first third",
        lambda f: f["last_third_mb"] / f["first_third_mb"],
        1.05,
    ),
]


class TargetVerdict(NamedTuple):
    """The verdict on one promise: "met", "not met", "not run" (its experiment did not run), or "not
    measured" (it ran without this value, or with too few cases).
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
    >>> format_target_value(0.0001, "ms"), format_target_value(0.02, "%")
    ('0.1 ms', '2%')
    >>> format_target_value(48000.0), format_target_value(3.15e-38), format_target_value(None)
    ('48,000', '3e-38', '–')
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
