"""Finds an endpoint: where its API begins, which models it lists, and which of its two paths it
has.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from servers.profile.client import NoConnection, ProfileError, Response, send
from servers.profile.profile import ENDPOINTS

READY_TIMEOUT_S = 300.0  # while a server says that it is loading
RETRY_S = 0.5
ROOTS = ("/v1", "", "/openai/v1", "/api/v1", "/v3", "/api/v3", "/api")
VERSION = re.compile(r"/v\d+\w*$")
CONTEXT_KEYS = (
    "max_model_len",
    "context_length",
    "context_window",
    "max_context_length",
    "max_input_tokens",
    "n_ctx",
)


@dataclass(frozen=True)
class Endpoint:
    """Where the API is: `base_url` + `root` + "/chat/completions" + "?" + `query`. `listed` holds
    the entries of its list of models by name; None if there is no such list.
    """

    base_url: str
    root: str
    query: str
    listed: dict[str, dict[str, Any]] | None = None
    unlisted: str = ""  # what the server said instead of a list

    def url(self, path: str) -> str:
        return f"{self.base_url}{self.root}{path}" + (f"?{self.query}" if self.query else "")


def split_url(url: str) -> tuple[str, str | None, str]:
    """(base URL, root, query) of a URL as users have it: with or without /v1, with any prefix, or
    that of the completions themselves. The root is None if it has to be found. Raises ProfileError.

    >>> split_url("http://host/ns/model/v1/")
    ('http://host/ns/model', '/v1', '')
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ProfileError(f"{url!r} is no URL: give one such as http://127.0.0.1:8000")
    try:
        _ = parts.port
    except ValueError:
        raise ProfileError(f"{url!r} has no valid port: give one from 1 to 65535") from None
    path = re.sub(r"/+$", "", parts.path)
    shortened = re.sub(r"/(chat/completions|completions|models)$", "", path)
    is_complete = shortened != path
    path = re.sub(r"/+$", "", shortened)
    version = VERSION.search(path)
    root = version[0] if version else "" if is_complete else None
    path = path[: version.start()] if version else path
    return urlunsplit((parts.scheme, parts.netloc, path, "", "")), root, parts.query


def find_endpoint(
    url: str, ready_timeout_s: float | None = None, say: Callable[[str], None] = lambda _: None
) -> Endpoint:
    """Finds where the API begins by its list of models, and waits while the server is loading. An
    endpoint without such a list keeps the first root. Raises ProfileError.
    """
    base_url, root, query = split_url(url)
    candidates = [
        Endpoint(base_url, each, query) for each in ((root,) if root is not None else ROOTS)
    ]
    first: Response | None = None
    for endpoint in candidates:
        url = endpoint.url("/models")
        response = wait_until_ready(f"GET {url}", partial(send, "GET", url), ready_timeout_s, say)
        listed = _read_models(response) if response.is_ok else None
        if listed is not None:
            return replace(endpoint, listed=listed)
        raise_if_closed(f"GET {url}", response)
        first = first or response
    assert first is not None
    words = f": {first.words}" if first.words and not first.is_ok else ""
    return replace(candidates[0], unlisted=f"http {first.status}{words}")


def wait_until_ready(
    what: str,
    ask: Callable[[], Response],
    ready_timeout_s: float | None,
    say: Callable[[str], None],
) -> Response:
    """Asks until the server responds with another status than 503 (502 or 504: its proxy does). A
    server that nobody has started is waited for only if the user gave a time. Raises ProfileError.
    """
    limit_s = READY_TIMEOUT_S if ready_timeout_s is None else ready_timeout_s
    ends_s, announced = time.monotonic() + limit_s, ""
    while True:
        try:
            response = ask()
            if response.status not in (502, 503, 504):
                return response
            state = f"http {response.status}: {response.words or 'without a word'}"
        except NoConnection as error:
            if ready_timeout_s is None or time.monotonic() > ends_s:
                raise
            state = str(error)
        if time.monotonic() > ends_s:
            raise ProfileError(
                f"{what}: not ready after {limit_s:g} s, last response {state}: see whether the"
                " server still loads its model, and give it longer by --ready-timeout"
            )
        if state != announced:
            say(f"waiting for the server to be ready: {state}")
            announced = state
        time.sleep(RETRY_S)


def raise_if_closed(what: str, response: Response) -> None:
    """Raises ProfileError if the response says that nobody gets in this way."""
    words = f": {response.words}" if response.words else ""
    if response.status in (401, 403):
        raise ProfileError(
            f"{what}: http {response.status}{words}: give its key by the environment variable"
            " SERVEOFF_API_KEY"
        )
    if 300 <= response.status < 400:
        raise ProfileError(
            f"{what}: http {response.status}, redirected to"
            f" {response.headers.get('location', 'nowhere')!r}: give the URL behind the redirect"
        )


def _read_models(response: Response) -> dict[str, dict[str, Any]] | None:
    """The entries of a list of models by name; None if it is no such list."""
    body = response.json()
    entries = body.get("data", body.get("models")) if isinstance(body, dict) else body
    if not isinstance(entries, list):
        return None
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if isinstance(entry, str):
            found[entry] = {}
        elif isinstance(entry, dict):
            name = entry.get("id") or entry.get("name") or entry.get("model")
            if isinstance(name, str):
                found[name] = entry
    return found


def choose_model(endpoint: Endpoint, wanted: str | None) -> str:
    """The model to measure. Raises ProfileError if that is not clear."""
    where, listed = f"GET {endpoint.url('/models')}", endpoint.listed
    if wanted:
        return wanted
    if listed is None:
        raise ProfileError(
            f"{where} lists no models ({endpoint.unlisted}): name the one to measure by --model"
        )
    if not listed:
        raise ProfileError(f"{where} gives an empty list: load a model, or name one by --model")
    if len(listed) > 1:
        raise ProfileError(f"{where} lists {', '.join(listed)}: name one of them by --model")
    return next(iter(listed))


def read_context(endpoint: Endpoint, model: str) -> int | None:
    """Tokens of the model's context, if the list of models says so."""
    entry = (endpoint.listed or {}).get(model) or {}
    meta = entry.get("meta")
    places = [entry, meta if isinstance(meta, dict) else {}]
    values = [place.get(key) for place in places for key in CONTEXT_KEYS]
    return next((value for value in values if type(value) is int and value > 0), None)


def candidate_roots(endpoint: Endpoint, url: str) -> list[Endpoint]:
    """Where the API may begin if there is no list of models."""
    _, root, _ = split_url(url)
    if endpoint.listed is not None or root is not None:
        return [endpoint]
    return [replace(endpoint, root=each) for each in ROOTS]


def completion_url(endpoint: Endpoint, kind: str) -> str:
    """URL of `chat` or `completions`."""
    return endpoint.url(ENDPOINTS[kind])
