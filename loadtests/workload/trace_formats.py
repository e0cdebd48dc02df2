"""The formats of recorded traffic, as data: how a file is recognised, and what its fields mean.
`loadtests/workload/traces.py` describes them.
"""

import csv
import datetime
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from loadtests.workload.record_blocks import parse_json_object


class UnknownFormat(Exception):
    """A clause with the remedy, which follows the name of the file."""


@dataclass(frozen=True)
class TraceFormat:
    name: str
    keys: tuple[str, str, str]  # of the time, the prompt's tokens and the response's
    parse_time: Callable[[Any], float]
    units: str = "times in s"
    per_s: float = 1.0  # of the times' unit
    is_csv: bool = True
    block_tokens: int | None = None  # tokens for each of the hash_ids; None: each row has it
    turn: tuple[str, str] | None = None  # ids of a turn and of the turn before it
    session: str | None = None  # id of a session
    leaves_out_failed: bool = False

    @property
    def description(self) -> str:
        return f"{self.name} ({self.units})"


def parse_instant(text: str) -> int:
    """Converts an ISO time to nanoseconds since 1970; without a zone it is UTC. Azure's traces have
    digits beyond the microsecond. Raises ValueError.
    """
    text = text.strip()
    whole, _, fraction = text.partition(".")
    digits = fraction[: len(fraction) - len(fraction.lstrip("0123456789"))]
    try:
        at = datetime.datetime.fromisoformat(whole + fraction[len(digits) :])
        seconds = int((at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp())
    except (ValueError, OverflowError):
        seconds = 2**63
    if abs(seconds) > 9e9:  # years far away, which do not fit the 64 bits of other readers
        raise ValueError(f"{shorten(text)} is not a time")
    return seconds * 10**9 + int(digits[:9].ljust(9, "0"))


def parse_number(value: Any) -> float:
    """Raises ValueError."""
    try:
        number = float("" if value is None else value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{shorten(value)} is not a number")
    return number


def parse_length(value: Any) -> int:
    """Raises ValueError."""
    length = parse_number(value)
    if length < 0 or length != int(length):
        raise ValueError(f"{shorten(value)} is not a number of tokens")
    return max(1, int(length))


def shorten(value: Any) -> str:
    text = repr("" if value is None else value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


OUR_KEYS = ("arrival_s", "prompt_tokens", "output_tokens")
JSON_KEYS = ("timestamp", "input_length", "output_length")
AZURE = TraceFormat(
    "Azure",
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    parse_instant,
    units="dates",
    per_s=1e9,
)
BURSTGPT = TraceFormat(
    "BurstGPT",
    ("Timestamp", "Request tokens", "Response tokens"),
    parse_number,
    session="Session ID",
    leaves_out_failed=True,
)
MOONCAKE = TraceFormat(
    "Mooncake",
    JSON_KEYS,
    parse_number,
    units="times in ms, blocks of 512 tokens",
    per_s=1e3,
    is_csv=False,
    block_tokens=512,
)
BAILIAN = TraceFormat(
    "Bailian",
    JSON_KEYS,
    parse_number,
    units="times in s, blocks of 16 tokens",
    is_csv=False,
    block_tokens=16,
    turn=("chat_id", "parent_chat_id"),
)
OUR_CSV = TraceFormat("ours", OUR_KEYS, parse_number, session="session")
OUR_JSON = TraceFormat("ours", OUR_KEYS, parse_number, is_csv=False, session="session")

OF_BAILIAN = ("chat_id", "parent_chat_id", "turn", "type")
REMEDY = (
    f"use a CSV file with the columns {','.join(AZURE.keys)} (Azure), {','.join(BURSTGPT.keys)}"
    f" (BurstGPT) or {','.join(OUR_KEYS)} (ours), or JSON lines with the keys"
    f" {','.join(JSON_KEYS)} (Mooncake), these and chat_id,parent_chat_id (Bailian), or"
    f" {','.join(OUR_KEYS)} (ours)"
)


def plain(column: str) -> str:
    """A column's name without case, spaces and underscores: BurstGPT's "Session ID" is also
    SessionID.
    """
    return "".join(column.split()).replace("_", "").lower()


def recognise(first_line: bytes) -> tuple[TraceFormat, list[str]]:
    """Returns the format of a file with this first line, and the columns of a CSV file. Raises
    UnknownFormat and BadRecord.
    """
    try:
        text = first_line.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UnknownFormat("is not UTF-8 text: if it is compressed, unpack it")
    if text.startswith("version https://git-lfs"):
        raise UnknownFormat("is a pointer of Git LFS: fetch the trace with `git lfs pull`")
    if text.lstrip().startswith("{"):
        return _recognise_keys(parse_json_object(1, first_line)), []
    try:
        [columns] = csv.reader([text.rstrip("\r\n")])
    except (csv.Error, ValueError):
        columns = []
    names = {plain(name) for name in columns}
    formats = [
        each for each in (AZURE, BURSTGPT, OUR_CSV) if {plain(key) for key in each.keys} <= names
    ]
    return _only(formats), columns


def _recognise_keys(record: Iterable[str]) -> TraceFormat:
    keys = {*record}
    formats = [each for each in (MOONCAKE, OUR_JSON) if keys >= {*each.keys}]
    found = [key for key in OF_BAILIAN if key in keys]
    if formats == [MOONCAKE] and found:
        if keys >= {*OF_BAILIAN[:2]}:
            return BAILIAN
        raise UnknownFormat(
            f"has Bailian's {' and '.join(found)} but not both chat_id and parent_chat_id, so the"
            f" unit of its times is unknown: {REMEDY}"
        )
    return _only(formats)


def _only(formats: list[TraceFormat]) -> TraceFormat:
    if len(formats) != 1:
        what = "several formats at once" if formats else "an unknown format"
        raise UnknownFormat(f"has {what}: {REMEDY}")
    return formats[0]
