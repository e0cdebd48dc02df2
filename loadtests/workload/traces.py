"""Recorded traffic: when requests came, how long prompt and answer were, and which prefixes prompts
shared. Three formats:

    Azure     CSV with TIMESTAMP, ContextTokens, GeneratedTokens            (Azure Public Dataset,
    LLM inference traces)
    Mooncake  JSON lines with timestamp (ms), input_length, output_length, hash_ids    (Mooncake's
    open traces: one id for each
              512 tokens of the prompt; equal ids are equal text)
    ours      CSV with arrival_s, prompt_tokens, output_tokens

Column order and further columns do not matter. Rows are sorted by time, which begins at 0 with the
first.
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
    """All rows in order of time. Requests of 0 tokens, which traces contain, become 1. Raises
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
        raise TraceError(f"{file} is not UTF-8 text: is it compressed? unpack it first") from None
    except _BadLine as error:
        raise TraceError(f"{file}, {error}") from None
    if not rows:
        raise TraceError(f"{file} has no rows")
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
                f"line {number}: no {error}: each line of a Mooncake trace has timestamp,"
                " input_length, output_length"
            ) from None
        except (ValueError, TypeError, AttributeError) as error:
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
            f"{file} is no trace that is known here: its first line should be"
            " 'TIMESTAMP,ContextTokens,GeneratedTokens' or"
            " 'arrival_s,prompt_tokens,output_tokens', or each line a JSON object of Mooncake's"
            " form"
        )
    for row in reader:
        try:
            yield TraceRow(parse(row[when]), _length(row[prompt]), _length(row[output]))
        except (ValueError, TypeError) as error:
            raise _BadLine(f"line {reader.line_num}: {error}") from None


def _instant(text: str) -> float:
    """Seconds since 1970 of an ISO time; without a zone it is UTC. Digits beyond the microsecond,
    as Azure writes them, are kept.
    """
    text = text.strip()
    whole, _, fraction = text.partition(".")
    digits = fraction[: len(fraction) - len(fraction.lstrip("0123456789"))]
    at = datetime.datetime.fromisoformat(whole + fraction[len(digits) :])
    seconds = (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp()
    return seconds + (int(digits) / 10 ** len(digits) if digits else 0.0)


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a time")
    return number


def _length(value: Any) -> int:
    length = _number(value)
    if length < 0 or length != int(length):
        raise ValueError(f"{value!r} is not a number of tokens")
    return max(1, int(length))
