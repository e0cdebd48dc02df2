"""The report on a terminal: conclusions, tables of the same numbers, concerns, and the next
commands.
"""

from collections.abc import Collection
from typing import NamedTuple, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis import formatting, stats
from analysis.conclusions import describe_result, list_systems_without_case
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


def show_summary(summary: Summary, console: Console, errors: TextIO | None = None) -> None:
    """Prints conclusions, headline tables, the reasons of invalid cases, and concerns. Text from
    the campaign is never read as markup. `errors`: where the systems without any valid case are
    named, if not on the console.
    """
    missing = list_systems_without_case(summary)
    capacity = capacity_section.capacity_view(summary)
    if capacity["systems"]:
        show_capacity(capacity, console, missing)
    else:
        cells = ""
        names = [name for name, _ in missing]
        for comparison in build_comparisons(summary):
            cells += show_comparison(summary, comparison, console, names)
        if meanings := [meaning for sign, meaning in MEANINGS.items() if sign in cells]:
            console.print(Text("; ".join(meanings)))
    console.file.flush()  # so that the lines on stderr come after the tables
    for name, why in missing:
        line = f"no valid case of {name}: {why}"
        if errors:
            print(line, file=errors, flush=True)
        else:
            console.print(Text(line), soft_wrap=True)
    show_concerns(summary, console)


def show_comparison(
    summary: Summary, comparison: Comparison, console: Console, missing: Collection[str] = ()
) -> str:
    """Prints one scenario at one load; returns the text of all cells. `missing`: the systems whose
    reasons are printed elsewhere, because they have no valid case at any load.
    """
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
    console.print(Text(describe_result(comparison, reasons=False)))
    console.print(table)
    for system in comparison.systems:
        scenario, invalid = system.cases["scenario"].iloc[0], (~system.cases["valid"]).sum()
        if invalid and f"{system.name}, {scenario}" not in missing:
            runs = f", {invalid} of {len(system.cases)} runs" if len(system.valid) else ""
            console.print(Text(f"  {system.name}{runs}: {system.cause}"), soft_wrap=True)
    console.print()
    return " ".join(cell for _, cells in rows for i, cell in enumerate(cells) if i in shown)


def show_concerns(summary: Summary, console: Console) -> None:
    """Prints every reason to doubt these numbers, the worst first, one line each."""
    concerns: list[tuple[str, str]] = []
    invalid_cases: dict[str, set[str]] = {}  # by remedy
    for concern in list_concerns(summary):
        cases = {case for case, _ in concern["cases"]}
        if concern["severity"] == "invalid":
            invalid_cases.setdefault(concern["remedy"], set()).update(cases)
        # "stop other programs" also stands in the remedy of what they made invalid
        elif any(concern["remedy"] in r and cases <= of for r, of in invalid_cases.items()):
            continue
        where = f"in {len(concern['cases'])} of {len(summary.table)} cases"
        text = f"{concern['name']}, {where}: {concern['remedy']}"
        concerns.append((concern["severity"], text))
    invalid = [line for line in concerns if line[0] == "invalid"]
    warnings = [line for line in concerns if line[0] == "warning"]
    whole = [("warning", text) for text in list_warnings(summary)]
    for severity, text in (*invalid, *whole, *warnings):
        console.print(Text(f"{severity}: {text}"), soft_wrap=True)


def show_capacity(capacity: View, console: Console, missing: Collection[tuple[str, str]]) -> None:
    """Prints the results of a search, without the reasons of the `missing` systems."""
    for answer in capacity["short_answers"]:
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
        name = f"{s['server']} ({s['engine']})"
        stated = any(of.startswith(f"{name}, ") and why in s["ended"] for of, why in missing)
        if s["ended"] and not stated:
            console.print(Text(f"  {name}: {s['ended']}"), soft_wrap=True)


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
