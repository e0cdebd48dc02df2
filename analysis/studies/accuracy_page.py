"""results.json of loadtests/accuracy/__main__.py -> README.md and figures beside it: "How far can
you trust a number?"
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from analysis import dataset, templating
from analysis.plots.figures import COLOURS, STYLE, WIDTH, png
from analysis.stats import NAN
from analysis.studies.accuracy_targets import PROMISES, At, Found, shown, verdict

RESULTS = dataset.RESULTS / "instrument"
READERS = {"c": "C", "python": "Python"}
Table = tuple[list[str], list[list[str]]]  # headings, rows of text


def write(folder: Path = RESULTS) -> Path:
    """README.md and figures into the folder; the page's path. Raises InputError."""
    results = dataset.instrument(folder)
    page = folder / "README.md"
    view = view_of(results)
    for name, section in SECTIONS.items():
        if section.figure and name in results:
            with rc_context(STYLE):
                (folder / f"{name}.png").write_bytes(png(section.figure(results[name])))
    page.write_text(templating.environment().get_template("instrument.md.jinja").render(view))
    return page


def view_of(results: dict[str, Found]) -> dict[str, Any]:
    """Everything that the template prints, as text."""
    verdicts = [verdict(promise, results) for promise in PROMISES]
    sections = [
        {
            "name": name,
            "title": section.title,
            "text": section.text,
            "run": name in results,
            "caption": section.caption,
            "made": made(results[name]) if name in results else "",
            "verdicts": [v for v in verdicts if v.promise.experiment == name],
            "table": section.table(results[name]) if name in results else None,
            "figure": f"{name}.png" if name in results and section.figure else None,
        }
        for name, section in SECTIONS.items()
    ]
    counts = {
        word: sum(v.verdict == word for v in verdicts)
        for word in ("met", "not met", "not measured", "not run")
    }
    machines = list(dict.fromkeys(machine(found["manifest"]) for found in results.values()))
    return {
        "counts": counts,
        "total": len(verdicts),
        "missed": [v for v in verdicts if v.verdict == "not met"],
        "machines": machines,
        "sections": sections,
        "ks": ks(results.get("open_loop")),
    }


def machine(manifest: dict[str, Any]) -> str:
    cpu = manifest["cpu"]
    return str(
        templating.escape_markdown(
            f"{cpu['model']}, {cpu['cores']} cores, {manifest['kernel']}, {manifest['python']}"
        )
    )


def made(found: Found) -> str:
    manifest = found["manifest"]
    commit = f"commit {manifest['commit'][:10]}" if manifest["commit"] else "no commit"
    runs = "one run" if found["runs"] == 1 else f"medians of {found['runs']} runs"
    # older results do not know
    readers = " and ".join(READERS[reader] for reader in found.get("readers", ()))
    read = f"streams read in {readers}; " if readers else ""
    return (
        f"{runs}, {found['took_s']} s;"
        f" {read}{commit}{' with changes' if manifest['dirty'] else ''}; {machine(manifest)}"
    )


def ks(found: Found | None) -> tuple[str, str] | None:
    """How many Kolmogorov-Smirnov tests there were, and how likely one of them is below 0.01 if
    nothing is wrong.
    """
    if not found:
        return None
    tests = len(found["levels"]) * found["runs"]
    return f"{tests}", f"{1 - 0.99**tests:.0%}"


# --- tables


def accuracy_table(found: Found) -> Table:
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
            shown(each["users"]),
            each["stamps"],
            *(shown(each.get(name), unit) for name, unit in columns),
        ]
        for each in found["levels"]
    ]
    heads = [
        "streams",
        "stamps",
        "events/s",
        "TTFT error, mean",
        "P99",
        "from sent on, mean",
        "P99",
        "sent late, P50",
        "P99",
        "stamp error, P99",
        "gap error, P99",
        "P99 of the gaps: true",
    ]
    return [*heads, "measured", "waited for its core", "failed"], rows


def cost_table(found: Found) -> Table:
    clients = clients_of(found)
    rows = [
        [
            streams,
            *(shown(us.get(name)) for name in clients),
            shown(found["ratio_to_c"].get(streams)),
        ]
        for streams, us in costs(found).items()
    ]
    return ["streams", *(f"{name}, us" for name in clients), "times the C reader"], rows


