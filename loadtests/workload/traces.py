"""Recorded traffic: arrival times, lengths of prompts and responses, and shared prefixes. Reads
these formats, and recognises them by their columns or keys:

    Azure     CSV with TIMESTAMP, ContextTokens, GeneratedTokens
              (Azure Public Dataset, LLM inference traces)
    BurstGPT  CSV with Timestamp (s), Request tokens, Response tokens, and perhaps Session ID
              (HPMLL/BurstGPT; requests with 0 response tokens have failed and are left out)
    Mooncake  JSON lines with timestamp (ms), input_length, output_length, and perhaps hash_ids
              (Mooncake's open traces: one id per 512 tokens of the prompt; equal ids, equal text)
    Bailian   JSON lines with timestamp (s), input_length, output_length, chat_id, parent_chat_id
              (-1 in a first turn), and perhaps hash_ids, one per 16 tokens
              (alibaba-edu/qwen-bailian-usagetraces-anon)
    ours      CSV or JSON lines with arrival_s, prompt_tokens, output_tokens, and perhaps session;
              JSON lines perhaps with hash_ids and block_tokens, the tokens per id

The order of columns does not matter, and other columns are ignored. Rows are sorted by time, and
the first one is at 0 s. Only the time is read of rows that are not replayed.

Turns of a session share their beginning as the hash_ids state. Without hash_ids, the prompt of a
later turn starts with the prompt of the turn before it and generated text as long as the response
to it. A prompt that is too short for both shares nothing. Turns before the replayed part do not
count.
"""

import functools
import hashlib
import itertools
import math
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loadtests.workload.record_blocks import (
    BadRecord,
    Block,
    Column,
    Record,
    pick_lines,
    read_blocks,
    read_csv_columns,
    read_csv_records,
    read_first_line,
    read_json_columns,
    read_json_records,
)
from loadtests.workload.trace_formats import (
    UnknownFormat,
    parse_instant,
    parse_length,
    parse_number,
    plain,
    recognise,
)

LARGEST_ID = 2**63 - 1  # of the numbers in messages to load workers


class TraceError(ValueError):
    """One sentence that names file, line and remedy."""


@dataclass(frozen=True)
class TraceRow:
    """One request. Its prompt starts with `blocks` of `block_tokens` tokens each, and blocks with
    equal ids have equal text; the last one may end after the prompt.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    block_tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class TraceSlice:
    """A part of a trace, in order of time."""

    rows: tuple[TraceRow, ...]
    failed: int  # requests of this part that had failed and are left out
    format: str
    sha256: str  # of the whole file


@functools.cache
def read_trace(file: Path, start_s: float = 0.0, end_s: float = math.inf) -> TraceSlice:
    """Returns the requests of [start_s, end_s). A later call returns the same ones, even if the
    file has changed. Traces contain lengths of 0 tokens; they become 1. Raises TraceError.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe can be read only once
            raise TraceError(f"{file} is not a regular file: save the trace to one")
        return _TraceReader(file, start_s, end_s).read()
    except OSError as error:
        raise TraceError(f"{file} cannot be read: {error.strerror}") from None
    except UnknownFormat as error:
        raise TraceError(f"{file} {error}") from None
    except BadRecord as error:
        raise TraceError(f"{file}, {error}") from None


@dataclass(frozen=True)
class _Turn:
    row: TraceRow
    name: str | None = None  # of a turn, or of its session
    before: str | None = None  # name of the turn before it


