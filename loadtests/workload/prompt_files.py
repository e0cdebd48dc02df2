"""The user's file of prompts. Reads four forms, recognised by their content:

    JSON lines  an object per line with `prompt`, a text, or `messages`, a request as OpenAI's API
                has it; optionally `max_tokens`
    ShareGPT    JSON: a list of {"conversations": [{"from": "human", "value": ...}, ...]}
    CSV         with a header; the column `prompt`, or `messages` as JSON
    Parquet     the same columns

Another column or key is named as FILE:COLUMN. `messages` are one request, without responses at
their end. `conversations`, or `conversation`, are a request for each message of a human, with all
before it.
"""

import csv
import hashlib
import heapq
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO, TextIO

from loadtests.errors import UsageError
from loadtests.schema import JsonObject
from loadtests.workload.given_prompts import Conversation
from loadtests.workload.prompt_records import COLUMNS, BadPrompt, parse_record
from loadtests.workload.scenario import Tables
from servers.profile.prompt_lengths import CountText

FORMS = "JSON lines, ShareGPT's JSON, CSV with a header, or Parquet"
# Of a larger file, a sample is kept.
MOST_CONVERSATIONS, MOST_CHARACTERS = 20_000, 16_000_000
PACKED = (b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh")
GAP = re.compile(r"[\s,]*")

Place = tuple[str, JsonObject]  # "line 7", and the record there


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file. `described`: campaign.json's "prompts"."""

    described: JsonObject
    conversations: tuple[Conversation, ...]
    conversation_at: str | None  # where the first prompt with more than one message is

    def count_tokens(self, count_text: CountText | None) -> "PromptFile":
        """Returns the file with the tokens of each message, if there is a tokenizer."""
        if count_text is None:
            return self
        return replace(
            self,
            conversations=tuple(
                replace(
                    each,
                    messages=tuple(
                        replace(message, tokens=count_text(message.text))
                        for message in each.messages
                    ),
                )
                for each in self.conversations
            ),
        )


def count_for_each(
    prompts: PromptFile | None, tokenizers: Mapping[str, CountText | None]
) -> dict[str, PromptFile]:
    """Returns the prompts for each target, with their tokens; targets share a tokenizer's."""
    if prompts is None:
        return {}
    counted = {each: prompts.count_tokens(each) for each in set(tokenizers.values())}
    return {key: counted[each] for key, each in tokenizers.items()}


def sendable_scenarios(scenarios: Tables, prompts: PromptFile | None, are_chosen: bool) -> Tables:
    """Leaves out the default scenarios that cannot send the prompts: a completion has no messages.
    Raises UsageError if the user chose one of them.
    """
    if prompts is None or prompts.conversation_at is None:
        return scenarios
    refused = [name for name, table in scenarios.items() if table["endpoint"] == "completions"]
    where = f"--prompts {prompts.described['file']}, {prompts.conversation_at}"
    if refused and (are_chosen or len(refused) == len(scenarios)):
        raise UsageError(
            f"{where}: {refused[0]} sends completions, which have no messages: choose a scenario"
            " for chats, such as --scenarios interactive"
        )
    for name in refused:
        print(f"{name} is left out: it sends completions, and {where}, has messages", flush=True)
    return {name: table for name, table in scenarios.items() if name not in refused}


def read_prompts(name: str | None, seed: int) -> PromptFile | None:
    """Reads FILE or FILE:COLUMN; None if it is None. `seed` chooses the sample of a large file.
    Raises UsageError with one sentence that names file, line and remedy.
    """
    if name is None:
        return None
    file, column = Path(name).expanduser(), None
    if not file.exists() and ":" in name:
        path, _, column = name.rpartition(":")
        file = Path(path).expanduser()
    try:
        with (
            file.open("rb") as handle,
            TextIOWrapper(handle, encoding="utf-8-sig", newline="") as text,
        ):
            if not handle.seekable():
                raise UsageError(
                    f"--prompts {file}: it can be read only once, as a pipe can: write it to a file"
                )
            checksum = hashlib.file_digest(handle, "sha256").hexdigest()
            handle.seek(0)
            records = _read_records(file, handle, text, column)
            return _sample(file, records, seed, column, checksum)
    except OSError as error:
        raise UsageError(
            f"--prompts {file}: it cannot be read: {error.strerror}: give the path of a file"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"--prompts {file}: it is not UTF-8 text: convert it to UTF-8") from None


def _sample(
    file: Path, found: tuple[str, Iterator[Place]], seed: int, column: str | None, checksum: str
) -> PromptFile:
    """Keeps the prompts whose random keys are the smallest: a sample without replacement of a
    stream of unknown length (Efraimidis and Spirakis, Weighted random sampling with a reservoir,
    2006, with equal weights).
    """
    form, records = found
    source = random.Random(f"{seed}/prompts")
    kept: list[tuple[float, int, Conversation]] = []  # a heap; the largest key is first
    counts: Counter[str] = Counter()
    first = None
    for number, (where, record) in enumerate(records):
        try:
            conversation = parse_record(record, column)
        except BadPrompt as error:
            raise UsageError(f"--prompts {file}, {where}: {error}") from None
        if conversation is None:
            counts["empty"] += 1
            continue
        if len(conversation.messages) > 1:
            first = first or where
        counts.update(prompts=1, requests=len(conversation.ends))
        heapq.heappush(kept, (-source.random(), number, conversation))
        counts["characters"] += conversation.size
        while len(kept) > MOST_CONVERSATIONS or (
            len(kept) > 1 and counts["characters"] > MOST_CHARACTERS
        ):
            counts["characters"] -= heapq.heappop(kept)[2].size
    if not kept:
        raise UsageError(f"--prompts {file}: it has no prompts: choose another file")
    described = {
        "file": file.name,
        "sha256": checksum,
        "form": form,
        "column": column,
        "prompts": counts["prompts"],
        "requests": counts["requests"],
        "kept": len(kept),
        "left_out": counts["empty"],
    }
    kept.sort(key=lambda each: each[1])
    return PromptFile(described, tuple(each for _, _, each in kept), first)


# --- the forms


def _read_records(
    file: Path, handle: BinaryIO, text: TextIO, column: str | None
) -> tuple[str, Iterator[Place]]:
    start = handle.read(4096)
    handle.seek(0)
    if not start.strip():
        raise UsageError(f"--prompts {file}: it is empty: choose another file")
    if start.startswith(PACKED):
        raise UsageError(f"--prompts {file}: it is compressed: unpack it")
    if start.startswith(b"PAR1"):
        return "Parquet", _read_parquet(file, column)
    if b"\0" in start:
        raise UsageError(f"--prompts {file}: it is not text: give {FORMS}")
    match start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]:
        case b"[":
            return "JSON", _read_array(file, text)
        case b"{":
            return "JSON lines", _read_lines(file, text)
    return "CSV", _read_csv(file, text, column)


