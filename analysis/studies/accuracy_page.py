"""Writes the accuracy page, "How far can you trust a number?": README.md and figures beside the
results.json of loadtests/accuracy/__main__.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from analysis import dataset, templating
from analysis.defaults import INSTRUMENT
from analysis.plots.style import STYLE, encode_png
from analysis.studies.accuracy_figures import draw_accuracy, draw_cost, draw_freeze, draw_open_loop
from analysis.studies.accuracy_tables import (
    READERS,
    Table,
    accuracy_table,
    cost_table,
    freeze_table,
    kolmogorov_smirnov,
    open_loop_table,
    replay_table,
    soak_table,
    start_up_table,
    starvation_table,
    workers_table,
)
from analysis.studies.accuracy_targets import (
    TARGETS,
    ExperimentResult,
    format_target_value,
    judge_target,
)


def write_page(folder: Path = INSTRUMENT) -> Path:
    """Writes README.md and figures to the folder. Returns the page's path. Raises InputError."""
    results = dataset.read_accuracy_results(folder)
    page = folder / "README.md"
    view = accuracy_view(results)
    for name, section in SECTIONS.items():
        if section.figure and name in results:
            with rc_context(STYLE):
                (folder / f"{name}.png").write_bytes(encode_png(section.figure(results[name])))
    page.write_text(templating.make_environment().get_template("accuracy.md.jinja").render(view))
    return page


