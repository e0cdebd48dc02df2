"""The report on a terminal: tables of what the pages show."""

import re

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis import formatting
from analysis.conclusions import describe_result
from analysis.report import capacity_section
from analysis.report.writer import _concerns
from analysis.summary import Summary, build_comparisons
from analysis.templating import View

# What fits a terminal of 100 columns, with headings that do.
TERMINAL = {
    "output_tokens_per_s": "\ntokens/s",
    "requests_per_s": "\nreq/s",
    "goodput_per_s": "\ngood/s",
    "error_share": "err.\n%",
    "ttft_p50_s": "TTFT\nP50 ms",
    "ttft_p99_s": "TTFT\nP99 ms",
    "tpot_p50_s": "TPOT\nP50 ms",
    "e2e_p50_s": "E2E\nP50 ms",
    "e2e_p99_s": "E2E\nP99 ms",
    "server_cores": "CPU\ncores",
}


def show_summary(summary: Summary, console: Console) -> None:
    """Prints the answers and the headline tables; every text from the campaign is printed as text,
    not as markup.
    """
    capacity = capacity_section.capacity_view(summary)
    if capacity["systems"]:
        show_capacity(capacity, console)
        return
    shown = TERMINAL | (
        {"usd_per_million_tokens": "USD for\nM good"} if summary.machine_cost.price else {}
    )
    for comparison in build_comparisons(summary):
        console.print(Text(describe_result(comparison)))
        table = Table(
            title=Text(comparison.title),
            title_justify="left",
            box=None,
            header_style="bold",
            pad_edge=False,
        )
        table.add_column("\nserver", min_width=16, overflow="fold")
        for heading in shown.values():
            table.add_column(heading, justify="right", no_wrap=True)
        reasons = []
        for system in comparison.systems:
            name, valid = system.name, system.valid
            cells = [_short(m, valid) for m in shown] if len(valid) else ["invalid"]
            table.add_row(Text(name), *map(Text, cells))
            reasons += [f"{name}: {system.why}"] if system.why else []
        console.print(table)
        for reason in reasons:
            console.print(Text(f"  {reason}"))
        console.print()
    for concern in _concerns(summary):
        if concern["severity"] == "warning":
            console.print(
                Text(
                    f"warning: {concern['name']}, in {len(concern['cases'])} of"
                    f" {len(summary.table)} cases: {concern['remedy']}"
                )
            )
    console.print(
        Text(
            "±: 95% interval over runs; n=...: too small a sample for that percentile; ∞: this"
            " percentile is a failed request"
        )
    )


def show_capacity(capacity: View, console: Console) -> None:
    for answer in capacity["answers"]:
        console.print(Text(answer))
    table = Table(
        title=Text(f"Capacity: {capacity['slo']}"),
        title_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    for heading in ("server", "traffic", "capacity", "tokens/s there", "what broke first", "cases"):
        table.add_column(heading, overflow="fold")
    for s in capacity["systems"]:
        table.add_row(
            *map(
                Text,
                (
                    f"{s['server']} ({s['engine']})",
                    s["traffic"],
                    s["capacity"],
                    s["tokens"],
                    s["broke"],
                    str(s["cases"]),
                ),
            )
        )
    console.print(table)
    for s in capacity["systems"]:
        if s["ended"]:
            console.print(Text(f"  {s['server']} ({s['engine']}): {s['ended']}"))


def _short(metric: str, valid: pd.DataFrame) -> str:
    """What fits a terminal: the interval only of the first column."""
    number, beside = formatting.split_estimate(metric, valid)
    if small := re.search(r"n=\d+", beside):
        return small[0]
    return f"{number} {beside}".strip() if metric == "output_tokens_per_s" else number
