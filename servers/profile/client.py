"""The client of `profiler.py`: sends a request to any endpoint and reads the response, with the
arrival of each chunk. Standard library only.
"""

import http.client
import json
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from servers.contract import chunks, sse
from servers.contract.api import SSE_CONTENT_TYPE
from servers.contract.chunks import Chunk, read_chunk
from servers.contract.token_counts import read_count
from servers.profile.access import OPEN, Access
from servers.runtime.limits import SILENCE_S

MAX_BYTES = 16 * 1024 * 1024
SHOWN_WORDS = 12
PROXY_HINT = ": give its user and password, such as --proxy 'http://me:${PASSWORD}@proxy:3128'"


class ProfileError(Exception):
    """An endpoint cannot be measured. The message is one sentence with the URL, the endpoint's own
    message and the remedy.
    """


class NoConnection(ProfileError):
    """No server listens there yet."""


class FinalResponse(http.client.HTTPResponse):
    """Skips all interim responses, such as 103 Early Hints; http.client skips only 100."""

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status not in range(102, 200):
                return version, status, reason
            http.client.parse_headers(self.fp)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Response:
    """A raw response. `arrived` has (seconds since the request was sent, length of the body) after
    each read.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    arrived: list[tuple[float, int]]
    access: Access = OPEN

    @property
    def is_ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def words(self) -> str:
        """The server's own message, short enough to show."""
        words = chunks.describe_body(self.body).removeprefix(f"{self.status}: ")
        return self.access.hide_secrets(words)

    def json(self) -> Any:
        """Parse the body; None if it is not JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


@dataclass
class Completion:
    """A completion, streamed or plain. `events` has (arrival in s, chunk) of each chunk."""

    events: list[tuple[float, Chunk]] = field(default_factory=list)
    done: bool = False  # [DONE] arrived, or the response is plain
    error: str | None = None

    @property
    def tokens(self) -> list[tuple[float, Chunk]]:
        """The chunks that carry tokens, visible or reasoning."""
        return [(at_s, chunk) for at_s, chunk in self.events if chunk.text or chunk.reasoning]

    @property
    def text(self) -> str:
        return "".join(chunk.reasoning + chunk.text for _, chunk in self.events)

    @property
    def visible_text(self) -> str:
        return "".join(chunk.text for _, chunk in self.events)

    @property
    def finish_reason(self) -> str | None:
        return next((c.finish_reason for _, c in reversed(self.events) if c.finish_reason), None)

    def count(self, name: str) -> int | None:
        """Return the last count of that name in usage."""
        counts = (read_count(chunk.usage, name) for _, chunk in reversed(self.events))
        return next((count for count in counts if count is not None), None)

    @property
    def problem(self) -> str | None:
        """Why the response is incomplete; None if it is complete."""
        if self.error is not None:
            return chunks.shorten(self.error)
        if not self.tokens:
            usage = self.count("completion_tokens")
            counted = "no usage" if usage is None else f"usage reports {usage} tokens"
            return f"no token arrived (finish_reason is {self.finish_reason!r}, {counted})"
        if not self.done and self.finish_reason is None:
            return "the stream ended without finish_reason or [DONE]"
        return None


def read_completion(response: Response) -> Completion:
    """Read the chunks of a response whose status is 200."""
    completion, body, read = Completion(), response.body, 0
    streamed = response.headers.get("content-type", "").startswith(SSE_CONTENT_TYPE)
    if streamed or sse.looks_like_sse(body):
        payloads = list(sse.iterate_payloads(body))
    else:
        payloads, completion.done = [sse.Payload(body, len(body))], True
    for payload in payloads:
        if payload.data == sse.DONE:
            completion.done = True
            continue
        while response.arrived[read][1] < payload.end:
            read += 1
        try:
            chunk = read_chunk(payload.data)
        except (ValueError, RecursionError):
            completion.error = f"not a completion: {chunks.describe_body(payload.data)!r}"
            break
        if chunk.error is not None or (payload.is_error and not chunk.text):
            completion.error = chunk.error or chunks.describe_body(payload.data)
            break
        completion.events.append((response.arrived[read][0], chunk))
    return completion


def open_connection(
    url: str, access: Access, silence_s: float
) -> tuple[http.client.HTTPConnection, str]:
    """Return a connection to open, through the proxy if there is one, and the request's target."""
    parts, via = urlsplit(url), urlsplit(access.proxy or "")
    # without a port, http.client would take the end of an IPv6 address for one
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    hop = (via.hostname, via.port or 80) if via.hostname else (host, port)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            *hop, timeout=silence_s, context=access.tls_context()
        )
        if via.hostname:
            connection.set_tunnel(host, port, access.proxy_headers())
    else:
        connection = http.client.HTTPConnection(*hop, timeout=silence_s)
        target = (f"http://{parts.netloc}" if via.hostname else "") + target
    connection.response_class = FinalResponse
    return connection, target


