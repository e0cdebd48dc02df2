"""Verifies that a server meets the contract and that its responses are right.

`verify_server(url)` runs the checks of `servers/contract/conformance_checks.py` against any base
URL, with the client of `servers/contract/conformance_client.py`.
"""

import http.client
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from servers.contract import oracle
from servers.contract.conformance_checks import (
    bad_input,
    first_chunk,
    framing,
    health,
    max_tokens,
    metrics,
    models,
    plain_answers,
    trickles,
    vanished_client,
    websocket,
)
from servers.contract.conformance_client import (
    Adapt,
    CheckFailed,
    ConformanceClient,
    NoConnection,
    NoResponse,
)
from servers.contract.text_checks import no_cross_talk, stream_exact


@dataclass(frozen=True)
class ConformanceCheck:
    """The result of one check. `notes`: sentences for the report about things that are no fault."""

    name: str
    ok: bool
    detail: str
    notes: tuple[str, ...] = ()


Checks = tuple[Callable[[ConformanceClient], str], ...]
CHECKS: Checks = (
    health,
    models,
    metrics,
    plain_answers,
    max_tokens,
    framing,
    stream_exact,
    trickles,
    first_chunk,
    no_cross_talk,
    bad_input,
    vanished_client,
)

# AFTER_LOAD: what a load could have broken. FOREIGN: the checks for a server that we start but did
# not write; it needs neither /health nor /metrics, and its errors may have any wording. With
# `adapt`, it may also refuse fields, and end its streams without [DONE].
# Endpoints that already run are profiled instead (servers/profile).
AFTER_LOAD: Checks = (plain_answers, framing, stream_exact, trickles, no_cross_talk)
FOREIGN: Checks = (
    models,
    plain_answers,
    max_tokens,
    framing,
    stream_exact,
    trickles,
    first_chunk,
    no_cross_talk,
)


def select_checks(
    foreign: bool, waived: Sequence[str] = (), transports: Sequence[str] = ()
) -> Checks:
    asked = (*(FOREIGN if foreign else CHECKS), *([websocket] if "websocket" in transports else []))
    return tuple(check for check in asked if check.__name__ not in waived)


def verify_server(
    url: str,
    *,
    model: str | None = None,
    planted: bool | None = None,
    checks: Checks = CHECKS,
    adapt: Adapt | None = None,
) -> list[ConformanceCheck]:
    """Run the checks in order; stop after one in which the server did not respond in time.

    `model`: by default the first of /v1/models. `planted`: whether the oracle knows the model's
    text; by default its name decides. `adapt`: changes requests for a server that is not ours.
    """
    client = ConformanceClient(url.rstrip("/"), model or "", False, adapt)
    if model is None:
        try:
            client.model = client.send("GET", "/v1/models").json()["data"][0]["id"]
        except NoConnection as error:
            return [ConformanceCheck("models", False, str(error))]
        except (CheckFailed, LookupError, TypeError) as error:
            return [
                ConformanceCheck(
                    "models",
                    False,
                    f"GET /v1/models lists no model ({error}): choose one with --model",
                )
            ]
    client.planted = client.model in oracle.PLANTED_MODELS if planted is None else planted
    results = []
    for check in checks:
        client.notes.clear()
        try:
            detail = check(client)
            results.append(ConformanceCheck(check.__name__, True, detail, tuple(client.notes)))
        except CheckFailed as error:
            results.append(ConformanceCheck(check.__name__, False, str(error)))
            if isinstance(error, NoResponse):
                break
        # responses of an unexpected shape
        except (
            OSError,
            http.client.HTTPException,
            LookupError,
            TypeError,
            AttributeError,
        ) as error:
            results.append(
                ConformanceCheck(check.__name__, False, f"{type(error).__name__}: {error}")
            )
    return results


def complete_fixed_prompts(
    url: str, model: str, count: int = 4, tokens: int = 16, adapt: Adapt | None = None
) -> list[str]:
    """Return greedy responses to fixed prompts, to compare servers where no oracle knows the right
    text. Raises CheckFailed.
    """
    client = ConformanceClient(url.rstrip("/"), model, False, adapt)
    return [client.complete(client.prompt(), tokens).text for _ in range(count)]


def format_checks(checks: list[ConformanceCheck]) -> str:
    return "\n".join(
        f"{'ok  ' if check.ok else 'FAIL'}  {check.name:16} {check.detail}" for check in checks
    )
