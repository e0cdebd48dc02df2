"""The report's first screen: the conclusion, the numbers that decide, one figure, and what could
change the conclusion.
"""

import math
from collections.abc import Sequence

from analysis import conclusions
from analysis.formatting import format_estimate, shorten, split_estimate
from analysis.metrics import METRICS
from analysis.plots import style
from analysis.report import comparison_section, profile_section
from analysis.stats import estimate_mean
from analysis.summary import Comparison, ServerSummary, Summary, Sweep, build_sweeps
from analysis.templating import View, slugify

HEADS = {
    "output_tokens_per_s": "output, tokens/s",
    "gpu_utilization_percent": "GPU busy, %",
    "server_cores": "CPU cores used",
    "machine_cores": "CPU cores busy on its machine",
    "usd_per_million_tokens": "cost per million good tokens, USD",
}
LATENCIES = {"ttft": "{}% of first tokens within, ms", "e2e": "{}% of responses within, ms"}
MOST_ROWS = 6
MOST_ANSWERS = 2
MOST_CONCERNS = 4
SEVERITIES = ("invalid", "warning")


def first_screen_view(
    summary: Summary,
    comparisons: Sequence[Comparison],
    sections: Sequence[View],
    capacity: View,
    warnings: Sequence[tuple[str, str]],
    concerns: Sequence[View],
) -> View:
    """{title, answers, more_answers, figure, tables, concerns, more_concerns} for the templates.
    `figure` is one of those in `sections`, the views of scenarios, and is marked as first there: no
    section repeats it. `warnings` are (sentence, where its details are).
    """
    sweeps = build_sweeps(list(comparisons))
    deciding = [_deciding_comparison(sweep.comparisons) for sweep in sweeps]
    if capacity["systems"]:
        pairs = [(f"{s['server']} ({s['engine']})", s["server"]) for s in capacity["systems"]]
        answers, missing = [_shorten_names(text, pairs) for text in capacity["answers"]], ""
    else:
        parts = [_describe(comparison).partition(" Not ranked: ") for comparison in deciding]
        answers = [answer for answer, _, _ in parts]
        missing = "; ".join(unranked.rstrip(".") for _, _, unranked in parts if unranked)
    lines = _list_concerns(summary, deciding, missing, warnings, concerns)
    return {
        "title": _title(summary, bool(capacity["systems"])),
        "answers": answers[:MOST_ANSWERS] or ["This campaign has no case yet."],
        "more_answers": len(answers[MOST_ANSWERS:]),
        "figure": _choose_figure(sections),
        "tables": (
            [_capacity_table(capacity)]
            if capacity["systems"]
            else _tables(summary, sweeps, deciding)
        ),
        "concerns": lines[:MOST_CONCERNS],
        "more_concerns": len(lines[MOST_CONCERNS:]),
    }


def _label(name: str) -> str:
    """A system's name with its engine in words; an endpoint has no engine that we know."""
    return style.label_system(name).removesuffix(" (external)")


def _title(summary: Summary, is_search: bool) -> str:
    """A question about all servers, or about the only one."""
    table = summary.table
    if len(table[["server", "engine"]].drop_duplicates()) != 1:
        return "Which server should run this model?"
    name = str(table["server"].iloc[0])
    if table["engine"].iloc[0] == "external":
        name = profile_section.first_address(summary) or name
    return f"How much load does {name} sustain?" if is_search else f"How fast is {name}?"


def _deciding_comparison(comparisons: Sequence[Comparison]) -> Comparison:
    """The highest load of those at which most servers have a valid case."""
    return max(
        enumerate(comparisons),
        key=lambda each: (sum(len(s.valid) > 0 for s in each[1].systems), each[0]),
    )[1]


def _describe(comparison: Comparison) -> str:
    """The conclusion, without engines where the servers' names are clear without them."""
    if len(comparison.systems) == 1 and comparison.has_number:
        return _describe_one(comparison, comparison.systems[0])
    pairs = [(system.name, system.server) for system in comparison.systems]
    return _shorten_names(conclusions.describe_result(comparison), pairs)


def _shorten_names(text: str, pairs: Sequence[tuple[str, str]]) -> str:
    """`pairs` are (name with its engine, server); a server with several engines keeps them."""
    engines = dict.fromkeys(pairs)
    servers = [server for _, server in engines]
    for name, server in engines:
        if servers.count(server) == 1:
            text = text.replace(name, server)
    return text


def _describe_one(comparison: Comparison, system: ServerSummary) -> str:
    """The only server's numbers: "chat, 8 users: TTFT P99 53.6 ms (n = 562), 706 tokens/s."."""
    parts = []
    for stem in ("ttft", "e2e"):
        metric = _best_known(stem, [system])
        beside = _beside(metric, system)
        number = split_estimate(metric, system.valid)[0]
        text = f"{METRICS[metric].label} {number} ms"
        parts.append(f"{text} ({beside})" if beside else text)
    tokens = format_estimate("output_tokens_per_s", system.valid)
    demand = " (the demand)" if comparison.is_open else ""
    return f"{comparison.title}: {', '.join(parts)}, {tokens} tokens/s{demand}."


def _best_known(stem: str, systems: Sequence[ServerSummary]) -> str:
    """P99 of a latency, or P95 or P50 where a server has too few requests for it."""
    names = [f"{stem}_p{p}_s" for p in (99, 95, 50)]
    known = [n for n in names if all(system.valid[n].notna().any() for system in systems)]
    return known[0] if known else names[-1]


def _choose_figure(sections: Sequence[View]) -> View | None:
    """Latency over load if there are several loads, else the percentiles; None without a figure."""
    figures = [f for s in sections for f in s["curves"]]
    figures += [f for s in sections for c in s["comparisons"] for f in c["figures"]]
    for kind in ("demand-e2e", "curve-e2e", "tail"):
        for figure in figures:
            if figure["kind"] == kind:
                figure["first"] = True
                return figure
    return None


def _tables(
    summary: Summary, sweeps: Sequence[Sweep], deciding: Sequence[Comparison]
) -> list[View]:
    """A table per scenario: its servers at the deciding load, or the loads of the only server."""
    tables = []
    for sweep, comparison in list(zip(sweeps, deciding, strict=True))[:3]:
        servers = [(_label(s.name), s) for s in comparison.systems if len(s.valid)]
        head, title = "server", comparison.title
        if len(comparison.systems) == 1 and len(sweep.comparisons) > 1:
            loads = [(c.title, s) for c in sweep.comparisons for s in c.systems if len(s.valid)]
            servers = [(name.removeprefix(f"{sweep.scenario}, "), s) for name, s in loads]
            head, title = "load", sweep.scenario
        if not servers:
            continue
        most = MOST_ROWS // min(len(sweeps), 3)
        shown = servers[:most]
        if head == "server" and len(servers) > 2 * MOST_ROWS and comparison.families:
            best = {s.family: (f"{s.family}: {name}", s) for name, s in reversed(servers)}
            shown = [best[family] for family in comparison.families if family in best]
            title = f"{title}, the best of each family"
        systems = [system for _, system in servers]
        metrics = _deciding_metrics(summary, comparison, systems)
        runs = max(system.estimate.runs for system in systems)
        beside = "one run" if runs == 1 else f"{runs} runs (±: 95% interval)"
        tables.append(
            {
                "title": f"{title}, {beside}",
                "metrics": metrics,
                "heads": [head, *(_head(name) for name in metrics)],
                "rows": [[name, *(_cell(m, s) for m in metrics)] for name, s in shown],
                "more": len(servers) - len(shown),
            }
        )
    return tables