def accuracy_view(results: dict[str, ExperimentResult]) -> templating.View:
    """Everything that the template prints, as text."""
    verdicts = [judge_target(promise, results) for promise in TARGETS]
    sections = [
        {
            "name": name,
            "title": section.title,
            "text": section.text,
            "run": name in results,
            "caption": section.caption,
            "made": describe_run(results[name]) if name in results else "",
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
    machines = list(
        dict.fromkeys(describe_machine(found["manifest"]) for found in results.values())
    )
    return {
        "counts": counts,
        "total": len(verdicts),
        "missed": [v for v in verdicts if v.verdict == "not met"],
        "machines": machines,
        "sections": sections,
        "ks": kolmogorov_smirnov(results.get("open_loop")),
    }


def describe_machine(manifest: dataset.Json) -> str:
    cpu = manifest["cpu"]
    return str(
        templating.escape_markdown(
            f"{cpu['model']}, {cpu['cores']} cores, {manifest['kernel']}, {manifest['python']}"
        )
    )


def describe_run(found: ExperimentResult) -> str:
    manifest = found["manifest"]
    commit = f"commit {manifest['commit'][:10]}" if manifest["commit"] else "no commit"
    runs = "one run" if found["runs"] == 1 else f"medians of {found['runs']} runs"
    # absent in older results
    readers = " and ".join(READERS[reader] for reader in found.get("readers", ()))
    read = f"streams read in {readers}; " if readers else ""
    return (
        f"{runs}, {found['took_s']} s;"
        f" {read}{commit}{' with changes' if manifest['dirty'] else ''};"
        f" {describe_machine(manifest)}"
    )


class Section(NamedTuple):
    """One experiment on the page; `text` is Markdown."""

    title: str
    text: str
    table: Callable[[ExperimentResult], Table]
    figure: Callable[[ExperimentResult], Figure] | None = None
    caption: str = ""


SECTIONS = {
    "accuracy": Section(
        "How wrong is a time?",
        "Many streams of 100 tokens/s each, from a server that records when it sends each"
        " token.\n\n"
        "- **TTFT error**: the measured time from scheduled to the first token, minus the server's"
        " own time. It includes everything that the load generator and the network add; in a closed"
        " loop, also the time from the end of a response to the next request.\n"
        "- **TTFT error from sent**: the same, counted from when the request was sent.\n"
        "- **Gap error**: a measured gap between two tokens, minus the same gap as sent.\n"
        "- **Stamps**: `kernel` are the kernel's arrival times, which the load generator uses where"
        " it can (Linux, without TLS). `user` are its own, taken when it reads. `C program`, where"
        " measured, is a few lines of C (`loadtests/accuracy/floor_reader.c`) that only read, stamp"
        " and send, run alternately with ours: their error is the machine's own.\n"
        "- **Waited**: the share of the time in which the load generator was ready to run while its"
        " core ran other programs. About 1% can be enough to delay the worst 1% of its own stamps"
        " and of its sending.",
        accuracy_table,
        draw_accuracy,
        "Errors of TTFT and of single gaps against the number of streams.",
    ),
    "stalls": Section(
        "Does it find the pauses that a user would notice?",
        "64 streams that pause for 50 ms before every 40th token. Each pause must be found, and no"
        " other gap may be mistaken for a pause.",
        lambda found: (
            ["pauses", "found", "other gaps mistaken for one"],
            [[format_target_value(found[name]) for name in ("stalls", "found", "false")]],
        ),
    ),
    "cost": Section(
        "What does it cost to watch a token?",
        "The load generator's CPU time per event, compared with a C program that only reads"
        " (`loadtests/accuracy/floor_reader.c`) and with `vllm bench serve`. The streams of the"
        " latter all start at once, so many tokens arrive together, which costs less; “in step”,"
        " ours do the same. The programs run one after the other, and a ratio is the median over"
        " pairs of runs.",
        cost_table,
        draw_cost,
        "CPU time per event: the load generator, the reader in C, and vLLM's own benchmark.",
    ),
    "start_up": Section(
        "What does it cost to start?",
        "CPU time and memory until the first request can be sent.",
        start_up_table,
    ),
    "open_loop": Section(
        "Does an open loop send on time?",
        "Poisson arrivals of short requests. The rate is compared with the plan. The gaps between"
        " arrivals, as planned and as sent, are tested against the exponential distribution of the"
        " scenario (Kolmogorov-Smirnov). Sending takes time, which distorts the shortest gaps:"
        " `sent by a C program`, where measured, is a few lines of C"
        " (`loadtests/accuracy/floor_sender.c`) that send at the same times, stay awake and do"
        " nothing else, run alternately with ours. Where even that program fails, one core is not"
        " enough. The promise holds for the least p of the runs, which is stricter than their"
        " median.",
        open_loop_table,
        draw_open_loop,
        "How much later than scheduled requests are sent, by rate.",
    ),
    "replay": Section(
        "Does a replay send at the times of the trace?",
        "A bursty trace in the formats of Azure and Mooncake, replayed at twice its speed.",
        replay_table,
    ),
    "freeze": Section(
        "Does it see a server that stalls?",
        "The server stalls once, for 2 s; the E2E of each response then follows from the arrivals."
        " A load generator that waits with the server, or that counts from sent instead of"
        " scheduled, hardly notices the stall: compare the closed loop, and the capped load"
        " measured from sent. In an open loop without a cap both are the same, since it sends on"
        " time. Nothing is promised for the closed loop, since only the requests in flight show the"
        " stall; reports warn of such a silence.",
        freeze_table,
        draw_freeze,
        "E2E of a server that stalls once: true, measured from scheduled, and measured from sent.",
    ),
    "workers": Section(
        "Do more load workers change the load?",
        "The same open loop from one load worker and from two, and their CPU time per event in a"
        " closed loop.",
        workers_table,
    ),
    "starved": Section(
        "Does it notice when it is too slow?",
        "Real cases on the simulated engine. The load generator shares its core with a dozen busy"
        " processes, and the check `client error` must mark each case as invalid.",
        starvation_table,
    ),
    "healthy": Section(
        "Does it pass when it is fast enough?",
        "The same cases, with a core of its own. The check must not fail.",
        starvation_table,
    ),
    "soak": Section("Does it leak memory?", "64 streams for a long time.", soak_table),
}
