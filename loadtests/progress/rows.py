"""The row of a finished case as text: on one line of a log, or in columns of a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from loadtests.schema import Case


class CaseRow(NamedTuple):
    """What the report says of one case. `why`: the cause of an invalid one, on one line, or what
    may still make a valid one invalid; `numbers`: by metric, as the report prints them, with
    "n=120" for too small a sample.
    """

    valid: bool
    why: str
    numbers: dict[str, str]


@dataclass(frozen=True)
class Column:
    """A number of the table. Columns beside each other of one `group` have that above them."""

    metric: str
    group: str
    heading: str
    width: int
    spare: int = 0  # columns with the most are left out first where the terminal is too narrow


LEAST_NAME = 12  # characters of a server's or scenario's name
COLUMNS = (
    Column("output_tokens_per_s", "", "tok/s", 6),
    Column("ttft_p50_s", "TTFT, ms", "P50", 6, spare=1),
    Column("ttft_p95_s", "TTFT, ms", "P95", 6, spare=2),
    Column("ttft_p99_s", "TTFT, ms", "P99", 6),
    Column("e2e_p50_s", "E2E, ms", "P50", 6, spare=1),
    Column("e2e_p95_s", "E2E, ms", "P95", 6, spare=2),
    Column("e2e_p99_s", "E2E, ms", "P99", 6),
    Column("error_share", "", "err%", 4),
)


def format_span(seconds: float) -> str:
    """
    >>> format_span(42), format_span(130), format_span(4000)
    ('42 s', '2 min 10 s', '1 h 6 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def crop(text: str, width: int) -> str:
    """The text, or as much of it as fits, with "…" at its end."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def crop_middle(text: str, width: int) -> str:
    """Likewise with "…" in its middle: servers of one family differ at their end.

    >>> crop_middle("fastapi_vllm loop=asyncio", 16)
    'fastapi_…asyncio'
    """
    keep = max(0, width - 1)
    return (
        text
        if len(text) <= width
        else f"{text[: keep - keep // 2]}…{text[len(text) - keep // 2 :]}"
    )


def describe_load(case: Case) -> str:
    if case.users is None:
        return f"{case.rate:g}/s"
    return f"{case.users} user{'s' * (case.users != 1)}"


def describe_case(case: Case) -> str:
    return (
        f"{case.label} / {case.engine} / {case.scenario} {describe_load(case)}, run"
        f" {case.repetition}"
    )


def format_line(status: str, row: CaseRow | None) -> str:
    """How a case ended, on one line of a log: its numbers if it is valid, and else the reason."""
    if row is None:
        return status
    if not row.valid:
        return f"invalid: {row.why}"
    return ", ".join(
        [
            f"valid ({row.why})" if row.why else "valid",
            f"{row.numbers['output_tokens_per_s']} tokens/s",
            *(
                f"{label} "
                + " ".join(f"P{p} {_with_unit(row.numbers[f'{stem}_p{p}_s'])}" for p in (50, 99))
                for label, stem in (("TTFT", "ttft"), ("E2E", "e2e"))
            ),
            f"{row.numbers['error_share']}% errors",
        ]
    )


def _with_unit(number: str) -> str:
    """A latency, or why there is none.

    >>> _with_unit("12.3"), _with_unit("n=120")
    ('12.3 ms', 'unknown (n=120)')
    """
    return f"unknown ({number})" if number.startswith("n=") else f"{number} ms"


@dataclass(frozen=True)
class RowLayout:
    """Columns of a table that fits a terminal of `width` characters: those that name the case, as
    wide as the campaign's cases need them, and then the numbers.
    """

    width: int
    names: tuple[int, ...]
    engines: bool
    runs: bool
    columns: tuple[Column, ...]

    @classmethod
    def of(cls, cases: Sequence[Case], width: int) -> "RowLayout":
        engines = len({case.engine for case in cases}) > 1
        runs = any(case.repetition > 1 for case in cases)
        layout = cls(width, (), engines, runs, COLUMNS)
        cells = [layout._headings(), *(layout._names(case) for case in cases)]
        names = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for spare in (2, 1, 0):
            columns = tuple(column for column in COLUMNS if column.spare <= spare)
            # server and scenario give way, the longer one first
            while _total(names, columns) > width and spare < 2 and max(names[1:3]) > LEAST_NAME:
                names[1 if names[1] >= names[2] else 2] -= 1
            if _total(names, columns) <= width:
                break
        return cls(width, tuple(names), engines, runs, columns)

    def _names(self, case: Case) -> tuple[str, str, str, str]:
        server = f"{case.label}/{case.engine}" if self.engines else case.label
        run = f" #{case.repetition}" if self.runs else ""
        return str(case.index), server, case.scenario, describe_load(case) + run

    def _headings(self) -> tuple[str, str, str, str]:
        return "", "server", "scenario", "load #" if self.runs else "load"

    def start(self, case: Case) -> str:
        """The columns that name the case."""
        return self._join(self._names(case))

    def _join(self, cells: Sequence[str]) -> str:
        number, server, scenario, load = zip(cells, self.names, strict=True)
        return " ".join(
            [
                number[0].rjust(number[1]),
                crop_middle(*server).ljust(server[1]),
                crop(*scenario).ljust(scenario[1]),
                load[0].ljust(load[1]),
            ]
        )

    def heading(self) -> str:
        groups = [
            group.center(sum(widths) + len(widths) - 1)
            for group, of in groupby(self.columns, lambda column: column.group)
            if (widths := [column.width for column in of])
        ]
        names = [column.heading.rjust(column.width) for column in self.columns]
        lines = ([self._join(("", "", "", "")), *groups], [self._join(self._headings()), *names])
        return "\n".join(crop(" ".join(cells).rstrip(), self.width) for cells in lines)

    def row(self, case: Case, status: str, row: CaseRow | None) -> str:
        """The case with its numbers, or with the first line of the reason why it has none."""
        if row and row.valid:
            cells = [_fit(row.numbers[column.metric], column.width) for column in self.columns]
            text = " ".join([self.start(case), *cells])
        else:
            reason = f"invalid: {row.why}" if row else status.strip().split("\n")[0]
            text = f"{self.start(case)} {reason}"
        return crop(text, self.width)


def _total(names: Sequence[int], columns: Sequence[Column]) -> int:
    widths = [*names, *(column.width for column in columns)]
    return sum(widths) + len(widths) - 1


def _fit(number: str, width: int) -> str:
    """Without thousands separators if it is too wide with them."""
    return (number if len(number) <= width else number.replace(",", "")).rjust(width)