def costs(found: Found) -> dict[str, dict[str, float]]:
    """us for an event of each client, by streams; those in step all began together."""
    return {**found["spread_us"], "64, in step": found["together_us"]}


def clients_of(found: Found) -> list[str]:
    return list(dict.fromkeys(name for us in costs(found).values() for name in us))


def start_up_table(found: Found) -> Table:
    return ["CPU time, s", "memory (RSS), MB", "shared parts counted once (PSS), MB"], [
        [shown(found["cpu_s"]), shown(found["rss_mb"]), shown(found["pss_mb"])]
    ]


def open_loop_table(found: Found) -> Table:
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
    rows = [[shown(each.get(name), unit) for name, unit in columns] for each in found["levels"]]
    return [
        "requests/s",
        "rate off by",
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


def replay_table(found: Found) -> Table:
    rows = [
        [
            file,
            shown(each["requests"]),
            shown(each["arrival_error_p50_s"], "ms"),
            shown(each["arrival_error_p99_s"], "ms"),
        ]
        for file, each in found.items()
        if file in ("azure.csv", "mooncake.jsonl")
    ]
    return ["trace", "requests", "sent late, P50", "P99"], rows


def freeze_table(found: Found) -> Table:
    names = ("expected_p99_s", "e2e_p99_s", "expected_p95_s", "e2e_p95_s", "from_sent_p95_s")
    rows = [
        [
            mode,
            shown(each["requests"]),
            *(shown(each.get(name), "ms") for name in names),
            shown(each["waited_over_1_s"]),
        ]
        for mode, each in modes(found)
    ]
    return [
        "load",
        "requests",
        "P99: true",
        "measured",
        "P95: true",
        "measured",
        "counted from sent",
        "waited over 1 s",
    ], rows


def modes(found: Found) -> list[tuple[str, Found]]:
    return [(mode, found[mode]) for mode in ("open", "capped", "replay", "closed") if mode in found]


def workers_table(found: Found) -> Table:
    rows = [
        [count, shown(requests), shown(us)]
        for (count, us), requests in zip(
            found["us_per_event"].items(), found["requests"], strict=True
        )
    ]
    return ["load workers", "requests", "CPU time for an event, us"], rows


def judged_table(found: Found) -> Table:
    return ["cases", "flagged"], [[shown(found["cases"]), shown(found["flagged"])]]


def soak_table(found: Found) -> Table:
    return ["minutes", "requests", "first third, MB", "last third, MB"], [
        [
            shown(found["minutes"]),
            shown(found["requests"]),
            shown(found["first_third_mb"]),
            shown(found["last_third_mb"]),
        ]
    ]


# --- figures


def accuracy_figure(found: Found) -> Figure:
    figure = Figure(figsize=(1.5 * WIDTH, 3.4))
    left, right = figure.subplots(1, 2)
    for axes, name, unit, label, colour in (
        (left, "ttft_error_mean_s", 1e3, "mean", COLOURS[0]),
        (left, "ttft_error_p99_s", 1e3, "P99", COLOURS[1]),
        (right, "itl_error_p99_s", 1e6, "P99", COLOURS[1]),
    ):
        for stamps, marker, beside in (
            ("kernel", "o", ""),
            ("user", "x", ", without the kernel's stamps"),
            ("C program", "^", ", C program"),
        ):
            levels = [level for level in found["levels"] if level["stamps"] == stamps]
            line(axes, levels, "users", name, unit, label + beside, colour, marker)
        bounds(axes, "accuracy", name, "users", unit, colour)
    finish(left, "streams of 100 tokens/s each", "TTFT error, ms")
    finish(right, "streams of 100 tokens/s each", "error of a single gap, us")
    legend(figure)
    return figure


def open_loop_figure(found: Found) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.2))
    axes = figure.subplots()
    for name, colour, label in (
        ("send_lag_p50_s", COLOURS[0], "P50"),
        ("send_lag_p99_s", COLOURS[1], "P99"),
    ):
        line(axes, found["levels"], "rate", name, 1e3, label, colour)
        bounds(axes, "open_loop", name, "rate", 1e3, colour)
    axes.set_xscale("log")
    finish(axes, "requests/s (log)", "sent later than scheduled, ms")
    legend(figure)
    return figure