def send(
    method: str, url: str, body: Any = None, access: Access = OPEN, silence_s: float = SILENCE_S
) -> Response:
    """Send one request on a new connection. Does not follow redirects. Raises ProfileError."""
    where = f"{method} {access.hide_secrets(url)}"
    hop = urlsplit(access.proxy or url)
    connection, target = open_connection(url, access, silence_s)
    data = None if body is None else json.dumps(body).encode()
    through_proxy = access.proxy is not None and url.startswith("http:")
    headers = access.merge_headers(
        {
            "Host": urlsplit(url).netloc,
            "Content-Type": "application/json",
            "Accept": "*/*",
            **(access.proxy_headers() if through_proxy else {}),
        }
    )
    try:
        began_s = time.perf_counter()
        connection.request(method, target, data, headers)
        response = connection.getresponse()
        arrived, received = [], bytearray()
        while piece := response.read1(65536):
            received += piece
            arrived.append((time.perf_counter() - began_s, len(received)))
            if len(received) > MAX_BYTES:
                raise ProfileError(f"{where}: the response is longer than {MAX_BYTES:,} bytes")
        fields = {name.lower(): value for name, value in response.getheaders()}
        encoding = fields.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            raise ProfileError(
                f"{where}: the response is compressed ({encoding}) although the request accepts"
                " only identity, so the arrival of tokens would be hidden: turn compression off"
            )
        return Response(response.status, fields, bytes(received), arrived, access)
    except TimeoutError:
        raise ProfileError(
            f"{where}: nothing arrived for {silence_s:g} s: check whether the server hangs, or set"
            " SERVEOFF_SILENCE_S to a longer time"
        ) from None
    except ConnectionRefusedError:
        if access.proxy:
            raise ProfileError(
                f"{where}: no proxy listens at {hop.hostname}:{hop.port or 80}: check --proxy"
            ) from None
        raise NoConnection(
            f"{where}: no server listens there: start it, or use the URL of a running one"
        ) from None
    except socket.gaierror:
        what = "--proxy" if access.proxy else "the URL"
        raise ProfileError(
            f"{where}: the name {hop.hostname!r} has no address: check {what}"
        ) from None
    except ssl.SSLCertVerificationError as error:
        raise ProfileError(
            f"{where}: its certificate cannot be verified ({error.verify_message}): give the file"
            " of its authority with --cacert, or --insecure to accept any certificate"
        ) from None
    except ssl.SSLError as error:
        reason = (error.reason or "").replace("_", " ").lower()
        hint = ": use http:// if the server does not use TLS" if "wrong version" in reason else ""
        raise ProfileError(f"{where}: the TLS handshake failed ({reason}){hint}") from None
    except (ConnectionError, http.client.RemoteDisconnected):
        who = "the proxy, or the server behind it," if access.proxy else "the server"
        raise ProfileError(
            f"{where}: {who} closed the connection before the response was complete: check its log"
        ) from None
    except http.client.IncompleteRead as error:
        raise ProfileError(
            f"{where}: the response breaks off after {len(error.partial):,} bytes of its last"
            " part: check the server's log"
        ) from None
    except http.client.HTTPException:
        raise ProfileError(
            f"{where}: the response is not HTTP/1: use https:// if the server uses TLS"
        ) from None
    except OSError as error:
        if refusal := str(error).removeprefix("Tunnel connection failed: ") * (not error.errno):
            hint = PROXY_HINT if refusal.startswith("407") else ""
            raise ProfileError(
                f"{where}: the proxy refuses the connection: {refusal}{hint}"
            ) from None
        raise ProfileError(f"{where}: {error.strerror or 'the connection failed'}") from None
    finally:
        connection.close()
