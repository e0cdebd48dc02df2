"""Config files: the options of a command as TOML. `--config` reads one, `--plan` writes one.

A key is an option's name without its leading dashes. The command line's parser is the only list of
options: it defines the keys and checks the values.
"""

import argparse
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loadtests.errors import UsageError
from loadtests.schema import Case
from loadtests.telemetry import machine
from loadtests.workload import arrivals
from loadtests.workload.scenario import Tables
from loadtests.workload.traces import TraceError
from servers.runtime.catalog import CatalogError, nearest_name
from servers.runtime.errors import LaunchError

COMMAND_LINE_ONLY = ("help", "config", "plan")


class ListAction(argparse.Action):
    """Marks an option whose values are separated by commas on the command line, and may be a list
    in a config file.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 (argparse's signature)
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        setattr(namespace, self.dest, values)


@dataclass(frozen=True)
class Setting:
    """An option and its value: a bool, a number, a string, or a list of these. None means not set;
    `default` describes the value that then applies. `group` is the heading above the option.
    """

    key: str
    value: Any
    default: str
    group: str


@dataclass(frozen=True)
class ExpandedCommand:
    """A command without --config: `arguments` starts with the options of `file`, as if they were
    typed. `from_file` has these arguments by key.
    """

    arguments: list[str]
    file: str = ""
    from_file: Mapping[str, list[str]] = field(default_factory=dict)

    @contextmanager
    def naming_the_file(self) -> Iterator[None]:
        """Adds the file's name to an error about an option or a value that the file sets."""
        try:
            yield
        except (UsageError, TraceError, CatalogError, LaunchError) as error:
            keys = [key for key, texts in self.from_file.items() if _names(str(error), key, texts)]
            if not keys or "\n" in str(error):  # a log below the sentence
                raise
            are = f"{' and '.join(keys)} {'is' if len(keys) == 1 else 'are'}"
            raise UsageError(f"{error} ({are} set in {self.file})") from None


