"""Sends requests as a load would, and adapts to the fields that the endpoint refuses."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from servers.contract import JsonObject, oracle
from servers.contract.token_counts import read_count
from servers.profile.client import Completion, ProfileError, Response, read_completion, send
from servers.profile.endpoint import Endpoint, completion_url, raise_if_closed, wait_until_ready
from servers.profile.profile import ENDPOINTS, Dialect
from servers.profile.prompt_lengths import Messages

TOKENS = 32  # of a sample
PROMPT_WORDS = 12
MOST_TOKENS = 512
RENAMED = "max_completion_tokens"  # replaces max_tokens
REFUSED = (400, 404, 405, 415, 422, 501)
FAILING = (200, 402, 408, 429, 500)  # not the fault of the request


@dataclass
class Prober:
    """Sends requests to one model of an endpoint. `dialect` leaves out refused fields; `fields`
    records them. `refusals`: by endpoint, why it cannot be used.
    """

    endpoint: Endpoint
    model: str
    dialect: Dialect
    fields: dict[str, str] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    tokens: int = TOKENS  # of a sample
    least_tokens: int = 1  # the smallest max_tokens that it is known to accept
    ready_timeout_s: float | None = None
    say: Callable[[str], None] = lambda _: None
    words: random.Random = field(default_factory=lambda: random.Random(2026))

    def build_body(
        self, kind: str, prompt: str, tokens: int, dialect: Dialect, stream: bool
    ) -> JsonObject:
        body = dialect.build_fields(self.model, tokens, stream)
        if kind == "chat":
            return body | {"messages": [{"role": "user", "content": prompt}]}
        return body | {"prompt": prompt}

    def ask(
        self, kind: str, prompt: str, tokens: int, dialect: Dialect, stream: bool = False
    ) -> Response:
        body = self.build_body(kind, prompt, tokens, dialect, stream)
        return self.endpoint.send("POST", ENDPOINTS[kind], body)

    def make_prompt(self, words: int = PROMPT_WORDS) -> str:
        return " ".join(self.words.sample(oracle.VOCABULARY, words))

    # --- the tokens of a prompt

    def count_prompt(self, kind: str, messages: Messages, stream: bool) -> int | None:
        """Return usage.prompt_tokens of a request; None without it, or if the server refuses."""
        fields = self.dialect.build_fields(self.model, self.least_tokens, stream)
        body = fields | _prompt_fields(kind, messages)
        response = self.endpoint.send("POST", ENDPOINTS[kind], body)
        return read_completion(response).count("prompt_tokens") if response.is_ok else None

    def tokenize(self, kind: str, messages: Messages) -> int | None:
        """Return the count of vLLM's POST /tokenize; None if the server has no such path."""
        fields = {"model": self.model, **_prompt_fields(kind, messages)}
        try:
            url = f"{self.endpoint.base_url}/tokenize"
            response = send("POST", url, fields, self.endpoint.access)
        except ProfileError:
            return None
        body = response.json() if response.is_ok else None
        return read_count(body, "count")

    # --- which fields it accepts

    def settle(self, kind: str, stream: bool) -> Response:
        """Find and keep a dialect that the server accepts. Return the first response with it, or
        the first refusal if there is none.
        """
        response = wait_until_ready(
            f"POST {completion_url(self.endpoint, kind)}",
            lambda: self.ask(kind, self.make_prompt(), self.least_tokens, self.dialect, stream),
            self.ready_timeout_s,
            self.say,
        )
        if response.status not in REFUSED or response.status in (404, 405):
            return response
        variants = self._variants(response, stream)
        attempts = [(self.least_tokens, dialect) for dialect in variants]
        if self.least_tokens < self.tokens:
            attempts += [(self.tokens, dialect) for dialect in (self.dialect, *variants)]
        for tokens, dialect in attempts:
            attempt = self.ask(kind, self.make_prompt(), tokens, dialect, stream)
            if attempt.is_ok:
                self.least_tokens = tokens
                self._record(dialect)
                return attempt
        return response

    def _variants(self, refusal: Response, stream: bool) -> list[Dialect]:
        """Return the dialects to try after a refusal: with as few changes as possible, and first
        without the fields that its message names.
        """
        now, words = self.dialect, refusal.words.lower()
        fields = [*(["stream_options"] if stream else []), "ignore_eos", "temperature"]
        changes = [name for name in fields if name not in now.omitted]
        if now.max_tokens_field != RENAMED:
            changes.append(RENAMED)
        changes.sort(key=lambda name: name not in words)
        return [
            replace(
                now,
                omitted=(*now.omitted, *(name for name in chosen if name != RENAMED)),
                max_tokens_field=RENAMED if RENAMED in chosen else now.max_tokens_field,
            )
            for count in range(1, len(changes) + 1)
            for chosen in itertools.combinations(changes, count)
        ]

    def _record(self, dialect: Dialect) -> None:
        self.dialect = dialect
        for name in dialect.omitted:
            self.fields[name] = "refused"
        if dialect.max_tokens_field != "max_tokens":
            self.fields["max_tokens"] = "refused"

    @property
    def is_failing(self) -> bool:
        """Whether the server itself fails, or refuses any load."""
        return any(f"http {each}" in why for why in self.refusals.values() for each in FAILING)

    def probe(self, kind: str) -> bool:
        """Return whether the endpoint can be used; if not, `refusals` has the reason."""
        response = self.settle(kind, stream=True)
        where = f"POST {completion_url(self.endpoint, kind)}"
        raise_if_closed(where, response)
        words = read_completion(response).error if response.is_ok else response.words
        if response.is_ok and words is None:
            return True
        self.refusals[kind] = f"{where}: http {response.status}" + (f": {words}" if words else "")
        return False

    # --- completions

    def complete(self, kind: str, prompt: str, tokens: int | None = None) -> Completion:
        """Stream a whole completion. Raises ProfileError."""
        response = self.ask(kind, prompt, tokens or self.tokens, self.dialect, stream=True)
        where = f"POST {completion_url(self.endpoint, kind)}"
        if not response.is_ok:
            remedy = (
                "the server limits the rate of requests: use a key with a higher limit"
                if response.status == 429
                else "the server accepted a request for one token before: check its limits and log"
            )
            raise ProfileError(f"{where}: http {response.status}: {response.words}: {remedy}")
        completion = read_completion(response)
        cut_short = not completion.tokens and completion.finish_reason == "length"
        if cut_short and tokens is None and self.tokens < MOST_TOKENS:
            self.tokens = MOST_TOKENS  # hidden reasoning used up the tokens
            return self.complete(kind, prompt)
        if completion.problem:
            raise ProfileError(
                f"{where}: http {response.status}, but {completion.problem}: check the server's log"
            )
        return completion


