"""The user's file of prompts. Reads four forms, recognised by their content:

    JSON lines  an object per line with `prompt`, a text, or `messages`, a request as OpenAI's API
                has it; optionally `max_tokens`
    ShareGPT    JSON: a list of {"conversations": [{"from": "human", "value": ...}, ...]}
    CSV         with a header; the column `prompt`, or `messages` as JSON
    Parquet     the same columns

Another column or key is named as FILE:COLUMN. `messages` are one request, without responses at
their end. `conversations` are a request for each message of a human, with all before it.
"""

import csv
import hashlib
import heapq
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TextIO

from loadtests.errors import UsageError
from loadtests.schema import JsonObject
from loadtests.workload.given_prompts import Conversation
from loadtests.workload.prompts import PromptMessage
from loadtests.workload.scenario import Tables
from servers.profile.prompt_lengths import CountText

COLUMNS = ("prompt", "messages", "conversations")
FORMS = "JSON lines, ShareGPT's JSON, CSV with a header, or Parquet"
# Of a larger file, a sample is kept.
MOST_CONVERSATIONS, MOST_CHARACTERS = 20_000, 16_000_000
PACKED = (b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh")
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
CHAT_ROLES = ("system", "developer", "user", "assistant")

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


class _BadPrompt(Exception):
    """Why a prompt cannot be sent, with the remedy."""


def read_prompts(text: str | None, seed: int) -> PromptFile | None:
    """Reads FILE or FILE:COLUMN; None if it is None. `seed` chooses the sample of a large file.
    Raises UsageError with one sentence that names file, line and remedy.
    """
    if text is None:
        return None
    file, column = Path(text).expanduser(), None
    if not file.exists() and ":" in text:
        name, _, column = text.rpartition(":")
        file = Path(name).expanduser()
    try:
        with file.open("rb") as handle:
            checksum = hashlib.file_digest(handle, "sha256").hexdigest()
            handle.seek(0)
            return _sample(file, _read_records(file, handle, column), seed, column, checksum)
    except OSError as error:
        raise UsageError(f"--prompts {file}: it cannot be read: {error.strerror}") from None
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
            conversation = _parse_record(record, column)
        except _BadPrompt as error:
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


def _read_records(file: Path, handle: BinaryIO, column: str | None) -> tuple[str, Iterator[Place]]:
    start = handle.read(4096)
    handle.seek(0)
    if start.startswith(PACKED):
        raise UsageError(f"--prompts {file}: it is compressed: unpack it")
    if start.startswith(b"PAR1"):
        return "Parquet", _read_parquet(file, column)
    if b"\0" in start:
        raise UsageError(f"--prompts {file}: it is not text: give {FORMS}")
    text = file.open(encoding="utf-8-sig", newline="")
    match start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]:
        case b"[":
            return "JSON", _read_array(file, text)
        case b"{":
            return "JSON lines", _read_lines(file, text)
    return "CSV", _read_csv(file, text, column)


def _read_lines(file: Path, handle: TextIO) -> Iterator[Place]:
    with handle:
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
    with handle:
        text = handle.read(size).lstrip("\ufeff \t\r\n")[1:]
        for number in range(1, 1 << 62):
            while True:
                at += len(text[at : at + 1024]) - len(text[at : at + 1024].lstrip(" \t\r\n,"))
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
    with handle:
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
        return (int(cell) if cell.strip().isdecimal() else cell) if cell.strip() else None
    if name not in ("messages", "conversations"):
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


# --- one prompt


def _parse_record(record: JsonObject, column: str | None) -> Conversation | None:
    """Returns the prompt of a record; None if it asks nothing."""
    keys = (column,) if column else COLUMNS
    key = next((name for name in keys if record.get(name) is not None), None)
    if key is None:
        wanted = column or "prompt, messages or conversations"
        raise _BadPrompt(f"it has no {wanted}: add it, or name the key as --prompts FILE:COLUMN")
    value, max_tokens = record[key], record.get("max_tokens")
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise _BadPrompt(f"max_tokens {max_tokens!r:.40} is not a whole number above 0: correct it")
    if isinstance(value, str):
        if not value.strip():
            raise _BadPrompt("its prompt is empty: remove it")
        return Conversation((PromptMessage("user", value),), (1,), max_tokens)
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise _BadPrompt(f"{key} is neither text nor a list of messages: correct it")
    is_sharegpt = any("from" in each for each in value) or (key == "conversations" and not value)
    messages, ends = _parse_conversation(value) if is_sharegpt else _parse_messages(value)
    return Conversation(messages, ends, max_tokens) if ends else None


def _parse_messages(entries: list[JsonObject]) -> tuple[tuple[PromptMessage, ...], tuple[int, ...]]:
    messages = [
        PromptMessage(str(entry.get("role")), _read_text(entry.get("content"))) for entry in entries
    ]
    while messages and messages[-1].role == "assistant":
        messages.pop()
    for message in messages:
        if message.role not in CHAT_ROLES:
            raise _BadPrompt(
                f"the role {message.role!r:.40} is not one of {', '.join(CHAT_ROLES)}: remove it"
            )
    if not messages or messages[-1].role != "user":
        raise _BadPrompt("its last message before a response is not the user's: remove it")
    if not messages[-1].text.strip():
        raise _BadPrompt("its last message is empty: remove it")
    return tuple(messages), (len(messages),)


def _parse_conversation(
    entries: list[JsonObject],
) -> tuple[tuple[PromptMessage, ...], tuple[int, ...]]:
    """Returns the messages of a whole conversation and its requests. A response before the first
    question is left out; the conversation ends before an empty message. Chat templates want roles
    to alternate, so messages of one role in a row become one.
    """
    messages: list[PromptMessage] = []
    for entry in entries:
        role = ROLES.get(str(entry.get("from")).lower())
        if role is None:
            raise _BadPrompt(
                f"{entry.get('from')!r:.40} is none of {', '.join(ROLES)} in from: remove it"
            )
        text = _read_text(entry.get("value"))
        if not text.strip():
            break
        if role == "assistant" and not any(each.role == "user" for each in messages):
            continue
        if messages and messages[-1].role == role:
            text = f"{messages.pop().text}\n\n{text}"
        messages.append(PromptMessage(role, text))
    ends = tuple(n for n, message in enumerate(messages, 1) if message.role == "user")
    return tuple(messages[: ends[-1]] if ends else ()), ends


def _read_text(content: object) -> str:
    """Returns the text of a message, which may be a list of parts."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        raise _BadPrompt("a message has content other than text: remove it")
    return "\n".join(map(str, texts))