def _names(sentence: str, key: str, arguments: Sequence[str]) -> bool:
    """Whether a sentence contains the option or one of its values, as whole words."""
    values = [each.removeprefix(f"--{key}=") for each in arguments if each != f"--{key}"]
    parts = [part for value in values for part in (value, *value.split(","))]
    words = [f"--{key}", *(part for part in parts if re.search(r"[^\W\d]", part))]
    return any(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", sentence) for word in words)


def expand_config(command: Sequence[str], *parsers: argparse.ArgumentParser) -> ExpandedCommand:
    """Replaces --config by the options of its file, without those that the command line also has.
    If several of `parsers` have an option of the same name, the first parser's applies. Raises
    UsageError.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", action="append", default=[])
    try:
        found, typed = finder.parse_known_args(list(command))
    except argparse.ArgumentError:
        raise UsageError("--config needs a file: give one, such as the output of --plan") from None
    if not found.config:
        return ExpandedCommand(list(command))
    if len(found.config) > 1:
        raise UsageError(f"--config is given {len(found.config)} times: give one file")
    file = found.config[0]
    options = {
        name[2:]: (parser, action)
        for parser in reversed(parsers)
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--")
    }
    possible = [key for key, (_, action) in options.items() if _is_configurable(action)]
    proper = [key for key in possible if options[key][1].option_strings[0] == f"--{key}"]
    first_key: dict[int, str] = {}
    from_file: dict[str, list[str]] = {}
    for key, value in _read_table(file).items():
        if key not in options:
            raise UsageError(f"{file}: there is no option {key!r}{nearest_name(key, proper)}")
        if key not in possible:
            raise UsageError(
                f"{file}: {key} cannot be in a config file: give --{key} on the command line"
            )
        parser, action = options[key]
        if (other := first_key.setdefault(id(action), key)) != key:
            raise UsageError(f"{file}: {other} and {key} set the same option: leave one out")
        arguments = _to_arguments(f"{file}: {key}", key, action, value)
        _check_arguments(f"{file}: {key}", parser, arguments)
        if not {part.partition("=")[0] for part in typed} & {*action.option_strings}:
            if "--plan" not in typed and any("***" in argument for argument in arguments):
                raise UsageError(
                    f"{file}: {key} has *** in place of a secret: write an environment variable"
                    f" there, such as ${{GATEWAY_KEY}}, or give --{key} on the command line"
                )
            from_file[key] = arguments
    expanded = [argument for arguments in from_file.values() for argument in arguments]
    return ExpandedCommand([*expanded, *typed], file, from_file)


def _is_configurable(action: argparse.Action) -> bool:
    names = {name.lstrip("-") for name in action.option_strings}
    # an option that takes several values, or an optional one, does not fit one key
    return action.nargs in (None, 0) and not names & {*COMMAND_LINE_ONLY}


def _read_table(file: str) -> dict[str, Any]:
    """Reads a config file. Raises UsageError."""
    try:
        return tomllib.loads(Path(file).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{file} is not TOML ({error}): write it as --plan prints it, such as users = [1, 16]"
        ) from None
    raise UsageError(f"{file} cannot be read: {reason}: give --config a TOML file of options")


def _to_arguments(where: str, key: str, action: argparse.Action, value: Any) -> list[str]:
    """The command-line arguments for `key = value`. Raises UsageError."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"{where} is a switch: write true or false, without quotes")
        opposite = next(name for name in action.option_strings if name != f"--{key}")
        return [f"--{key}" if value else opposite]
    is_list = isinstance(action, ListAction)
    is_repeated = isinstance(action, argparse._AppendAction)
    if isinstance(value, list) and not (is_list or is_repeated):
        raise UsageError(f"{where} takes one value: write it without brackets")
    values = value if isinstance(value, list) else [value]
    if not values:
        raise UsageError(f"{where} is an empty list: give it a value, or leave {key} out")
    for each in values:
        if isinstance(each, bool) or not isinstance(each, str | int | float):
            several = ", or a list of these" if is_list or is_repeated else ""
            raise UsageError(f"{where} must be a string or a number{several}")
        if isinstance(each, int) and abs(each) >= 2**63:
            raise UsageError(f"{where} is too large: TOML's whole numbers have 64 bits")
        if isinstance(each, str) and "\0" in each:
            raise UsageError(f"{where} contains the character U+0000: remove it")
    texts = [str(each) for each in values]
    if is_list:
        texts = [",".join(texts)]
    # a separate value that starts with a dash would look like an option
    return [
        part
        for text in texts
        for part in ([f"--{key}={text}"] if text.startswith("-") else [f"--{key}", text])
    ]


def _check_arguments(where: str, parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Raises UsageError with the parser's own message for a value that an option refuses."""
    before, parser.exit_on_error = parser.exit_on_error, False
    try:
        parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UsageError(f"{where}: {error.message} (see --help)") from None
    finally:
        parser.exit_on_error = before


def list_settings(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[Setting]:
    """Every option that a config file may set, with its value in `arguments`."""
    return [
        Setting(
            key=action.option_strings[0][2:],
            value=_to_toml_value(action, getattr(arguments, action.dest)),
            default=_default_words(action),
            group=group.title or "",
        )
        for group in parser._action_groups
        for action in group._group_actions
        if _is_configurable(action)
    ]


def _default_words(action: argparse.Action) -> str:
    found = re.search(r"\(default: (.+)\)", action.help or "")
    return found[1].replace("%%", "%") if found else "none"


def _to_toml_value(action: argparse.Action, value: Any) -> Any:
    if value is None or value in ("", [], {}):
        return None
    if isinstance(value, Path) and value == action.default:
        return None  # a path in this checkout, which differs on other machines
    if isinstance(value, tuple):
        return ":".join(map(str, value))
    if isinstance(value, dict):
        return [f"{name}={str(part).removesuffix('.0')}" for name, part in value.items()]
    if isinstance(value, bool | int | float | list):
        return value
    text = str(value)
    return [part for part in text.split(",") if part] if isinstance(action, ListAction) else text


def print_plan(
    settings: Iterable[Setting],
    defaults: Mapping[str, Any],
    heading: str,
    cases: Sequence[Case],
    scenarios: Tables,
) -> None:
    """Prints format_plan's text. Raises UsageError, as format_plan does."""
    text = format_plan(settings, defaults, heading, cases, scenarios)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` has closed the pipe; Python would report it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def format_plan(
    settings: Iterable[Setting],
    defaults: Mapping[str, Any],
    heading: str,
    cases: Sequence[Case],
    scenarios: Tables,
) -> str:
    """Formats the whole command as a config file, with its cases as comments below `heading`.
    `defaults`: by key, the values of settings that are not set. Raises UsageError for text that
    TOML cannot hold.
    """
    lines = ["# The options of a campaign, with their defaults; --config reads this file."]
    group = ""
    for setting in settings:
        if setting.group != group:
            group = setting.group
            lines += ["", f"# {group}"]
        value = defaults.get(setting.key) if setting.value is None else setting.value
        lines.append(_format_setting(replace(setting, value=value)))
    lines += ["", f"# {heading}:"]
    for case in cases:
        load = (
            f"{case.users} user{'s' * (case.users != 1)}"
            if case.users
            else f"{case.rate:g} request{'s' * (case.rate != 1)}/s"
        )
        what = f"{case.label:30} {case.engine:10} {case.scenario:14} {load:16}"
        # only the warm-up shows how much longer a closed loop's window must be
        longer = " or more" * bool(case.users and "requests" in scenarios[case.scenario])
        window = f"{case.duration_s:g} s{longer}"
        lines.append(_as_comment(f"{case.index:4}  {what} {window}  run {case.repetition}"))
    for name, duration_s in dict.fromkeys((case.scenario, case.duration_s) for case in cases):
        table = scenarios[name]
        if table["arrivals"] == "trace":
            replay = arrivals.describe_replay(table, table["warmup_s"] + duration_s)
            lines.append(_as_comment(f"{name}: {replay}"))
    return "\n".join(lines)


def _format_setting(setting: Setting) -> str:
    if setting.value is None:
        return _as_comment(f"{setting.key} is not set; default: {setting.default}")
    texts = setting.value if isinstance(setting.value, list) else [setting.value]
    parts = []
    for each in texts:
        kept = (
            machine.redact_secrets([f"--{setting.key}", each])[1] if isinstance(each, str) else each
        )
        try:
            text = json.dumps(kept, ensure_ascii=False)
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"--{setting.key} {each!a} is not UTF-8, so a config file cannot hold it: rename it"
            ) from None
        # the only character that TOML requires to be escaped and JSON does not
        parts.append(text.replace("\x7f", "\\u007f"))
    right = f"[{', '.join(parts)}]" if isinstance(setting.value, list) else parts[0]
    line = f"{setting.key} = {right}"
    if "***" in right:
        line += "  # *** stands for a secret: write an environment variable, such as ${GATEWAY_KEY}"
    return line


def _as_comment(text: str) -> str:
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"# {shown}".rstrip()
