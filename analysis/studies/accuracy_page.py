"""results.json of loadtests/accuracy/__main__.py -> README.md and figures beside it: "How far can
you trust a number?"
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from analysis import dataset, templating
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
    RESULTS,
    TARGETS,
    ExperimentResult,
    format_target_value,
    judge_target,
)


def write_page(folder: Path = RESULTS) -> Path:
    """README.md and figures into the folder; the page's path. Raises InputError."""
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
    # older results do not know
    readers = " and ".join(READERS[reader] for reader in found.get("readers", ()))
    read = f"streams read in {readers}; " if readers else ""
    return (
        f"{runs}, {found['took_s']} s;"
        f" {read}{commit}{' with changes' if manifest['dirty'] else ''};"
        f" {describe_machine(manifest)}"
    )


# --- tables


# --- figures


# --- the page's parts


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
        draw_accuracy,
        "Errors of TTFT and of single gaps against the number of streams.",
    ),
    "stalls": Section(
        "Does it find what a user would notice?",
        "64 streams that pause for 50 ms before every 40th token: each pause must be found, and no"
        " other gap be taken for one.",
        lambda found: (
            ["pauses", "found", "others taken for one"],
            [[format_target_value(found[name]) for name in ("stalls", "found", "false")]],
        ),
    ),
    "cost": Section(
        "What does it cost to watch a token?",
        "CPU time of the load generator for one event, beside that of a program in C that only"
        " reads (`loadtests/accuracy/floor_reader.c`), and of `vllm bench serve`, whose streams all"
        " begin at once, so that many tokens come together and are cheaper: in step, ours do so as"
        " well. They run one after the other; a ratio is the median of pairs.",
        cost_table,
        draw_cost,
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
        draw_open_loop,
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
        draw_freeze,
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
        starvation_table,
    ),
    "healthy": Section(
        "Does it leave a good one alone?", "The same, with its core for itself.", starvation_table
    ),
    "soak": Section("Does it leak?", "64 streams for a long time.", soak_table),
}
