"""Finds secrets in options, and hides them in text and in JSON."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

HIDDEN = "***"
NAMES = r"auth|cookie|key|token(?!s|iz)|secret|passw|credential|signature"
SECRET_NAME = re.compile(rf"(?i){NAMES}|\b(?:sig|code|pwd|pass)\b")
SHORTEST_SECRET = 8  # a shorter text, such as EMPTY, would also hide ordinary words
SHORTEST_PART = 5  # of a secret that a shortened message cuts
# a parameter of a URL, or of a query alone, with the name of a secret: hidden however short it is
PARAMETER = re.compile(
    rf"(?i)((?:^|[?&])(?:[\w.-]*(?:{NAMES})[\w.-]*|sig|code|pwd|pass)=)(?!\$\{{)[^&#\s'\"),;]+"
)


def list_forms(secrets: Iterable[str]) -> tuple[str, ...]:
    """Return the texts to hide, the longest first: each secret as it is, and as a URL and JSON
    write it.
    """
    forms = {
        form
        for secret in secrets
        for plain in (secret, unquote(secret), unquote_plus(secret))
        for form in (
            plain,
            quote(plain),
            quote(plain, safe=""),
            quote_plus(plain),
            json.dumps(plain)[1:-1],
            json.dumps(plain, ensure_ascii=False)[1:-1],
        )
    }
    found = {each.strip() for each in forms}
    return tuple(sorted((each for each in found if len(each) >= SHORTEST_SECRET), key=_order))


def _order(text: str) -> tuple[int, str]:
    return -len(text), text


def hide(text: str, secrets: Iterable[str]) -> str:
    """Replace the secrets, a part of one where a message was cut, and secret parameters of URLs."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
        if text.endswith("..."):
            for length in range(len(secret) - 1, SHORTEST_PART, -1):
                if text.endswith(f"{secret[:length]}..."):
                    text = f"{text[: -length - 3]}{HIDDEN}..."
                    break
    return PARAMETER.sub(rf"\1{HIDDEN}", text)


def hide_in_json(value: Any, secrets: Iterable[str]) -> Any:
    """Hide the secrets in each string, names included. Numbers stay as they are."""
    if isinstance(value, str):
        return hide(value, secrets)
    if isinstance(value, list | tuple):
        return [hide_in_json(each, secrets) for each in value]
    if isinstance(value, dict):
        return {hide(str(k), secrets): hide_in_json(each, secrets) for k, each in value.items()}
    return value


def hide_fields(body: Any) -> Any:
    """Hide the strings below each name of a secret in the fields of a request's body."""
    if isinstance(body, list | tuple):
        return [hide_fields(each) for each in body]
    if isinstance(body, dict):
        return {
            name: _hide_strings(each) if SECRET_NAME.search(name) else hide_fields(each)
            for name, each in body.items()
        }
    return body


def _hide_strings(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _hide_strings(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_hide_strings(each) for each in value]
    return HIDDEN if isinstance(value, str) else value


def find_secrets(body: Any, is_secret: bool = False) -> Iterator[str]:
    """Yield the strings below each name of a secret in the fields of a request's body."""
    if isinstance(body, str) and is_secret:
        yield body
    elif isinstance(body, list):
        for each in body:
            yield from find_secrets(each, is_secret)
    elif isinstance(body, dict):
        for name, each in body.items():
            yield from find_secrets(each, is_secret or bool(SECRET_NAME.search(name)))
