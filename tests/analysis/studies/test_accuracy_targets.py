"""Each promise about the load generator is judged by its own bound; a miss stands at the top."""

import pytest

from analysis.studies import accuracy_targets
from analysis.studies.accuracy_targets import TARGETS, ResultAt
from tests.helpers.accuracy_results import errors, page

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.parametrize(
    "promise",
    [promise for promise in TARGETS if isinstance(promise.value, ResultAt)],
    ids=lambda promise: promise.what,
)
def test_each_level_is_judged_by_its_own_bound(results, promise):
    for factor, sign in ((1.01, 1), (1.01, -1), (0.99, 1), (0.99, -1)):
        for level in results[promise.experiment]["levels"]:
            if promise.value.where.items() <= level.items():
                level[promise.value.name] = sign * factor * promise.bound
        assert accuracy_targets.judge_target(promise, results).verdict == (
            "met" if (factor > 1) == promise.least else "not met"
        )


SPOILED = [
    (
        "events/s on one core with TTFT and gaps right within 10%",
        "accuracy",
        "levels",
        4,
        "events_per_s",
        47_900.0,
    ),
    (
        "events/s on one core with TTFT and gaps right within 10%",
        "accuracy",
        "levels",
        4,
        "itl_seen_p50_s",
        0.0112,
    ),
    ("pauses of 50 ms that were found", "stalls", "found", 1299),
    ("other gaps that were taken for one", "stalls", "false", 1),
    (
        "64 streams: CPU time for an event, times that of the C reader",
        "cost",
        "ratio_to_c",
        "64",
        2.21,
    ),
    (
        "256 streams: CPU time for an event, times that of the C reader",
        "cost",
        "ratio_to_c",
        "256",
        2.21,
    ),
    (
        "512 streams: CPU time for an event, times that of the C reader",
        "cost",
        "ratio_to_c",
        "512",
        2.21,
    ),
    (
        "64 streams: CPU time for an event, times that of `vllm bench serve`",
        "cost",
        "ratio_to_vllm",
        0.51,
    ),
    ("memory, MB", "start_up", "rss_mb", 101.0),
    ("CPU time to start, s", "start_up", "cpu_s", 1.01),
    (
        "azure.csv: sent at another time than recorded, P99",
        "replay",
        "azure.csv",
        "arrival_error_p99_s",
        -5.1e-3,
    ),
    (
        "mooncake.jsonl: sent at another time than recorded, P99",
        "replay",
        "mooncake.jsonl",
        "arrival_error_p99_s",
        5.1e-3,
    ),
    ("open: P99 of E2E is off by", "freeze", "open", "e2e_p99_s", 2.25),
    ("capped: P99 of E2E is off by", "freeze", "capped", "e2e_p99_s", 2.15),
    ("replay: P99 of E2E is off by", "freeze", "replay", "e2e_p99_s", 0.2),
    ("two load workers send the same requests at the same times as one", "workers", "same", False),
    ("of 20 starved load generators, caught", "starved", "flagged", 19),
    ("of 20 healthy load generators, not flagged", "healthy", "flagged", 1),
    ("memory in the last third, times that in the first", "soak", "last_third_mb", 74.0),
]


@pytest.mark.parametrize("spoiled", SPOILED, ids=lambda spoiled: "/".join(map(str, spoiled[1:-1])))
def test_a_miss_is_a_miss_and_stands_at_the_top(results, tmp_path, spoiled):
    what, *path, last, value = spoiled
    place = results
    for key in path:
        place = place[key]
    assert last in place or isinstance(place, list)
    place[last] = value
    assert {
        promise.what
        for promise in TARGETS
        if accuracy_targets.judge_target(promise, results).verdict == "not met"
    } == {what}
    text = page(tmp_path, results)
    assert (
        "1 not met" in text
        and f"- {what}: " in text.partition("## ")[0]
        and f"| {what} |" in text
        and text.count("**not met**") == 1
    )


def test_events_count_only_where_all_times_are_right(results):
    *_, least, most = results["accuracy"]["levels"]
    assert accuracy_targets.events_seen_right(results["accuracy"]) == least["events_per_s"], (
        "the gaps of the largest level are wrong"
    )
    most |= errors(events_per_s=70_000.0)
    assert accuracy_targets.events_seen_right(results["accuracy"]) == 70_000.0
    for name, wrong in (
        ("ttft_error_mean_s", -5.1e-3),
        ("ttft_error_p99_s", 5.1e-3),
        ("itl_seen_p50_s", 0.0089),
        ("itl_seen_p99_s", None),
    ):
        spoiled = [*results["accuracy"]["levels"][:-1], most | {name: wrong}]
        assert accuracy_targets.events_seen_right({"levels": spoiled}) == least["events_per_s"], (
            name
        )
    assert accuracy_targets.events_seen_right({"levels": [most | {"stamps": "user"}]}) == 0.0


def test_every_promise_is_spoiled_somewhere():
    assert {promise.what for promise in TARGETS if not isinstance(promise.value, ResultAt)} == {
        what for what, *_ in SPOILED
    }