def _read_lines(file: Path, handle: TextIO) -> Iterator[Place]:
    for number, line in enumerate(handle, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise UsageError(
                f"--prompts {file}, line {number}: it is not a JSON object: give one object"
                " with prompt or messages on each line"
            )
        yield f"line {number}", record


def _read_array(file: Path, handle: TextIO) -> Iterator[Place]:
    """Yields the elements of a JSON list without reading it whole."""
    decoder, text, at, size = json.JSONDecoder(), "", 0, 1 << 20
    text = handle.read(size).lstrip("\ufeff \t\r\n")[1:]
    for number in range(1, 1 << 62):
        while True:
            at = GAP.match(text, at).end()  # type: ignore[union-attr]
            try:
                if text[at : at + 1] == "]":
                    return
                record, at = decoder.raw_decode(text, at)
                break
            except (ValueError, RecursionError):
                # perhaps the rest of this element is still to be read
                more = handle.read(max(size, len(text) - at))
                if not more:
                    raise UsageError(
                        f"--prompts {file}, entry {number}: it is not complete JSON: repair or"
                        " remove it"
                    ) from None
                text, at = text[at:] + more, 0
        if not isinstance(record, dict):
            raise UsageError(
                f"--prompts {file}, entry {number}: it is not a JSON object: give a list of"
                ' objects such as {"conversations": [...]}'
            )
        yield f"entry {number}", record


def _read_csv(file: Path, handle: TextIO, column: str | None) -> Iterator[Place]:
    csv.field_size_limit(2**31 - 1)  # 128 kB by default
    rows = csv.reader(handle, strict=True)
    line = 1
    try:
        names = [name.strip() for name in next(rows, [])]
        wanted = _choose_column(file, names, column)
        line = rows.line_num + 1
        for row in rows:
            if row:
                cells = dict(zip(names, row, strict=False))
                record = {
                    name: _parse_cell(file, line, name, cells[name])
                    for name in (wanted, "max_tokens")
                    if cells.get(name) is not None
                }
                yield f"line {line}", record
            line = rows.line_num + 1
    except csv.Error as error:
        reason = (
            "a quote is opened and never closed: close it, and double quotes inside a field"
            if "end of data" in str(error)
            else "it is not valid CSV: quote fields that have commas, line ends or quotes, and"
            " double quotes inside them"
        )
        raise UsageError(f"--prompts {file}, line {line}: {reason}") from None


def _parse_cell(file: Path, line: int, name: str, cell: str) -> object:
    if name == "max_tokens":
        try:
            return float(cell) if cell.strip() else None
        except ValueError:
            return cell
    if name == "prompt" or not cell.lstrip().startswith("["):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        raise UsageError(f"--prompts {file}, line {line}: {name} is not JSON: repair it") from None


def _read_parquet(file: Path, column: str | None) -> Iterator[Place]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        wanted = _choose_column(file, names, column)
        columns = [wanted, *(["max_tokens"] if "max_tokens" in names else [])]
        number = 0
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for record in batch.to_pylist():
                number += 1
                if wanted == "messages" and isinstance(record[wanted], str):
                    record[wanted] = _parse_cell(file, number, wanted, record[wanted])
                yield f"row {number}", record
    except (pyarrow.ArrowException, OSError):
        raise UsageError(
            f"--prompts {file}: it is not a whole Parquet file: write it again"
        ) from None


def _choose_column(file: Path, names: Iterable[str], column: str | None) -> str:
    for name in (column,) if column else COLUMNS:
        if name in names:
            return name
    wanted = f"column {column}" if column else "column prompt or messages"
    listed = ", ".join(name[:40] for name in [*names][:12])
    raise UsageError(
        f"--prompts {file}: it has no {wanted}, only {listed or 'no column'}: name the column of"
        f" the prompts as --prompts FILE:COLUMN, or give {FORMS}"
    )
