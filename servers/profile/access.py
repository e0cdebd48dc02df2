"""How a client gets into an endpoint: its headers, the check of its TLS certificate, and a proxy.

Values may name environment variables, such as ${GATEWAY_KEY}. The process that reads the command
line hands the result to its child processes in SERVEOFF_ACCESS, because everybody can read the
arguments of a process.
"""

import base64
import functools
import json
import os
import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit, urlunsplit

from servers.profile.redaction import SECRET_NAME, hide, list_forms

ENVIRONMENT = "SERVEOFF_ACCESS"  # JSON: {target's name: fields of Access}
FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110, section 5.6.2
VARIABLE = re.compile(r"\$\{(\w+)\}")
ENCODED = re.compile(r"(?:[\w.~-]|%[0-9A-Fa-f]{2})*", re.ASCII)  # needs no escaping in a URL
# the client frames requests and reads responses itself
FIXED_HEADERS = {
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-request-id",
}


class AccessError(Exception):
    """An unusable option of access. The message is one sentence with the remedy."""


@dataclass(frozen=True)
class Access:
    """`headers`: added to each request, or replacing the client's own of that name. `ca_file`: PEM
    file of trusted authorities instead of the system's. `proxy`: URL of an HTTP proxy. `secrets`:
    texts that no log and no result may contain, the longest first.
    """

    headers: tuple[tuple[str, str], ...] = ()
    verifies: bool = True
    ca_file: str | None = None
    proxy: str | None = None
    secrets: tuple[str, ...] = ()

    def merge_headers(self, own: Mapping[str, str]) -> dict[str, str]:
        """Return the client's `own` headers with these added; names are compared without case."""
        given = {name.lower() for name, _ in self.headers}
        kept = {name: value for name, value in own.items() if name.lower() not in given}
        return kept | dict(self.headers)

    def header_names(self) -> tuple[str, ...]:
        return tuple(name.lower() for name, _ in self.headers)

    def tls_context(self) -> ssl.SSLContext:
        """Return the context of all TLS connections. Raises AccessError for an unusable file."""
        return _tls_context(self.verifies, self.ca_file, os.environ.get("SSL_CERT_FILE"))

    def proxy_headers(self) -> dict[str, str]:
        """Return the header that carries the proxy's user and password; empty without them."""
        via = urlsplit(self.proxy or "")
        return (
            {"Proxy-Authorization": _basic(via.username, via.password)}
            if via.username is not None
            else {}
        )

    def hide_secrets(self, text: str) -> str:
        return hide(text, self.secrets)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        headers = tuple((name, value) for name, value in data["headers"])
        return cls(**{**data, "headers": headers, "secrets": tuple(data["secrets"])})


OPEN = Access()  # neither a key nor another header


