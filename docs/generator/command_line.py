"""docs/command-line.md: every command with its options and exit codes, from its parser. argparse's
own text is not used: it depends on the terminal and on the version of Python.
"""

import argparse
import itertools
import re
from collections.abc import Callable

from analysis.__main__ import make_parser as make_analysis_parser
from generator.text import View, code, escape, split_default
from loadtests.accuracy.__main__ import make_parser as make_accuracy_parser
from loadtests.claims.__main__ import make_parser as make_claims_parser
from loadtests.gate import make_gate_parser
from loadtests.generator.remote_worker import make_parser as make_worker_parser
from loadtests.gpu_selftest import make_parser as make_gpu_parser
from loadtests.options import make_parser as make_campaign_parser
from servers.__main__ import make_parser as make_servers_parser
from servers.runtime import catalog

PARSERS: tuple[Callable[[], argparse.ArgumentParser], ...] = (
    make_campaign_parser,
    make_gpu_parser,
    make_gate_parser,
    make_claims_parser,
    make_accuracy_parser,
    make_worker_parser,
    make_analysis_parser,
    make_servers_parser,
)
SESSIONS = {
    "python -m loadtests": "nox -s bench",
    "python -m loadtests.gpu_selftest": "nox -s gpu",
    "python -m loadtests.gate": "nox -s gate",
    "python -m loadtests.claims": "nox -s claims",
    "python -m loadtests.accuracy": "nox -s instrument",
    "python -m analysis report": "nox -s report",
}


def view() -> View:
    return {"commands": [describe_command(make_parser()) for make_parser in PARSERS]}


def describe_command(parser: argparse.ArgumentParser, help_text: str = "") -> View:
    subcommands = list_subcommands(parser)
    codes = re.findall(r"^  (\d+) +(.+(?:\n {3,}.+)*)", parser.epilog or "", re.MULTILINE)
    note = re.search(r"^(?!exit codes:)\S.*", parser.epilog or "", re.MULTILINE)
    text = format_help_text(parser.description or make_sentence(help_text))
    return {
        "name": parser.prog,
        "summary": re.split(r"(?<=\.)\s", text, maxsplit=1)[0],
        "session": SESSIONS.get(parser.prog, ""),
        "text": text,
        "usage": describe_usage(parser),
        "groups": describe_groups(parser),
        "exit_codes": [[number, escape_help(meaning)] for number, meaning in codes],
        "exit_note": escape_help(note[0]) if note else "",
        "subcommands": [describe_command(each, text) for each, text in subcommands],
    }


def describe_groups(parser: argparse.ArgumentParser) -> list[View]:
    """Tables of options. Positional arguments and options without a group are one table."""
    groups: dict[str, View] = {}
    for group in parser._action_groups:
        rows = [describe_option(parser, each) for each in group._group_actions if is_shown(each)]
        title = "" if group.title in ("options", "positional arguments") else group.title or ""
        if rows:
            text = format_help_text(group.description or "")
            groups.setdefault(title, {"title": title, "text": text, "rows": []})["rows"] += rows
    return list(groups.values())


def list_subcommands(parser: argparse.ArgumentParser) -> list[tuple[argparse.ArgumentParser, str]]:
    """(parser, help) of each; the servers, which have the same options, are one called NAME."""
    servers = catalog.list_servers() if parser.prog == "python -m servers" else {}
    found: dict[str, tuple[argparse.ArgumentParser, str]] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {each.dest: each.help or "" for each in action._choices_actions}
            for name, each in action.choices.items():
                if name in servers:
                    each.prog = f"{parser.prog} NAME"
                found.setdefault(each.prog, (each, helps.get(name, "")))
    return list(found.values())


def is_shown(action: argparse.Action) -> bool:
    hidden = isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    return not hidden and action.help is not argparse.SUPPRESS


def describe_usage(parser: argparse.ArgumentParser) -> str:
    if parser.usage:
        return parser.usage
    shown = [action for action in parser._actions if is_shown(action)]
    parts = [parser.prog]
    if any(isinstance(action, argparse._SubParsersAction) for action in parser._actions):
        parts.append("COMMAND ...")
    if any(action.option_strings and not action.required for action in shown):
        parts.append("[OPTIONS]")
    for action in shown:
        if not action.option_strings:
            parts.append(describe_values(action))
        elif action.required:
            parts.append(f"{action.option_strings[0]} {describe_values(action)}")
    return " ".join(parts)


def describe_values(action: argparse.Action) -> str:
    """What one types behind an option, or for a positional argument."""
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    word = action.metavar or "|".join(map(str, action.choices or ())) or action.dest.upper()
    return {"?": f"[{word}]", "*": f"[{word} ...]"}.get(str(action.nargs), word)


def describe_option(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    """A row: the option with its values, its default and its meaning."""
    values = describe_values(action)
    names = [f"{name} {values}".rstrip() for name in action.option_strings] or [values]
    meaning, default = split_default((action.help or "") % (vars(action) | {"prog": parser.prog}))
    if not default and isinstance(action.default, str | int | float) and action.nargs != 0:
        default = str(action.default)
    is_value = bool(default) and default == str(action.default)
    if action.required and action.option_strings:
        default = "required"
    return [
        ", ".join(map(code, names)),
        code(default) if is_value else escape_help(default),
        escape_help(meaning),
    ]


def escape_help(text: str) -> str:
    """Plain text of --help as Markdown, with the options in it as code."""
    return re.sub(r"(?<![\w`-])--[a-z][a-z-]*(?![^`]*`[^`]*$)", r"`\g<0>`", escape(text))


def make_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def format_help_text(text: str) -> str:
    """Text of --help as Markdown. Indented lines, which are examples, become code."""
    parts = []
    for indented, group in itertools.groupby(text.strip().split("\n"), key=is_example):
        lines = list(group)
        if indented:
            least = min(len(line) - len(line.lstrip()) for line in lines if line)
            parts.append("\n".join(["```text", *(line[least:] for line in lines), "```"]))
        else:
            parts += [escape_help(each) for each in re.split(r"\n\s*\n", "\n".join(lines).strip())]
    return "\n\n".join(filter(None, parts))


def is_example(line: str) -> bool:
    return line.startswith("  ")
