"""The report on a terminal: conclusions, tables of the same numbers, concerns, and the next
commands.
"""

from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis import formatting, stats
from analysis.conclusions import describe_result
from analysis.report import capacity_section
from analysis.report.writer import list_concerns, list_warnings
from analysis.summary import Comparison, ServerSummary, Summary, build_comparisons
from analysis.templating import View


class Column(NamedTuple):
    """A number of the table, with a heading of two lines. On a narrow terminal the columns with the
    highest `spare` are left out first.
    """

    metric: str
    heading: str
    spare: int = 0


THROUGHPUT = (Column("output_tokens_per_s", "\ntok/s"),)
LATENCIES = (
    Column("ttft_p50_s", "TTFT\nP50 ms"),
    Column("ttft_p95_s", "TTFT\nP95 ms", 3),
    Column("ttft_p99_s", "TTFT\nP99 ms"),
    Column("e2e_p50_s", "E2E\nP50 ms", 2),
    Column("e2e_p95_s", "E2E\nP95 ms", 3),
    Column("e2e_p99_s", "E2E\nP99 ms"),
)
ERRORS = Column("error_share", "err.\n%", 1)
# In an open loop the scenario sets requests/s and tokens/s. The server decides how many of them are
# good.
CLOSED = (*THROUGHPUT, *LATENCIES, Column("requests_per_s", "\nreq/s", 4), ERRORS)
OPEN = (*LATENCIES, Column("goodput_per_s", "good\nreq/s", 4), ERRORS)
PRICE = Column("usd_per_million_tokens", "USD for\nM good", 1)
# Signs beside a number in a cell, and their meaning.
MEANINGS = {
    "±": "±: 95% interval over runs",
    "n=": "n=...: too few requests for that percentile",
    "∞": "∞: this percentile is a failed request",
}


def show_summary(summary: Summary, console: Console) -> None:
    """Prints conclusions, headline tables and concerns. Text from the campaign is never read as
    markup.
    """
    capacity = capacity_section.capacity_view(summary)
    if capacity["systems"]:
        show_capacity(capacity, console)
    else:
        cells = ""
        for comparison in build_comparisons(summary):
            cells += show_comparison(summary, comparison, console)
        if meanings := [meaning for sign, meaning in MEANINGS.items() if sign in cells]:
            console.print(Text("; ".join(meanings)))
    show_concerns(summary, console)


def show_comparison(summary: Summary, comparison: Comparison, console: Console) -> str:
    """Prints one scenario at one load; returns the text of all cells."""
    columns = (OPEN if comparison.is_open else CLOSED) + (
        (PRICE,) if summary.machine_cost.price else ()
    )
    rows = [
        (
            system.name,
            [_cell(column.metric, system) for column in columns]
            if len(system.valid)
            else ["invalid", *["–"] * (len(columns) - 1)],
        )
        for system in comparison.systems
    ]
    # Long names of servers are folded before a number is left out.
    words = [word for name, _ in rows for word in name.split()]
    least = min(24, max(map(len, words), default=0))
    shown = list(range(len(columns)))
    for spare in range(4, -1, -1):
        shown = [i for i, column in enumerate(columns) if column.spare <= spare]
        if least + sum(1 + _width(columns[i], [cells[i] for _, cells in rows]) for i in shown) <= (
            console.width
        ):
            break
    table = _table(comparison.title)
    table.add_column("\nserver", min_width=least, overflow="fold")
    for i in shown:
        table.add_column(columns[i].heading, justify="right", no_wrap=True)
    for name, cells in rows:
        table.add_row(Text(name), *(Text(cells[i]) for i in shown))
    console.print(Text(describe_result(comparison)))
    console.print(table)
    for system in comparison.systems:
        if system.why:
            console.print(Text(f"  {system.name}: {system.why}"))
    console.print()
    return " ".join(cell for _, cells in rows for i, cell in enumerate(cells) if i in shown)


def show_concerns(summary: Summary, console: Console) -> None:
    """Prints every reason to doubt these numbers, the worst first, one line each."""
    lines = [
        (
            concern["severity"],
            f"{concern['name']}, in {len(concern['cases'])} of {len(summary.table)} cases:"
            f" {concern['remedy']}",
        )
        for concern in list_concerns(summary)
    ]
    invalid = [line for line in lines if line[0] == "invalid"]
    warnings = [line for line in lines if line[0] == "warning"]
    whole = [("warning", text) for text in list_warnings(summary)]
    for severity, text in (*invalid, *whole, *warnings):
        console.print(Text(f"{severity}: {text}"), soft_wrap=True)


def show_capacity(capacity: View, console: Console) -> None:
    for answer in capacity["answers"]:
        console.print(Text(answer))
    table = _table(f"Capacity: {capacity['slo']}")
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


def show_next_commands(commands: list[tuple[str, str]], console: Console) -> None:
    """Prints each command on one line, however long, so that it can be copied."""
    if commands:
        console.print("\nNext steps:")
    for what, command in commands:
        console.print(Text(f"  # {what}"), soft_wrap=True)
        console.print(Text(f"  {command}"), soft_wrap=True)


def _width(column: Column, cells: list[str]) -> int:
    return max(map(len, [*column.heading.split("\n"), *cells]))


def _table(title: str) -> Table:
    return Table(
        title=Text(title),
        title_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _cell(metric: str, system: ServerSummary) -> str:
    """Formats a number for a terminal, which has room only for the interval of throughput."""
    valid = system.valid
    cell = formatting.format_cell(metric, valid)
    half = stats.estimate_mean(valid[metric]).half
    if metric == "output_tokens_per_s" and half > 0:
        return f"{cell} ±{formatting.format_number(half, 2)}"
    return cell
