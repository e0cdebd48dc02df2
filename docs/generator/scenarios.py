"""docs/scenarios.md: the keys of a scenario, and every scenario."""

import inspect
from collections.abc import Iterator, Sequence
from typing import get_args

from generator.text import View, code, escape, join_codes, split_default
from loadtests.workload import arrivals, scenario

UNITS = {
    "rate": "requests/s",
    "context": "tokens",
    "profile": "s, factor",
    "turns": "questions",
    "requests": "requests",
    "max_in_flight": "requests",
    "distinct_prompts": "prompts",
    "shared_prefixes": "prefixes",
    "users": "users",
}
Model = type[scenario.Scenario]
MODELS: tuple[Model, ...] = scenario.MODELS


def view() -> View:
    kinds = {model: list(get_args(model.__annotations__["arrivals"])) for model in MODELS}
    meanings = [model.model_fields["arrivals"].description or "" for model in MODELS]
    names: dict[Model, list[str]] = {}  # the kinds of arrivals that a model's own keys are for
    for model in MODELS:
        for each in reversed(model.__mro__):
            if issubclass(each, scenario.Scenario):
                names.setdefault(each, []).extend(kinds[model])
    tables = scenario.read_scenarios()
    return {
        "arrivals": [
            [join_codes(kinds[model]), escape(meaning)]
            for model, meaning in zip(MODELS, meanings, strict=True)
        ],
        "sections": [
            (describe_kinds(names[model]), rows)
            for model in names
            if (rows := list(describe_keys(model)))
        ],
        "scenarios": [describe_scenario(name, table) for name, table in tables.items()],
    }


def describe_kinds(kinds: Sequence[str]) -> str:
    if len(kinds) == len(scenario.KINDS):
        return "Keys of every scenario"
    if kinds == ["closed"]:
        return "Keys of a closed loop"
    others = [kind for kind in scenario.KINDS if kind not in kinds]
    if len(others) == 1:
        return f"Keys of all arrivals but {others[0]}"
    return f"Keys of {', '.join(kinds)} arrivals"


def describe_keys(model: Model) -> Iterator[list[str]]:
    """Rows of the keys that this model adds to those that it inherits."""
    types = model.model_json_schema()["properties"]
    for key in inspect.get_annotations(model):
        if key not in model.model_fields or key == "arrivals":
            continue
        field = model.model_fields[key]
        meaning, default = split_default(field.description or "")
        if field.is_required():
            default = "required"
        elif field.default is not None:
            default = code(format_value(field.default))
        unit = {"s": "s", "tokens": "tokens"}.get(key.rpartition("_")[2], "")
        yield [
            code(key),
            name_type(types[key]),
            UNITS.get(key, unit),
            default or "not set",
            escape(meaning),
        ]


def name_type(schema: View) -> str:
    """A value's type in words, from its JSON schema."""
    for choice in schema.get("anyOf", ()):
        if choice.get("type") != "null":
            return name_type(choice)
    if "enum" in schema:
        return " or ".join(code(value) for value in schema["enum"])
    match schema["type"]:
        case "array":
            pairs = schema["items"]["type"] == "array"
            return code("[[second, factor], ...]" if pairs else "[least, most]")
        case "number" | "integer" as kind:
            word = "number" if kind == "number" else "whole number"
            return f"{word} {'above 0' if 'exclusiveMinimum' in schema else 'from 0'}"
    return str(schema["type"])


def describe_scenario(name: str, table: arrivals.ScenarioTable) -> list[str]:
    """A row; keys without a column of their own are in the last."""
    kind = table["arrivals"]
    load = ["closed loop" if kind == "closed" else f"{kind} arrivals"]
    if "users" in table:
        load.append(f"{table['users']} users")
    if "rate" in table:
        load.append(f"{table['rate']:g} request{'s' * (table['rate'] != 1)}/s")
    warm_up = format_range([table["warmup_s"], arrivals.longest_warm_up_s(table)])
    window = format_value(table["duration_s"])
    if "requests" in table:
        longest = table.get("duration_max_s", arrivals.DURATION_MAX_S)
        window += f" to {max(longest, table['duration_s']):g}"
    shown = {"summary", "arrivals", "endpoint", "users", "rate", "duration_s", "duration_max_s"}
    shown |= {"prompt_tokens", "output_tokens", "warmup_s", "warmup_max_s", "requests"}
    shown |= {"drain_s", "timeout_s"}
    rest = {key: value for key, value in table.items() if key not in shown}
    if not rest.get("think_s"):
        rest.pop("think_s", None)
    return [
        code(name),
        escape(table["summary"]),
        ", ".join(load),
        table["endpoint"],
        format_range(table.get("prompt_tokens")),
        format_range(table.get("output_tokens")),
        warm_up,
        window,
        join_codes(f"{key} = {format_value(value)}" for key, value in rest.items()),
    ]


def format_range(pair: Sequence[float] | None) -> str:
    if pair is None:
        return "recorded"
    least, most = pair
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


def format_value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