def line(
    axes: Axes,
    levels: Sequence[Found],
    x: str,
    name: str,
    unit: float,
    label: str,
    colour: str,
    marker: str = "o",
) -> None:
    known = [level for level in levels if level.get(name)]  # a log axis has no zero
    if known:
        axes.plot(
            [level[x] for level in known],
            [unit * abs(level[name]) for level in known],
            marker=marker,
            markersize=7,
            lw=1.2 if len(known) > 1 else 0,
            color=colour,
            label=label,
        )


def bounds(axes: Axes, experiment: str, name: str, x: str, unit: float, colour: str) -> None:
    """A dash for each promise about that number; those without the kernel's stamps are in the table
    only.
    """
    for promise in PROMISES:
        if (
            promise.experiment == experiment
            and isinstance(promise.value, At)
            and promise.value.name == name
        ):
            where = promise.value.where
            if where.get("stamps") != "user":
                axes.plot(
                    where[x],
                    unit * promise.bound,
                    "_",
                    color=colour,
                    markersize=22,
                    markeredgewidth=2,
                    alpha=0.6,
                )


def finish(axes: Axes, x_label: str, title: str) -> None:
    axes.set_yscale("log")
    ticks = sorted({float(x) for each in axes.get_lines() for x in np.asarray(each.get_xdata())})
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(x_label)
    axes.set_title(f"{title} (log); a dash is what is promised", loc="left", fontsize=10)


def legend(figure: Figure) -> None:
    """One for all axes, each label once."""
    found = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if found:
        figure.legend(
            list(found.values()),
            list(found),
            loc="outside lower center",
            ncols=2,
            frameon=False,
            fontsize=8,
        )


def cost_figure(found: Found) -> Figure:
    clients = clients_of(found)
    groups = [
        ("{} streams{}{}".format(*level.partition(",")), [us.get(name) for name in clients])
        for level, us in costs(found).items()
    ]
    return bars(groups, clients, "CPU time for an event, us")


def freeze_figure(found: Found) -> Figure:
    p = "p95" if all(f"expected_{'p95'}_s" in each for _, each in modes(found)) else "p99"
    names = {
        f"expected_{p}_s": "what follows from the arrivals",
        f"e2e_{p}_s": "measured, from scheduled",
        f"from_sent_{p}_s": "what counting from sent would say",
    }
    return bars(
        [
            (
                f"{mode}\n{each['waited_over_1_s']:,} of {each['requests']:,}\nwaited over 1 s",
                [each[name] for name in names],
            )
            for mode, each in modes(found)
        ],
        list(names.values()),
        f"{p.upper()} of E2E, s",
    )


def bars(
    groups: Sequence[tuple[str, Sequence[float | None]]], names: Sequence[str], title: str
) -> Figure:
    """Bars beside each other, `names` in each group; what was not measured has none."""
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots()
    width = 0.8 / len(names)
    for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        heights = [float(NAN if (value := values[i]) is None else value) for _, values in groups]
        drawn = axes.bar(
            np.arange(len(groups)) + (i - (len(names) - 1) / 2) * width,
            heights,
            0.9 * width,
            color=colour,
            label=name,
        )
        axes.bar_label(
            drawn,
            ["" if math.isnan(height) else shown(height) for height in heights],
            fontsize=8,
            padding=2,
        )
    axes.set_xticks(range(len(groups)), [label for label, _ in groups])
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.12)
    axes.set_title(title, loc="left", fontsize=10)
    legend(figure)
    return figure


# --- the page's parts


class Section(NamedTuple):
    """One experiment on the page; `text` is Markdown."""

    title: str
    text: str
    table: Callable[[Found], Table]
    figure: Callable[[Found], Figure] | None = None
    caption: str = ""


