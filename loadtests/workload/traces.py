"""Recorded traffic: arrival times, lengths of prompts and responses, and shared prefixes. Reads
three formats:

    Azure     CSV with TIMESTAMP, ContextTokens, GeneratedTokens
              (Azure Public Dataset, LLM inference traces)
    Mooncake  JSON lines with timestamp (ms), input_length, output_length, hash_ids
              (Mooncake's open traces: one id per 512 tokens of the prompt; equal ids, equal text)
    ours      CSV with arrival_s, prompt_tokens, output_tokens

The order of columns does not matter, and other columns are ignored. Rows are sorted by time, and
the first one is at 0 s.
"""

import csv
import datetime
import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

BLOCK_TOKENS = 512


class TraceError(ValueError):
    """One sentence that names file, line and remedy."""


@dataclass(frozen=True)
class TraceRow:
    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


@functools.lru_cache(maxsize=4)
def read_trace(file: Path) -> tuple[TraceRow, ...]:
    """Returns all rows in order of time. Traces contain lengths of 0 tokens; they become 1. Raises
    TraceError.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            first = handle.readline()
            handle.seek(0)
            rows = list(
                _mooncake(handle) if first.lstrip().startswith("{") else _table(file, handle)
            )
    except OSError as error:
        raise TraceError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TraceError(f"{file} is not UTF-8 text: if it is compressed, unpack it") from None
    except _BadLine as error:
        raise TraceError(f"{file}, {error}") from None
    if not rows:
        raise TraceError(f"{file} has no requests: choose another trace")
    rows.sort(key=lambda row: row.at_s)
    return tuple(replace(row, at_s=row.at_s - rows[0].at_s) for row in rows)


class _BadLine(Exception):
    pass


def _mooncake(lines: Any) -> Iterator[TraceRow]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            blocks = tuple(int(block) for block in row.get("hash_ids") or ())
            yield TraceRow(
                _number(row["timestamp"]) / 1e3,
                _length(row["input_length"]),
                _length(row["output_length"]),
                blocks,
            )
        except KeyError as error:
            raise _BadLine(
                f"line {number}: the key {error} is missing: each line of a Mooncake trace needs"
                " timestamp, input_length and output_length"
            ) from None
        except (json.JSONDecodeError, AttributeError):
            raise _BadLine(f"line {number}: it is not a JSON object") from None
        except (ValueError, TypeError) as error:
            raise _BadLine(f"line {number}: {error}") from None


def _table(file: Path, lines: Any) -> Iterator[TraceRow]:
    reader = csv.DictReader(lines)
    names = {name.strip().lower(): name for name in reader.fieldnames or () if name}
    parse: Callable[[Any], float]
    if {"timestamp", "contexttokens", "generatedtokens"} <= names.keys():
        when, prompt, output, parse = (
            names["timestamp"],
            names["contexttokens"],
            names["generatedtokens"],
            _instant,
        )
    elif {"arrival_s", "prompt_tokens", "output_tokens"} <= names.keys():
        when, prompt, output, parse = (
            names["arrival_s"],
            names["prompt_tokens"],
            names["output_tokens"],
            _number,
        )
    else:
        raise TraceError(
            f"{file} has an unknown format: use a CSV file with the columns"
            " TIMESTAMP,ContextTokens,GeneratedTokens or arrival_s,prompt_tokens,output_tokens, or"
            " Mooncake's JSON lines"
        )
    for row in reader:
        try:
            yield TraceRow(parse(row[when]), _length(row[prompt]), _length(row[output]))
        except (ValueError, TypeError) as error:
            raise _BadLine(f"line {reader.line_num}: {error}") from None


def _instant(text: str) -> float:
    """Converts an ISO time to seconds since 1970; without a zone it is UTC. Keeps digits beyond the
    microsecond, which Azure's traces have.
    """
    text = text.strip()
    whole, _, fraction = text.partition(".")
    digits = fraction[: len(fraction) - len(fraction.lstrip("0123456789"))]
    try:
        at = datetime.datetime.fromisoformat(whole + fraction[len(digits) :])
    except ValueError:
        raise ValueError(f"{text!r} is not a time") from None
    seconds = (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp()
    return seconds + (int(digits) / 10 ** len(digits) if digits else 0.0)


def _number(value: Any) -> float:
    try:
        number = float("" if value is None else value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{'' if value is None else value!r} is not a number")
    return number


def _length(value: Any) -> int:
    length = _number(value)
    if length < 0 or length != int(length):
        raise ValueError(f"{value!r} is not a number of tokens")
    return max(1, int(length))