@functools.cache
def _tls_context(verifies: bool, ca_file: str | None, _of_openssl: str | None) -> ssl.SSLContext:
    """Make a context, once: loading the system's certificates takes 16 ms. They come from the file
    that OpenSSL's own variable names, if it is set.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror if not isinstance(error, ssl.SSLError) else None
        raise AccessError(
            f"--cacert {ca_file}: {reason or 'it holds no PEM certificate'}: give the file of the"
            " authority that signed the server's certificate"
        ) from None
    if not verifies:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def read_access(target: str = "") -> Access:
    """Return the access of a target by name, as `access_environment` passed it to this process, or
    that of every target, named "". Otherwise it has only the key in SERVEOFF_API_KEY, if there is
    one.
    """
    known = json.loads(os.environ.get(ENVIRONMENT, "{}"))
    found = known.get(target, known.get(""))
    return Access.from_json(found) if found else make_access()


def access_environment(by_target: Mapping[str, Access]) -> dict[str, str]:
    """Return the environment variable that passes the access of each target on to a process."""
    return {ENVIRONMENT: json.dumps({name: each.to_json() for name, each in by_target.items()})}


def make_access(
    headers: Iterable[str] = (),
    *,
    url: str = "",
    insecure: bool = False,
    ca_file: str | None = None,
    proxy: str | None = None,
    more_secrets: Iterable[str] = (),
) -> Access:
    """Make an access from options: `headers` such as "api-key: ${GATEWAY_KEY}". The key in
    SERVEOFF_API_KEY becomes a bearer token, unless the URL has a user and a password, or a header
    is Authorization; an empty header only removes one. `more_secrets`: those of other options.
    Raises AccessError.
    """
    given: dict[str, str] = {}
    secrets = list(more_secrets)
    if key := os.environ.get("SERVEOFF_API_KEY", "").strip():
        if not (key.isprintable() and key.isascii()):
            raise AccessError("SERVEOFF_API_KEY must be printable ASCII text on one line")
        given["Authorization"] = f"Bearer {key}"
        secrets.append(key)
    parts = split_parts(url)
    if parts.username is not None:
        given["Authorization"] = _basic(parts.username, parts.password)
        secrets += [unquote(parts.password or ""), given["Authorization"].partition(" ")[2]]
    secrets += [value for name, value in parse_qsl(parts.query) if SECRET_NAME.search(name)]
    for text in headers:
        name, value = parse_header(text)
        given = {other: kept for other, kept in given.items() if other.lower() != name.lower()}
        if value:
            given[name] = value
        if SECRET_NAME.search(name) or VARIABLE.search(text):
            secrets += [value, value.rpartition(" ")[2], *list_variables(text)]
            secrets += [part.partition("=")[2] for part in value.split(";")]  # of a cookie
    if proxy is not None:
        proxy, hidden = expand_url("--proxy", proxy)
        try:
            via = urlsplit(proxy)
            usable = via.scheme == "http" and bool(via.hostname) and via.port != 0
        except ValueError:
            usable = False
        if not usable:
            shown = f" {strip_user(proxy)}" if "[" not in proxy else ""
            raise AccessError(
                f"--proxy{shown}: give the URL of an HTTP proxy, such as http://proxy:3128"
            )
        secrets += [*hidden, unquote(via.password or "")]
        if via.username is not None:
            secrets.append(_basic(via.username, via.password).partition(" ")[2])
    access = Access(tuple(given.items()), not insecure, ca_file, proxy, list_forms(secrets))
    access.tls_context()  # an unusable file must not wait for the first request
    return access


def make_basic_access(
    user: str | None, password: str, insecure: bool, ca_file: str | None
) -> Access:
    """Make an access without any key of a target: with Basic authentication if there is a user.
    Raises AccessError.
    """
    basic = _basic(quote(user), quote(password)) if user is not None else ""
    access = Access(
        (("Authorization", basic),) if basic else (),
        not insecure,
        ca_file,
        secrets=(password, basic.partition(" ")[2]) if basic else (),
    )
    access.tls_context()
    return access


def parse_header(text: str) -> tuple[str, str]:
    """Parse a header such as "api-key: ${GATEWAY_KEY}". Raises AccessError.

    >>> parse_header("X-Org: research")
    ('X-Org', 'research')
    """
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    if not colon or not FIELD_NAME.fullmatch(name):
        raise AccessError(f"--header {name}: give NAME: VALUE, such as 'api-key: ${{GATEWAY_KEY}}'")
    if name.lower() in FIXED_HEADERS:
        raise AccessError(f"--header {name}: Serveoff sets this header itself: leave it out")
    value = expand_variables(f"--header {name}", value)
    if not value.isprintable() or not value.isascii():
        raise AccessError(f"--header {name}: its value must be printable ASCII text on one line")
    return name, value


def expand_variables(option: str, text: str) -> str:
    """Replace each ${NAME} by that environment variable. Raises AccessError."""
    missing = [name for name in VARIABLE.findall(text) if name not in os.environ]
    if missing:
        raise AccessError(f"{option}: the environment variable {missing[0]} is not set: set it")
    return VARIABLE.sub(lambda found: os.environ[found[1]], text)


def list_variables(text: str) -> list[str]:
    """Return the values of the environment variables that a text names."""
    return [os.environ.get(name, "") for name in VARIABLE.findall(text)]


def expand_url(option: str, text: str) -> tuple[str, list[str]]:
    """Replace each ${NAME} in a URL. Characters that would end the user, the password or a value of
    the query are escaped. Return the URL and the secrets behind its host: values of variables with
    the name of one. Raises AccessError.
    """
    expand_variables(option, text)
    start, _, query = text.partition("?")
    scheme, separator, rest = start.partition("://")
    place, slash, path = rest.partition("/")
    user, at, host = place.rpartition("@")

    def escape(found: re.Match[str]) -> str:
        value = os.environ[found[1]]
        return value if ENCODED.fullmatch(value) else quote(value, safe="")

    def expand(part: str) -> str:
        return expand_variables(option, part)

    names = VARIABLE.findall(path + query)
    secrets = [os.environ[name] for name in names if SECRET_NAME.search(name)]
    whole = expand(scheme) + separator + VARIABLE.sub(escape, user) + at
    whole += expand(host) + slash + expand(path)
    query = re.sub(r"(?<==)\$\{(\w+)\}", escape, query)
    return (f"{whole}?{expand(query)}" if "?" in text else whole), secrets


def split_parts(url: str) -> SplitResult:
    """Split a URL. Raises AccessError."""
    try:
        return urlsplit(url)
    except ValueError:
        raise AccessError(
            "the URL has an IPv6 address without its brackets: write it like http://[::1]:8000"
        ) from None


def _basic(user: str, password: str | None) -> str:
    pair = f"{unquote(user)}:{unquote(password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def strip_user(url: str) -> str:
    """Return the URL without user and password. Raises AccessError.

    >>> strip_user("https://me:pw@[::1]:8443/v1?version=2")
    'https://[::1]:8443/v1?version=2'
    """
    parts = split_parts(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