def _find_refused_extra(prober: Prober, needed: Sequence[str]) -> tuple[str, str] | None:
    """Return (endpoint, names) of the user's fields without which the server accepts a request."""
    extra = prober.dialect.extra
    refused = [kind for kind in needed or ENDPOINTS if kind in prober.refusals]
    each = [frozenset([name]) for name in extra] if len(extra) > 1 else []
    for kind in refused if extra else []:
        for names in (*each, frozenset(extra)):
            kept = {name: value for name, value in extra.items() if name not in names}
            without = replace(prober, dialect=replace(prober.dialect, extra=kept), fields={})
            if without.settle(kind, stream=True).is_ok:
                return kind, ", ".join(name for name in extra if name in names)
    return None


def _prompt_fields(kind: str, messages: Messages) -> JsonObject:
    if kind == "chat":
        return {"messages": [{"role": role, "content": text} for role, text in messages]}
    return {"prompt": messages[0][1]}


def find_paths(
    candidates: Sequence[Endpoint],
    model: str,
    needed: Sequence[str],
    ready_timeout_s: float | None = None,
    say: Callable[[str], None] = lambda _: None,
    extra: JsonObject | None = None,
) -> Prober:
    """Find the first root with all needed endpoints. Raises ProfileError."""
    first: Prober | None = None
    for endpoint in candidates:
        dialect = Dialect(root=endpoint.root, query=endpoint.query, extra=extra or {})
        prober = Prober(endpoint, model, dialect, ready_timeout_s=ready_timeout_s, say=say)
        usable = [kind for kind in ENDPOINTS if prober.probe(kind)]
        missing = [kind for kind in needed if kind not in usable]
        if usable and not missing:
            return prober
        if first is None or usable:
            first = prober
    assert first is not None
    if blamed := _find_refused_extra(first, needed):
        kind, names = blamed
        raise ProfileError(
            f"{first.refusals[kind]}: the server accepts this request without {names}: leave out"
            f" --body {names}, or correct its value"
        )
    reasons = [first.refusals[kind] for kind in needed or ENDPOINTS if kind in first.refusals]
    listed = first.endpoint.listed
    if listed and model not in listed:
        raise ProfileError(
            f"{reasons[0]}: the model {model!r} is not listed: choose one of {', '.join(listed)}"
            " with --model"
        )
    scenarios = " and ".join(kind for kind in needed if kind in first.refusals)
    if first.is_failing:
        raise ProfileError(f"{'; '.join(reasons)}: check the server's log")
    remedy = (
        f"choose scenarios that do not need {scenarios} with --scenarios, or use another URL"
        if any(kind not in first.refusals for kind in ENDPOINTS)
        else "check the URL and the model's name, and add a field that it needs with --body"
        if any("http 400" in each or "http 422" in each for each in reasons)
        else "check the URL and the model's name"
    )
    raise ProfileError(f"{'; '.join(reasons)}: {remedy}")
