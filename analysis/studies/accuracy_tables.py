"""Builds the tables of the accuracy page, headings and rows of text, from results.json."""

from analysis.studies.accuracy_targets import ExperimentResult, format_target_value

READERS = {"c": "C", "python": "Python"}


Table = tuple[list[str], list[list[str]]]  # headings, rows of text


def kolmogorov_smirnov(found: ExperimentResult | None) -> tuple[str, str] | None:
    """The number of Kolmogorov-Smirnov tests, and the probability that one of them has a p below
    0.01 although nothing is wrong.
    """
    if not found:
        return None
    tests = len(found["levels"]) * found["runs"]
    return f"{tests}", f"{1 - 0.99**tests:.0%}"


def accuracy_table(found: ExperimentResult) -> Table:
    columns = (
        ("events_per_s", ""),
        ("ttft_error_mean_s", "ms"),
        ("ttft_error_p99_s", "ms"),
        ("ttft_from_sent_error_mean_s", "ms"),
        ("ttft_from_sent_error_p99_s", "ms"),
        ("send_lag_p50_s", "ms"),
        ("send_lag_p99_s", "ms"),
        ("stamp_error_p99_s", "ms"),
        ("itl_error_p99_s", "us"),
        ("itl_true_p99_s", "ms"),
        ("itl_seen_p99_s", "ms"),
        ("waited_share", "%"),
        ("failed", ""),
    )
    rows = [
        [
            format_target_value(each["users"]),
            each["stamps"],
            *(format_target_value(each.get(name), unit) for name, unit in columns),
        ]
        for each in found["levels"]
    ]
    heads = [
        "streams",
        "stamps",
        "events/s",
        "TTFT error, mean",
        "P99",
        "TTFT error from sent, mean",
        "P99",
        "sent late, P50",
        "P99",
        "stamp error, P99",
        "gap error, P99",
        "P99 of all gaps: true",
    ]
    return [*heads, "measured", "waited for its core", "failed"], rows


def cost_table(found: ExperimentResult) -> Table:
    clients = list_clients(found)
    rows = [
        [
            streams,
            *(format_target_value(us.get(name)) for name in clients),
            format_target_value(found["ratio_to_c"].get(streams)),
        ]
        for streams, us in cpu_costs(found).items()
    ]
    return ["streams", *(f"{name}, us" for name in clients), "ratio to the C reader"], rows


def cpu_costs(found: ExperimentResult) -> dict[str, dict[str, float]]:
    """CPU time per event of each client, us, by streams; streams in step all start together."""
    return {**found["spread_us"], "64, in step": found["together_us"]}


def list_clients(found: ExperimentResult) -> list[str]:
    return list(dict.fromkeys(name for us in cpu_costs(found).values() for name in us))


def start_up_table(found: ExperimentResult) -> Table:
    return ["CPU time, s", "memory (RSS), MB", "memory with shared parts divided (PSS), MB"], [
        [
            format_target_value(found["cpu_s"]),
            format_target_value(found["rss_mb"]),
            format_target_value(found["pss_mb"]),
        ]
    ]


def open_loop_table(found: ExperimentResult) -> Table:
    columns = (
        ("rate", ""),
        ("rate_error", "%"),
        ("send_lag_p50_s", "ms"),
        ("send_lag_p99_s", "ms"),
        ("ttft_error_mean_s", "ms"),
        *(
            column
            for who in ("planned", "sent", "sent_in_c")
            for column in ((f"ks_{who}_p", ""), (f"least_ks_{who}_p", ""))
        ),
        ("failed", ""),
    )
    rows = [
        [format_target_value(each.get(name), unit) for name, unit in columns]
        for each in found["levels"]
    ]
    return [
        "requests/s",
        "rate error",
        "sent late, P50",
        "P99",
        "TTFT error, mean",
        "p, planned",
        "least",
        "p, sent",
        "least",
        "p, sent by a C program",
        "least",
        "failed",
    ], rows


def replay_table(found: ExperimentResult) -> Table:
    rows = [
        [
            file,
            format_target_value(each["requests"]),
            format_target_value(each["arrival_error_p50_s"], "ms"),
            format_target_value(each["arrival_error_p99_s"], "ms"),
        ]
        for file, each in found.items()
        if file in ("azure.csv", "mooncake.jsonl")
    ]
    return ["trace", "requests", "sent late, P50", "P99"], rows


def freeze_table(found: ExperimentResult) -> Table:
    names = ("expected_p99_s", "e2e_p99_s", "expected_p95_s", "e2e_p95_s", "from_sent_p95_s")
    rows = [
        [
            mode,
            format_target_value(each["requests"]),
            *(format_target_value(each.get(name), "ms") for name in names),
            format_target_value(each["waited_over_1_s"]),
        ]
        for mode, each in list_modes(found)
    ]
    return [
        "load",
        "requests",
        "P99: true",
        "measured",
        "P95: true",
        "measured",
        "measured from sent",
        "waited over 1 s",
    ], rows


def list_modes(found: ExperimentResult) -> list[tuple[str, ExperimentResult]]:
    return [(mode, found[mode]) for mode in ("open", "capped", "replay", "closed") if mode in found]


def workers_table(found: ExperimentResult) -> Table:
    rows = [
        [count, format_target_value(requests), format_target_value(us)]
        for (count, us), requests in zip(
            found["us_per_event"].items(), found["requests"], strict=True
        )
    ]
    return ["load workers", "requests", "CPU time per event, us"], rows


def starvation_table(found: ExperimentResult) -> Table:
    return ["cases", "flagged"], [
        [format_target_value(found["cases"]), format_target_value(found["flagged"])]
    ]


def soak_table(found: ExperimentResult) -> Table:
    return ["minutes", "requests", "first third, MB", "last third, MB"], [
        [
            format_target_value(found["minutes"]),
            format_target_value(found["requests"]),
            format_target_value(found["first_third_mb"]),
            format_target_value(found["last_third_mb"]),
        ]
    ]
