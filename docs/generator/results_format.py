"""docs/results-format.md: every key on disk."""

from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from generator.text import View, code, escape
from loadtests import schema


def view() -> View:
    return {
        "version": schema.SCHEMA,
        "campaign": describe_file(schema.CampaignFile),
        "case": describe_file(schema.CaseFile),
        "calibration": describe_file(schema.CalibrationFile),
        "requests": describe_fields(schema.REQUEST_FIELDS),
        "telemetry": describe_fields(schema.TELEMETRY_FIELDS),
        "processes": describe_fields(schema.PROCESS_FIELDS),
        "gpus": describe_fields(schema.GPU_FIELDS),
        "server_metrics": describe_fields(schema.SERVER_METRICS_FIELDS),
    }


def describe_file(file: type) -> list[list[str]]:
    hints = get_type_hints(file, include_extras=True)
    return [
        [code(key), name_type(hint.__origin__), escape(hint.__metadata__[0])]
        for key, hint in hints.items()
    ]


def describe_fields(fields: Mapping[str, schema.Field]) -> list[list[str]]:
    return [
        [code(key), code(field.type), field.unit, escape(field.meaning)]
        for key, field in fields.items()
    ]


def name_type(hint: Any) -> str:
    """A Python type as JSON names it."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(name_type(each) for each in get_args(hint))
    if hint is type(None):
        return "null"
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return names.get(get_origin(hint) or hint, "object")
