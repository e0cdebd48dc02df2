"""Markdown from plain values."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

View = dict[str, Any]  # what a template prints


def escape(text: str) -> str:
    """Plain text as Markdown on one line. Code in backticks stays code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(
        part if part.startswith("`") else re.sub(r"([*<])", r"\\\1", part) for part in parts
    )


def code(value: object) -> str:
    return f"`{value}`"


def join_codes(values: Iterable[object]) -> str:
    return ", ".join(code(value) for value in values)


def split_default(text: str) -> tuple[str, str]:
    """The text without its "(default: ...)", and what that names."""
    text = " ".join(text.split())
    found = re.search(r"\s*\(default: (.+?)\)(?=[.;]|$)", text)
    if not found:
        return text, ""
    return text[: found.start()] + text[found.end() :], found[1]


def format_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, without columns that are empty in every row."""
    used = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    lines = [[heads[i] for i in used], ["---"] * len(used), *([r[i] for i in used] for r in rows)]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )
