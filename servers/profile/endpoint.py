"""Finds an endpoint: the root of its API, its models, and its paths."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from servers.profile.access import OPEN, Access, strip_user
from servers.profile.client import PROXY_HINT, NoConnection, ProfileError, Response, send
from servers.profile.profile import ENDPOINTS

READY_TIMEOUT_S = 300.0  # while a server reports that it is loading
RETRY_S = 0.5
URL_CHARACTERS = "%/?:@!$&'()*+,;=~[]|"  # of a path or a query that need no escaping, or have it
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
    """The place of an API: `base_url` + `root` + "/chat/completions" + "?" + `query`. `listed`: the
    entries of its list of models by name; None if there is no such list.
    """

    base_url: str
    root: str
    query: str
    listed: dict[str, dict[str, Any]] | None = None
    unlisted: str = ""  # the server's response instead of a list
    access: Access = OPEN

    def url(self, path: str) -> str:
        return f"{self.base_url}{self.root}{path}" + (f"?{self.query}" if self.query else "")

    def shown(self, path: str) -> str:
        """Return the URL for a message."""
        return self.access.hide_secrets(self.url(path))

    def send(self, method: str, path: str, body: Any = None) -> Response:
        return send(method, self.url(path), body, self.access)


def split_url(url: str) -> tuple[str, str | None, str]:
    """Split a URL into (base URL, root, query). Users may give it with or without /v1, with any
    prefix, or as the URL of the completions. The root is None if it must be found. Raises
    ProfileError and AccessError.

    >>> split_url("http://host/ns/model/v1/")
    ('http://host/ns/model', '/v1', '')
    """
    parts = urlsplit(strip_user(url.strip()))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ProfileError(
            f"{strip_user(url)!r} is not a URL: use one such as http://127.0.0.1:8000"
        )
    try:
        is_port = parts.port != 0
    except ValueError:
        is_port = False
    if not is_port and "@" in parts.path:
        raise ProfileError(
            "the password in the URL has a character that ends it, such as /: write it as %2F, or"
            " name an environment variable, such as http://me:${PASSWORD}@host"
        )
    if not is_port:
        raise ProfileError(f"{strip_user(url)!r} has no valid port: use one from 1 to 65535")
    try:
        place = parts.netloc.encode("ascii" if parts.netloc.isascii() else "idna").decode()
    except UnicodeError:
        raise ProfileError(f"{strip_user(url)!r} has no valid host name: check it") from None
    path = re.sub(r"/+$", "", quote(parts.path, safe=URL_CHARACTERS))
    shortened = re.sub(r"/(chat/completions|completions|models)$", "", path)
    is_complete = shortened != path
    path = re.sub(r"/+$", "", shortened)
    version = VERSION.search(path)
    root = version[0] if version else "" if is_complete else None
    path = path[: version.start()].rstrip("/") if version else path
    query = quote(parts.query, safe=URL_CHARACTERS)
    return urlunsplit((parts.scheme, place, path, "", "")), root, query


def find_endpoint(
    url: str,
    access: Access = OPEN,
    ready_timeout_s: float | None = None,
    say: Callable[[str], None] = lambda _: None,
    must_list: bool = True,
) -> Endpoint:
    """Find the root of the API by its list of models, and wait while the server is loading. An
    endpoint without such a list gets the first root. `must_list`: nothing else names the model, so
    a list that needs a key is an error. Raises ProfileError.
    """
    base_url, root, query = split_url(url)
    candidates = [
        Endpoint(base_url, each, query, access=access)
        for each in ((root,) if root is not None else ROOTS)
    ]
    first: Response | None = None
    for endpoint in candidates:
        where = f"GET {endpoint.shown('/models')}"
        ask = partial(endpoint.send, "GET", "/models")
        response = wait_until_ready(where, ask, ready_timeout_s, say)
        listed = _read_models(response) if response.is_ok else None
        if listed is not None:
            return replace(endpoint, listed=listed)
        if must_list:
            raise_if_closed(where, response)
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
    """Repeat a request while the server responds with 503, or its proxy with 502 or 504. If no
    server listens, wait only if the user set `ready_timeout_s`. Raises ProfileError.
    """
    limit_s = READY_TIMEOUT_S if ready_timeout_s is None else ready_timeout_s
    ends_s, announced = time.monotonic() + limit_s, ""
    while True:
        try:
            response = ask()
            if response.status not in (502, 503, 504):
                return response
            state = f"http {response.status}: {response.words or 'no message'}"
        except NoConnection as error:
            if ready_timeout_s is None or time.monotonic() > ends_s:
                raise
            state = str(error)
        if time.monotonic() > ends_s:
            raise ProfileError(
                f"{what}: not ready after {limit_s:g} s, last response {state}: if the server is"
                " still loading its model, raise --ready-timeout"
            )
        if state != announced:
            say(f"waiting for the server to be ready: {state}")
            announced = state
        time.sleep(RETRY_S)


def raise_if_closed(what: str, response: Response) -> None:
    """Raise ProfileError if the server or a proxy asks for a key, or the response redirects."""
    words = f": {response.words}" if response.words else ""
    if response.status in (401, 403):
        sent = " and ".join(name for name, _ in response.access.headers)
        checked = f"check the value of {sent}, which was sent, or " if sent else ""
        raise ProfileError(
            f"{what}: http {response.status}{words}: {checked}set the environment variable"
            " SERVEOFF_API_KEY to its key, or give its header, such as --header 'api-key:"
            " ${GATEWAY_KEY}'"
        )
    if response.status == 407:
        raise ProfileError(f"{what}: the proxy refuses the request: http 407{words}{PROXY_HINT}")
    if 300 <= response.status < 400:
        place = response.access.hide_secrets(response.headers.get("location", "nowhere"))
        raise ProfileError(
            f"{what}: http {response.status}, redirected to {place!r}: use the URL behind the"
            " redirect"
        )


def _read_models(response: Response) -> dict[str, dict[str, Any]] | None:
    """Return the entries of a list of models by name; None if it is not such a list."""
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
    """Return the model to measure. Raises ProfileError if the choice is not clear."""
    where, listed = f"GET {endpoint.shown('/models')}", endpoint.listed
    if wanted:
        return wanted
    if listed is None:
        raise ProfileError(
            f"{where} lists no models ({endpoint.unlisted}): choose the model with --model"
        )
    if not listed:
        raise ProfileError(f"{where} returns an empty list: load a model, or name one with --model")
    if len(listed) > 1:
        raise ProfileError(f"{where} lists {', '.join(listed)}: choose one of them with --model")
    return next(iter(listed))


def read_context(endpoint: Endpoint, model: str) -> int | None:
    """Return the model's context in tokens, if the list of models has it."""
    entry = (endpoint.listed or {}).get(model) or {}
    meta = entry.get("meta")
    places = [entry, meta if isinstance(meta, dict) else {}]
    values = [place.get(key) for place in places for key in CONTEXT_KEYS]
    return next((value for value in values if type(value) is int and value > 0), None)


def candidate_roots(endpoint: Endpoint, url: str) -> list[Endpoint]:
    """Return the endpoint with each root to try if there is no list of models."""
    _, root, _ = split_url(url)
    if endpoint.listed is not None or root is not None:
        return [endpoint]
    return [replace(endpoint, root=each) for each in ROOTS]


def completion_url(endpoint: Endpoint, kind: str) -> str:
    """Return the URL of `chat` or `completions`, for a message."""
    return endpoint.shown(ENDPOINTS[kind])