def _deciding_metrics(
    summary: Summary, comparison: Comparison, valid: Sequence[ServerSummary]
) -> list[str]:
    """Throughput (of an open loop, the wait for the first token), the tail of E2E, the busiest
    resource that was measured, and the cost if there is a price.
    """
    tail = _best_known("e2e", valid)
    first = _best_known("ttft", valid) if comparison.is_open else "output_tokens_per_s"
    names = [tail, first] if comparison.is_open else [first, tail]
    measured = [
        name
        for name in ("gpu_utilization_percent", "server_cores", "machine_cores")
        if any(system.valid[name].notna().any() for system in valid)
    ]
    price = ["usd_per_million_tokens"] if summary.machine_cost.price else []
    return [*names, *measured[:1], *price]


def _head(metric: str) -> str:
    stem, _, rest = metric.partition("_p")
    if stem in LATENCIES:
        return LATENCIES[stem].format(rest.removesuffix("_s"))
    return HEADS[metric]


def _cell(metric: str, system: ServerSummary) -> str:
    number, beside = split_estimate(metric, system.valid)[0], _beside(metric, system)
    return f"{number} ({beside})" if beside.startswith("n") else f"{number} {beside}".strip()


def _beside(metric: str, system: ServerSummary) -> str:
    """The interval over runs, unless it is less than the last digit shown, or else the number of
    requests that a percentile is from.
    """
    beside = split_estimate(metric, system.valid)[1]
    estimate = estimate_mean(system.valid[metric])
    if estimate.half < 0.005 * abs(estimate.mean):
        return ""
    sample = METRICS[metric].sample
    if beside or not sample:
        return beside
    n = system.valid[sample].sum()
    return f"n = {n:,.0f}" if n and not math.isnan(n) else ""


def _capacity_table(capacity: View) -> View:
    """What each server sustains, the best first."""
    return {
        "title": f"The highest load at which {capacity['slo']}",
        "metrics": [],
        "heads": ["server", "sustains", "output there, tokens/s", "what broke first above it"],
        "rows": [
            [
                _label(f"{system['server']} ({system['engine']})"),
                system["capacity"],
                system["tokens"],
                shorten(system["broke"], 50),
            ]
            for system in capacity["systems"][:MOST_ROWS]
        ],
        "more": len(capacity["systems"][MOST_ROWS:]),
    }


def _list_concerns(
    summary: Summary,
    deciding: Sequence[Comparison],
    missing: str,
    warnings: Sequence[tuple[str, str]],
    concerns: Sequence[View],
) -> list[View]:
    """One line each, the worst first, with the heading that has the details."""
    by_severity = {
        severity: [
            _concern(concern, len(summary.table))
            for concern in concerns
            if concern["severity"] == severity
        ]
        for severity in SEVERITIES
    }
    invalid = {"severity": "Invalid", "text": shorten(missing), "anchor": "invalid-cases"}
    # A search has no section for each load.
    anchor = "capacity" if summary.campaign.data.get("search") else ""
    caveats = {
        text: {
            "severity": "Warning",
            "text": text.rstrip("."),
            "anchor": anchor or slugify(comparison.title),
        }
        for comparison in reversed(deciding)
        for text in comparison_section.list_caveats(summary, comparison)
    }
    whole = [
        {"severity": "Warning", "text": text.rstrip("."), "anchor": anchor}
        for text, anchor in warnings
    ]
    return [
        *by_severity["invalid"],
        *([invalid] if missing else []),
        *whole,
        *caveats.values(),
        *by_severity["warning"],
    ]


def _concern(concern: View, cases: int) -> View:
    """The check, how many cases failed it, and the remedy."""
    severity = concern["severity"].capitalize()
    where = f"in {len(concern['cases'])} of {cases} cases"
    return {
        "severity": severity,
        "text": shorten(f"{concern['name']}, {where}: {concern['remedy']}", 130),
        "anchor": slugify(f"{severity}: {concern['name']}"),
    }
