"""The row of a finished case as text: one line of a log, or columns of a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from loadtests.schema import Case


class CaseRow(NamedTuple):
    """The report's row of one case. `why`: on one line, the cause of an invalid case, or what may
    still make a valid case invalid. `numbers`: by metric, as the report prints them; "n=120" stands
    for too small a sample.
    """

    valid: bool
    why: str
    numbers: dict[str, str]


@dataclass(frozen=True)
class Column:
    """A number of the table. Adjacent columns of one `group` share its name as a heading."""

    metric: str
    group: str
    heading: str
    width: int
    spare: int = 0  # on a narrow terminal, columns with the highest value are left out first


THROUGHPUT = "output_tokens_per_s"
LEAST_NAME = 12  # characters of a server's or scenario's name
COLUMNS = (
    Column(THROUGHPUT, "", "tok/s", 6),
    Column("ttft_p50_s", "TTFT, ms", "P50", 6, spare=1),
    Column("ttft_p95_s", "TTFT, ms", "P95", 6, spare=2),
    Column("ttft_p99_s", "TTFT, ms", "P99", 6),
    Column("e2e_p50_s", "E2E, ms", "P50", 6, spare=1),
    Column("e2e_p95_s", "E2E, ms", "P95", 6, spare=2),
    Column("e2e_p99_s", "E2E, ms", "P99", 6),
    Column("error_share", "", "err%", 4),
)


def format_span(seconds: float) -> str:
    """Formats a time for people.

    >>> format_span(42), format_span(130), format_span(4000)
    ('42 s', '2 min 10 s', '1 h 6 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def crop(text: str, width: int) -> str:
    """Crops a text to `width` characters, with "…" at its end."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def crop_middle(text: str, width: int) -> str:
    """Crops a text to `width` characters, with "…" in the middle: the names of related servers
    differ at the end.

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


def split_reason(status: str, row: CaseRow | None) -> tuple[str, str]:
    """What became of a case, in one word, and the reason.

    >>> split_reason("failed: launch: the port is in use", None)
    ('failed', 'launch: the port is in use')
    """
    if row and not row.valid:
        return "invalid", row.why
    word, _, reason = status.partition(": ")
    return word, reason.strip()


def format_line(case: Case, status: str, row: CaseRow | None) -> str:
    """Describes a finished case on one line of a log: its numbers, or the reason for none."""
    if row is None:
        return status
    if not row.valid:
        return f"invalid: {row.why}"
    return ", ".join(
        [
            f"valid ({row.why})" if row.why else "valid",
            # in an open loop the throughput is the demand, not a result
            *([] if case.rate else [f"{row.numbers[THROUGHPUT]} tokens/s"]),
            *(
                f"{label} "
                + " ".join(f"P{p} {_with_unit(row.numbers[f'{stem}_p{p}_s'])}" for p in (50, 99))
                for label, stem in (("TTFT", "ttft"), ("E2E", "e2e"))
            ),
            f"{row.numbers['error_share']}% errors",
        ]
    )


def _with_unit(number: str) -> str:
    """Formats a latency, or the sample that is too small for it.

    >>> _with_unit("12.3"), _with_unit("n=120")
    ('12.3 ms', 'unknown (n=120)')
    """
    return f"unknown ({number})" if number.startswith("n=") else f"{number} ms"


@dataclass(frozen=True)
class RowLayout:
    """The columns of a table that fits a terminal of `width` characters: first those that name the
    case, as wide as the campaign's cases need, then the numbers.
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
            # shorten the names of servers and scenarios, the longer column first
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
        """The case with its numbers, or with the reason for none if it fits."""
        if row and row.valid:
            # in an open loop the throughput is the demand, not a result
            numbers = row.numbers | ({THROUGHPUT: ""} if case.rate else {})
            cells = [_fit(numbers[column.metric], column.width) for column in self.columns]
            return crop(" ".join([self.start(case), *cells]), self.width)
        word, reason = split_reason(status, row)
        text = f"{self.start(case)} {word}"
        whole = f"{text}: {reason}"
        fits = reason and len(whole) <= self.width and "\n" not in reason
        return whole if fits else crop(text, self.width)


def _total(names: Sequence[int], columns: Sequence[Column]) -> int:
    widths = [*names, *(column.width for column in columns)]
    return sum(widths) + len(widths) - 1


def _fit(number: str, width: int) -> str:
    """Right-aligns a number, without thousands separators if it would be too wide."""
    return (number if len(number) <= width else number.replace(",", "")).rjust(width)
