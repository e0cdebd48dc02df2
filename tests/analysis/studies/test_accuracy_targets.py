"""Each promise about the load generator is judged by its own bound, and a miss is at the top."""

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
        "events/s on one core with TTFT and gaps within 10% of the truth",
        "accuracy",
        "levels",
        4,
        "events_per_s",
        47_900.0,
    ),
    (
        "events/s on one core with TTFT and gaps within 10% of the truth",
        "accuracy",
        "levels",
        4,
        "itl_seen_p50_s",
        0.0112,
    ),
    ("pauses of 50 ms found", "stalls", "found", 1299),
    ("other gaps mistaken for a pause", "stalls", "false", 1),
    ("64 streams: CPU time per event, ratio to the C reader", "cost", "ratio_to_c", "64", 2.21),
    ("256 streams: CPU time per event, ratio to the C reader", "cost", "ratio_to_c", "256", 2.21),
    ("512 streams: CPU time per event, ratio to the C reader", "cost", "ratio_to_c", "512", 2.21),
    ("64 streams: CPU time per event, ratio to `vllm bench serve`", "cost", "ratio_to_vllm", 0.51),
    ("memory, MB", "start_up", "rss_mb", 101.0),
    ("CPU time to start, s", "start_up", "cpu_s", 1.01),
    (
        "azure.csv: error of the sending time, P99",
        "replay",
        "azure.csv",
        "arrival_error_p99_s",
        -5.1e-3,
    ),
    (
        "mooncake.jsonl: error of the sending time, P99",
        "replay",
        "mooncake.jsonl",
        "arrival_error_p99_s",
        5.1e-3,
    ),
    ("open: error of E2E P99", "freeze", "open", "e2e_p99_s", 2.25),
    ("capped: error of E2E P99", "freeze", "capped", "e2e_p99_s", 2.15),
    ("replay: error of E2E P99", "freeze", "replay", "e2e_p99_s", 0.2),
    ("two load workers send the same requests at the same times as one", "workers", "same", False),
    ("20 starved load generators: share caught", "starved", "flagged", 19),
    ("20 healthy load generators: share not flagged", "healthy", "flagged", 1),
    ("memory in the last third, ratio to the first third", "soak", "last_third_mb", 74.0),
]


@pytest.mark.parametrize("spoiled", SPOILED, ids=lambda spoiled: "/".join(map(str, spoiled[1:-1])))
def test_a_miss_is_shown_at_the_top(results, tmp_path, spoiled):
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