class _TraceReader:
    """Reads one part of one file. Times are in the file's unit, other than those of rows."""

    def __init__(self, file: Path, start_s: float, end_s: float):
        self.file, self.start_s, self.end_s = file, start_s, end_s
        self.format, self.columns = recognise(read_first_line(file))
        self.index = {plain(name): number for number, name in enumerate(self.columns)}
        self._start_over(None)

    def _start_over(self, zero: float | None) -> None:
        """`zero`: the time of the first request; None takes that of the file's first row."""
        self.zero, self.first = zero, math.inf
        self.turns: list[_Turn] = []
        self.failed = 0
        self.bad: BadRecord | None = None  # the first bad row

    def read(self) -> TraceSlice:
        sha256 = self._scan()
        if self.bad is not None and not math.isfinite(self.first):
            raise self.bad
        if not math.isfinite(self.first):
            what = "no requests" if self.zero is None else "only failed requests"
            raise TraceError(f"{self.file} has {what}: choose another trace")
        # The rows are not in order of time, or the first one failed: others are wanted.
        if self.first != self.zero:
            self._start_over(self.first)
            sha256 = self._scan()
        if self.bad is not None:
            raise self.bad
        turns = sorted(self.turns, key=lambda turn: turn.row.at_s)
        return TraceSlice(
            tuple(_share_history(turns)), self.failed, self.format.description, sha256
        )

    def _scan(self) -> str:
        """Reads the whole file and returns its checksum."""
        digest, needs_header = hashlib.sha256(), self.format.is_csv
        for block in read_blocks(self.file, self.format.is_csv, digest):
            while needs_header and block.data:
                line, _, data = block.data.partition(b"\n")
                needs_header = not line.strip()
                block = Block(block.line + 1, data)
            if block.data:
                self._read_block(block)
        return digest.hexdigest()

    def _read_block(self, block: Block) -> None:
        columns = self._read_columns(block)
        parts = None
        if columns is not None:
            wanted = self._find_wanted(*columns)
            parts = pick_lines(block, wanted, len(columns[0])) if wanted else []
        read = read_csv_records if self.format.is_csv else read_json_records
        for record in itertools.chain.from_iterable(map(read, [block] if parts is None else parts)):
            try:
                self._read_record(record)
            except ValueError as error:
                self.bad = self.bad or BadRecord(
                    f"line {record.line}: {error}: repair the line, or remove it"
                )

    def _read_columns(self, block: Block) -> Sequence[Any] | None:
        """Returns the times, and the lengths of responses if they decide what is left out; None if
        the block must be read row by row.
        """
        time, _, output = self.format.keys
        keys = [time, output] if self.format.leaves_out_failed else [time]
        if not self.format.is_csv:
            columns = read_json_columns(block, keys)
        else:
            kinds: dict[int, Column] = {self.index[plain(key)]: "number" for key in keys}
            if self.format.parse_time is parse_instant:
                kinds[self.index[plain(time)]] = "instant"
            columns = read_csv_columns(block, len(self.columns), kinds)
        finite = columns is not None and all(math.isfinite(each.sum()) for each in columns)
        return columns if finite else None

    def _find_wanted(self, times: Any, outputs: Any = None) -> list[int]:
        """Returns the indices of the wanted rows."""
        if not len(times):
            return []
        succeeded = times if outputs is None else times[outputs != 0]
        if len(succeeded):
            self.first = min(self.first, succeeded.min().item())
        at_s = (times - self._zero_or(times[0].item())) / self.format.per_s
        wanted: list[int] = ((at_s >= self.start_s) & (at_s < self.end_s)).nonzero()[0].tolist()
        return wanted

    def _zero_or(self, time: float) -> float:
        self.zero = time if self.zero is None else self.zero
        return self.zero

    def _read_record(self, record: Record) -> None:
        form = self.format
        time = form.parse_time(self._value(record, form.keys[0]))
        output = self._value(record, form.keys[2])
        has_failed = form.leaves_out_failed and parse_number(output) == 0
        if not has_failed:
            self.first = min(self.first, time)
        at_s = (time - self._zero_or(time)) / form.per_s
        if not self.start_s <= at_s < self.end_s:
            return
        if has_failed:
            self.failed += 1
            return
        prompt_tokens = parse_length(self._value(record, form.keys[1]))
        blocks, block_tokens = self._read_blocks(record, prompt_tokens)
        row = TraceRow(at_s, prompt_tokens, parse_length(output), blocks, block_tokens)
        name = before = None
        if form.turn:
            name, before = (self._id(record, key) for key in form.turn)
        elif form.session:
            name = before = self._id(record, form.session)
        self.turns.append(_Turn(row, name, before))

    def _value(self, record: Record, key: str) -> Any:
        """Returns a cell or a value, "" if a CSV file's row is too short. Raises BadRecord."""
        if self.format.is_csv:
            number = self.index[plain(key)]
            return record.fields[number] if number < len(record.fields) else ""
        try:
            return record.fields[key]
        except KeyError:
            *others, last = self.format.keys
            raise BadRecord(
                f"line {record.line}: the key {key!r} is missing: each line of a trace in"
                f" {self.format.name}'s format needs {', '.join(others)} and {last}"
            ) from None

    def _id(self, record: Record, key: str) -> str | None:
        """Returns the name of a turn or session; None if there is none."""
        known = plain(key) in self.index if self.format.is_csv else key in record.fields
        value = self._value(record, key) if known else None
        return None if value in (None, "", -1, "-1") else str(value)

    def _read_blocks(
        self, record: Record, prompt_tokens: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        ids = [] if self.format.is_csv else record.fields.get("hash_ids") or []
        if not ids:
            return (), ()
        if not isinstance(ids, list) or any(type(each) is not int for each in ids):
            raise ValueError("hash_ids is not a list of whole numbers")
        tokens = self.format.block_tokens
        if tokens is None:
            tokens = parse_length(self._value(record, "block_tokens"))
        # Twice as many as needed: the ids stand for smaller blocks.
        if len(ids) > 2 * math.ceil(prompt_tokens / tokens):
            raise BadRecord(
                f"line {record.line}: {len(ids)} hash_ids are too many for {prompt_tokens} tokens"
                f" in blocks of {tokens} tokens: use our format with the right block_tokens"
            )
        return tuple(each & LARGEST_ID for each in ids), (tokens,) * len(ids)


def _share_history(turns: Sequence[_Turn]) -> list[TraceRow]:
    """Returns the rows; those of a session without hash_ids get blocks for what they share. Their
    ids are negative, other than the recorded ones.
    """
    latest: dict[str, int] = {}  # number of each turn, or of the latest one of each session
    rows: list[TraceRow] = []
    for number, turn in enumerate(turns):
        row = turn.row
        if turn.name is not None and not row.blocks:
            blocks: tuple[int, ...] = ()
            sizes: tuple[int, ...] = ()
            before = latest.get(turn.before) if turn.before is not None else None
            if before is not None:
                earlier = rows[before]
                if (
                    row.prompt_tokens >= earlier.prompt_tokens + earlier.output_tokens
                    and sum(earlier.block_tokens) == earlier.prompt_tokens
                ):
                    blocks = (*earlier.blocks, -2 * before - 2)
                    sizes = (*earlier.block_tokens, earlier.output_tokens)
            own = row.prompt_tokens - sum(sizes)
            row = replace(row, blocks=(*blocks, -2 * number - 1), block_tokens=(*sizes, own))
        if turn.name is not None:
            latest[turn.name] = number
        rows.append(row)
    return rows
