"""Large files of records, CSV or JSON lines, in blocks of whole records: a file of any size needs
little memory.

There are two ways to read a block. `read_csv_columns` and `read_json_columns` are quick, read a few
numeric columns, and return None for a block that they cannot read. `read_csv_records` and
`read_json_records` are slow, read everything, and raise exact errors. Use them for the blocks whose
records are wanted, and for those that the quick way cannot read.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

READ_BYTES = 1 << 20
LONGEST_BYTES = 1 << 25  # of a record
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Column = Literal["number", "instant"]  # an instant becomes whole nanoseconds since 1970


class BadRecord(Exception):
    """One sentence that starts with the line."""


class Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


@dataclass(frozen=True)
class Block:
    line: int  # number of its first line, from 1
    data: bytes  # whole records


@dataclass(frozen=True)
class Record:
    line: int  # number of its first line, from 1
    fields: Any  # a list of a CSV file's cells, or a JSON object


def read_first_line(file: Path) -> bytes:
    """Returns the first line that is not empty; b"" if there is none. Raises OSError."""
    with file.open("rb") as handle:
        line = handle.readline(LONGEST_BYTES).removeprefix(BYTE_ORDER_MARK)
        while line and not line.strip():
            line = handle.readline(LONGEST_BYTES)
    return line


def read_blocks(file: Path, quoted: bool, digest: Digest) -> Iterator[Block]:
    """Yields the file's blocks, and updates the digest with all bytes. `quoted`: a line break
    between double quotes does not end a record. Raises BadRecord and OSError.
    """
    line, rest = 1, b""
    with file.open("rb") as handle:
        while chunk := handle.read(READ_BYTES):
            digest.update(chunk)
            data = rest + chunk if rest else chunk
            if b"\0" in chunk:
                line += data.count(b"\n", 0, data.index(b"\0"))
                raise BadRecord(f"line {line}: it has a NUL byte: repair the line")
            if handle.tell() == len(chunk):
                data = data.removeprefix(BYTE_ORDER_MARK)
            end = _last_end(data, quoted)
            rest = data[end:]
            if end:
                yield Block(line, data[:end])
                line += data.count(b"\n", 0, end)
            elif len(rest) > LONGEST_BYTES:
                longest = f"{LONGEST_BYTES >> 20} MB"
                if quoted and b'"' in rest:
                    raise BadRecord(
                        f"line {line}: it opens a quote that is not closed within {longest}: close"
                        " it, or double the quotes inside a field"
                    )
                raise BadRecord(f"line {line}: it is longer than {longest}: repair the line")
    if rest:
        yield Block(line, rest)


def _last_end(data: bytes, quoted: bool) -> int:
    """Returns where the last whole record ends; 0 if none does."""
    end = data.rfind(b"\n") + 1
    if quoted and data.count(b'"', 0, end) % 2:  # the last quote opens a field that goes on
        end = data.rfind(b"\n", 0, data.rfind(b'"', 0, end)) + 1
    return end


def pick_lines(block: Block, indices: Sequence[int], count: int) -> list[Block] | None:
    """Returns the records with these indices as blocks of one line; None unless each of the
    block's `count` records has a line of its own.
    """
    lines = [each for each in enumerate(block.data.split(b"\n"), block.line) if each[1].strip()]
    return [Block(*lines[index]) for index in indices] if len(lines) == count else None


def read_csv_records(block: Block) -> Iterator[Record]:
    """Yields the rows of a block without the empty ones. Raises BadRecord."""
    csv.field_size_limit(LONGEST_BYTES)
    # a column that nobody reads may have another encoding
    text = block.data.decode(errors="replace")
    reader, line = csv.reader(io.StringIO(text, newline=""), strict=True), block.line
    try:
        for row in reader:
            if row:
                yield Record(line, row)
            line = block.line + reader.line_num
    except csv.Error:
        raise BadRecord(
            f"line {line}: it is not a row of a CSV file: close each quote, double the quotes"
            " inside a field, and end lines with a line feed"
        ) from None


def read_json_records(block: Block) -> Iterator[Record]:
    """Yields the JSON objects of a block, one from each line with text. Raises BadRecord."""
    for line, text in enumerate(block.data.split(b"\n"), block.line):
        if text.strip():
            yield Record(line, parse_json_object(line, text))


def parse_json_object(line: int, text: bytes) -> Any:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise BadRecord(f"line {line}: it is not a JSON object: repair the line, or remove it")
    return fields


def read_csv_columns(
    block: Block, width: int, columns: Mapping[int, Column]
) -> Sequence[Any] | None:
    """Returns these columns of a block of `width` columns as numpy arrays; None if it cannot."""
    is_quoted = b'"' in block.data
    if is_quoted and not _has_regular_quotes(block.data):
        return None
    import pyarrow as pa  # only the driver reads files, so load workers need no pyarrow
    import pyarrow.csv

    numbers = {str(index): pa.float64() for index, kind in columns.items() if kind == "number"}
    for zone in (None, "UTC"):
        instants = {
            str(index): pa.timestamp("ns", zone)
            for index, kind in columns.items()
            if kind == "instant"
        }
        try:
            table = pyarrow.csv.read_csv(
                pa.BufferReader(block.data),
                pyarrow.csv.ReadOptions(
                    use_threads=False,
                    block_size=len(block.data) + 1,
                    column_names=[str(index) for index in range(width)],
                ),
                pyarrow.csv.ParseOptions(
                    quote_char='"' if is_quoted else False, newlines_in_values=is_quoted
                ),
                pyarrow.csv.ConvertOptions(
                    include_columns=[str(index) for index in columns],
                    column_types=numbers | instants,
                    null_values=[],
                ),
            )
        except pa.ArrowInvalid:
            if instants and zone is None:
                continue
            return None
        return [_to_numpy(column) for column in table.columns]
    return None


def _has_regular_quotes(data: bytes) -> bool:
    """Whether each quote opens or closes a whole field, or is doubled inside one. pyarrow also
    accepts others.
    """
    import numpy as np

    # a field at the edge of the block also has a line break beside it
    characters = np.frombuffer(b"\n" + data + b"\n", np.uint8)
    quotes = np.flatnonzero(characters == ord('"'))
    opening, closing = quotes[::2], quotes[1::2]
    return len(opening) == len(closing) and bool(
        np.isin(characters[opening - 1], [*b',\n"']).all()
        and np.isin(characters[closing + 1], [*b',\r\n"']).all()
    )


def read_json_columns(block: Block, keys: Sequence[str]) -> Sequence[Any] | None:
    """Returns the numbers under these keys as numpy arrays; None if it cannot."""
    import pyarrow as pa
    import pyarrow.json

    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(block.data),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(block.data) + 1),
            pyarrow.json.ParseOptions(
                explicit_schema=pa.schema([(key, pa.float64()) for key in keys]),
                unexpected_field_behavior="ignore",
            ),
        )
    except pa.ArrowInvalid:
        return None
    if any(column.null_count for column in table.columns):
        return None
    return [_to_numpy(column) for column in table.columns]


def _to_numpy(column: Any) -> Any:
    import pyarrow as pa

    is_instant = pa.types.is_timestamp(column.type)
    return (column.cast(pa.int64()) if is_instant else column).to_numpy()
