"""The report's sections on profiled endpoints, what each supports and what could not be measured
exactly, and on the prompts of all servers whose tokens are not words.
"""

import json
from collections.abc import Callable
from typing import Any

from analysis.dataset import Json
from analysis.formatting import format_number
from analysis.summary import Summary
from analysis.templating import View

USAGE = {
    "continuous": "in each chunk",
    "stream": "once in a stream",
    "plain": "only in plain responses",
    "never": "never",
}
UNKNOWN = "unknown"
WORDS = "known-answer model"  # the source of lengths where a word is a token


def profile_view(summary: Summary) -> View:
    """{heads: names of endpoints, rows: [(property, a value per endpoint)], notes: [(name, note)]}
    for the templates. `heads` is empty if no endpoint was profiled.
    """
    found = _distinct_profiles(summary)
    return {
        "heads": [name for name, _ in found],
        "rows": [(label, [text(profile) for _, profile in found]) for label, text in ROWS],
        "notes": [
            note
            for name, profile in found
            for note in dict.fromkeys((name, each) for each in profile.get("notes") or [])
        ],
    }


def prompts_view(summary: Summary) -> View:
    """{origin: a sentence, rows: [(server, scenario, lengths asked and found, source of the
    lengths)]} for the templates. `rows` is empty if every prompt is generated and has as many
    tokens as words.
    """
    campaign = summary.campaign
    given = campaign.data.get("prompts")
    checks = summary.checks[summary.checks["name"].eq("prompt lengths")]
    details = dict(zip(checks["index"], checks["detail"], strict=True))
    rows: dict[tuple[str, str], tuple[str, str]] = {}
    for index, server, scenario in zip(
        *(summary.table[name] for name in ("index", "server", "scenario")), strict=True
    ):
        lengths = campaign.runs.get(index, {}).get("prompt_lengths") or {}
        source = str(lengths.get("source", UNKNOWN))
        if given or (lengths and source != WORDS):
            rows.setdefault((server, scenario), (details.get(index, "exact"), source))
    return {"origin": _origin(given), "rows": [(*key, *row) for key, row in rows.items()]}


def _origin(given: Json | None) -> str:
    if not given:
        return "Prompts are generated, from frequent English words."
    some = f", of which {given['kept']:,} are used" if given["kept"] < given["prompts"] else ""
    return (
        f"Prompts are from {given['file']}: {given['prompts']:,} with {given['requests']:,}"
        f" requests{some}, in an order that the seed decides."
    )


def first_address(summary: Summary) -> str:
    """The address of the first profiled endpoint; empty without one."""
    return next((_address(profile) for _, profile in _distinct_profiles(summary)), "")


def _distinct_profiles(summary: Summary) -> list[tuple[str, Json]]:
    """(server, profile), each once: every case of an endpoint has its own, usually the same."""
    servers = dict(zip(summary.table["index"], summary.table["server"], strict=True))
    found: list[tuple[str, Json]] = []
    for index, run in sorted(summary.campaign.runs.items()):
        if (profile := run.get("profile")) and (servers[index], profile) not in found:
            found.append((servers[index], profile))
    return found


def _address(profile: Json) -> str:
    """The endpoint's address without its query, which may hold a key."""
    return f"{profile.get('base_url', '')}{_dialect(profile).get('root', '')}" or UNKNOWN


def _dialect(profile: Json) -> Json:
    dialect = profile.get("dialect")
    return dialect if isinstance(dialect, dict) else {}


def _model(profile: Json) -> str:
    model, others = profile.get("model"), list(profile.get("models") or [])
    beside = [str(name) for name in others if name != model]
    return f"{model} (also there: {', '.join(beside)})" if beside else str(model)


def _request_fields(profile: Json) -> str:
    """The fields that the endpoint does not accept as they are, with its reaction."""
    found = {name: how for name, how in (profile.get("fields") or {}).items() if how != "accepted"}
    found |= {name: f"{found.get(name, 'not tried')}, left out" for name in _omitted(profile)}
    limit = _dialect(profile).get("max_tokens_field", "max_tokens")
    renamed = [f"{limit} sets the length"] if limit != "max_tokens" else []
    texts = [f"{name}: {how}" for name, how in found.items()]
    return "; ".join([*texts, *renamed]) or "all accepted"


def _omitted(profile: Json) -> list[str]:
    return list(map(str, _dialect(profile).get("omitted") or []))


def _added_fields(profile: Json) -> str:
    added = _dialect(profile).get("extra") or {}
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in added.items()) or "none"


def _number(key: str) -> Callable[[Json], str]:
    def text(profile: Json) -> str:
        value = profile.get(key)
        return UNKNOWN if value is None else format_number(float(value))

    return text


def _words(key: str, none: str = UNKNOWN) -> Callable[[Json], str]:
    def text(profile: Json) -> str:
        value: Any = profile.get(key)
        if isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        return str(value) if value else none

    return text


def _answer(key: str) -> Callable[[Json], str]:
    def text(profile: Json) -> str:
        value = profile.get(key)
        return UNKNOWN if value is None else "yes" if value else "no"

    return text


ROWS: list[tuple[str, Callable[[Json], str]]] = [
    ("address", _address),
    ("model", _model),
    ("endpoints", _words("endpoints")),
    ("request fields", _request_fields),
    ("fields added with --body", _added_fields),
    ("usage", lambda profile: USAGE.get(str(profile.get("usage")), UNKNOWN)),
    ("tokens per chunk", _number("tokens_per_chunk")),
    ("reasoning field", _words("reasoning", "none seen")),
    ("chunks before the first token", _number("early_chunks")),
    ("greedy text repeats, alone", _answer("repeats_alone")),
    ("greedy text repeats, under load", _answer("repeats_under_load")),
    ("tokens per word of the prompts", _number("tokens_per_word")),
    ("tokens that the chat template adds", _number("template_tokens")),
    ("context, tokens", _number("context")),
    ("format of /metrics", _words("metrics")),
]