SECTIONS = {
    "accuracy": Section(
        "How wrong is a time?",
        "Many streams of 100 tokens/s each, from a server that notes when it sends each token. TTFT"
        " error: the time to the first token as measured, from when the request was scheduled,"
        " minus what the server took, so all that the load generator and the network between them"
        " add; in a closed loop that contains the time from an answer's end to the next request."
        " From sent on: without that. A gap's error: one gap between two tokens as measured,"
        " against the same gap as sent. Stamps: `kernel` are the kernel's times of arrival, which"
        " the load generator uses where it can (Linux, without TLS); `user` are its own, taken when"
        " it comes round to reading; `C program`, where measured, is what a few lines of C get"
        " (`loadtests/accuracy/floor_reader.c`) that read, stamp and send, and nothing else, run by"
        " run between ours: so much is the machine's, and nobody's fault. Waited: for so much of"
        " the time it was ready to run and its core had something else to do than its own threads;"
        " where that is about 1%, it can be what made the worst 1% of its own stamps, and of its"
        " sending, late.",
        accuracy_table,
        accuracy_figure,
        "Errors of TTFT and of single gaps against the number of streams.",
    ),
    "stalls": Section(
        "Does it find what a user would notice?",
        "64 streams that pause for 50 ms before every 40th token: each pause must be found, and no"
        " other gap be taken for one.",
        lambda found: (
            ["pauses", "found", "others taken for one"],
            [[shown(found[name]) for name in ("stalls", "found", "false")]],
        ),
    ),
    "cost": Section(
        "What does it cost to watch a token?",
        "CPU time of the load generator for one event, beside that of a program in C that only"
        " reads (`loadtests/accuracy/floor_reader.c`), and of `vllm bench serve`, whose streams all"
        " begin at once, so that many tokens come together and are cheaper: in step, ours do so as"
        " well. They run one after the other; a ratio is the median of pairs.",
        cost_table,
        cost_figure,
        "CPU time for an event: the load generator, the reader in C, and vLLM's own benchmark.",
    ),
    "start_up": Section(
        "What does it cost to start?",
        "CPU time and memory until the first request can be sent.",
        start_up_table,
    ),
    "open_loop": Section(
        "Does an open loop send when it says?",
        "Poisson arrivals of short requests. The rate is held against the plan; gaps between"
        " arrivals, as planned and as sent, are tested against the exponential distribution that"
        " was asked for (Kolmogorov-Smirnov). Sending takes time, which distorts the shortest gaps:"
        " `sent by a C program`, where measured, is what a few lines of C get"
        " (`loadtests/accuracy/floor_sender.c`) that send at the same times, stay awake, and do"
        " nothing else, run by run between ours. Where even that fails, one core is not enough."
        " What is promised is the least p of the runs, which is stricter than their median.",
        open_loop_table,
        open_loop_figure,
        "How much later than scheduled requests are sent, against the rate.",
    ),
    "replay": Section(
        "Does a replay send when the trace says?",
        "A bursty trace in Azure's and in Mooncake's form, replayed twice as fast as recorded.",
        replay_table,
    ),
    "freeze": Section(
        "Does it see a server that stands still?",
        "The server stands still once, for 2 s; how long each answer takes until its end (E2E) then"
        " follows from the arrivals. A load generator that waits with the server, or that counts"
        " from when it sent and not from when it should have, hardly notices: see the closed loop,"
        " and the cap on concurrency counted from sent. In an open loop without a cap both are the"
        " same, since it sends in time. Of a closed loop nothing is promised, since only those who"
        " waited show it; reports warn of such a silence.",
        freeze_table,
        freeze_figure,
        "E2E of a server that stands still once: the truth, what was measured, what counting from"
        " sent says.",
    ),
    "workers": Section(
        "Do more load workers change the load?",
        "The same open loop from one load worker and from two; and what an event costs them in a"
        " closed loop.",
        workers_table,
    ),
    "starved": Section(
        "Does it notice that it is too slow?",
        "Real cases on the simulated engine. A load generator that shares its core with a dozen"
        " busy processes must be found out by the check `client error`, so that its case is no"
        " number.",
        judged_table,
    ),
    "healthy": Section(
        "Does it leave a good one alone?", "The same, with its core for itself.", judged_table
    ),
    "soak": Section("Does it leak?", "64 streams for a long time.", soak_table),
}
