"""Targets: the servers of this checkout, endpoints at URLs, or, for a gate, base and head as
revisions, folders, commands or URLs.
"""

import argparse
import dataclasses
import json
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from loadtests.errors import UsageError
from loadtests.schema import Case, JsonObject
from loadtests.telemetry.exporters import Exporter, Exporters, group_exporters
from servers.profile import profiler
from servers.profile.access import (
    Access,
    AccessError,
    expand_url,
    expand_variables,
    list_variables,
    make_access,
    strip_user,
)
from servers.profile.client import ProfileError
from servers.profile.endpoint import split_url
from servers.profile.profile import Profile
from servers.profile.prompt_lengths import CountText
from servers.profile.redaction import find_secrets, hide_fields, hide_in_json
from servers.runtime import catalog, launch, models, revisions
from servers.runtime.catalog import HERE, Checkout, ServerSpec

OWN = "own"  # the name of a server that has no folder in servers/
EXTERNAL = "external"  # the engine of a server that runs none of our engines


@dataclass(frozen=True)
class Target:
    """What is measured: the servers of `checkout`, or only `server`. With a `url`, the server is
    already running.
    """

    description: str = "this checkout"
    checkout: Checkout = HERE
    server: ServerSpec | None = None
    url: str | None = None
    access: Access = dataclasses.field(default_factory=make_access)
    model: str | None = None  # the one that the user named for this target
    extra: JsonObject = dataclasses.field(default_factory=dict)  # of --body
    exporters: Sequence[Exporter] = ()
    tokenizer: str | None = None  # of --tokenizer

    @property
    def is_external(self) -> bool:
        """Whether the target chooses its model itself."""
        return self.server is not None and self.server.engines == (EXTERNAL,)

    def find_server(self, name: str) -> ServerSpec:
        """The target's only server, or its server of this name. Raises CatalogError."""
        return self.server or catalog.find_server(name, self.checkout)


# A gate's by Case.side; endpoints with names by Case.server; a single target has the key "".
Targets = Mapping[str, Target]
NAMED = re.compile(r"(\w[\w.-]*)=(.*)", re.DOTALL)
# the measurement sets these fields of a body
OWN_FIELDS = {
    "model": "--model",
    "messages": "--scenarios",
    "prompt": "--scenarios",
    "max_tokens": "--scenarios",
    "max_completion_tokens": "--scenarios",
    "stream": "",
    "stream_options": "",
}
SEVERAL_TEXTS = {"n", "best_of", "echo"}  # whose tokens would not be those of one generation


def target_key(targets: Targets, case: Case) -> str:
    return case.side or (case.server if case.server in targets else "")


def is_gate(targets: Targets) -> bool:
    """Whether these are the sides of a gate. Users may give an endpoint the same names."""
    return "control" in targets and targets["control"] is targets.get("base")


def target_of_revision(revision: str | None, choice: Sequence[str]) -> Target:
    """The target of a git revision; None means the working tree. `choice`: the options that choose
    the servers. Raises UsageError.
    """
    if revision is None:
        return Target("the working tree")
    try:
        return Target(
            f"{revision} ({revisions.resolve_commit(revision)[:9]})",
            revisions.check_out(revision, choice),
        )
    except revisions.RevisionError as error:
        raise UsageError(str(error)) from None


@dataclass(frozen=True)
class ClientOptions:
    """The options of the client, by a target's name; those under "" are for every target."""

    headers: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    extra: Mapping[str, JsonObject] = dataclasses.field(default_factory=dict)
    tokenizers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    models: Mapping[str, str] = dataclasses.field(default_factory=dict)
    insecure: bool = False
    ca_file: str | None = None
    proxy: str | None = None
    secrets: Sequence[str] = ()  # of --body
    exporters: Exporters = dataclasses.field(default_factory=dict)

    def make_access(self, name: str, url: str, secrets: Sequence[str] = ()) -> Access:
        """`secrets`: those in the URL. Raises AccessError."""
        return make_access(
            [*self.headers.get("", ()), *self.headers.get(name, ())],
            url=url,
            insecure=self.insecure,
            ca_file=self.ca_file,
            proxy=self.proxy,
            more_secrets=[*self.secrets, *secrets],
        )


NO_OPTIONS = ClientOptions()


def read_client_options(arguments: argparse.Namespace, names: Sequence[str]) -> ClientOptions:
    """Parses the options of the client for targets with these names. Raises UsageError."""
    headers: dict[str, list[str]] = {}
    for text in arguments.header:
        name, header = split_name(text, names)
        if (given := NAMED.fullmatch(text)) and not name and "=" in text.partition(":")[0]:
            known = f"choose from {', '.join(names)}" if names else "name it with --target NAME=URL"
            raise UsageError(f"--header {given[1]}=...: no target has this name: {known}")
        headers.setdefault(name, []).append(header)
    extra: dict[str, JsonObject] = {}
    secrets: list[str] = []
    for text in arguments.body:
        name, setting = split_name(text, names)
        key, value = parse_body_field(setting)
        extra.setdefault(name, {})[key] = value
        secrets += [*list_variables(setting), *find_secrets({key: value})]
    tokenizers = dict(split_name(text, names) for text in arguments.tokenizer)
    models: dict[str, str] = {}
    if arguments.model:
        parts = [split_name(part, names) for part in arguments.model.split(",")]
        if any(name for name, _ in parts) and not all(name for name, _ in parts):
            unknown = next(part for name, part in parts if not name)
            raise UsageError(
                f"--model ...,{unknown}: give NAME=MODEL for each, with names from"
                f" {', '.join(names)}"
            )
        models = dict(parts) if parts[0][0] else {"": arguments.model}
    access = arguments.insecure, arguments.cacert, arguments.proxy
    exporters = read_exporters(arguments, names)
    return ClientOptions(headers, extra, tokenizers, models, *access, secrets, exporters)


def read_exporters(arguments: argparse.Namespace, names: Sequence[str]) -> Exporters:
    """The exporters by the target's name. Raises UsageError."""
    given = {"gpu": arguments.gpu_metrics, "host": arguments.host_metrics}
    named = [(kind, *split_name(text, names)) for kind in given for text in given[kind]]
    try:
        return group_exporters(named, names, arguments.insecure, arguments.cacert)
    except AccessError as error:
        raise UsageError(str(error)) from None


def split_name(text: str, names: Sequence[str]) -> tuple[str, str]:
    """Splits "NAME=TEXT" if NAME is one of `names`; otherwise the name is empty."""
    named = NAMED.fullmatch(text)
    return (named[1], named[2]) if named and named[1] in names else ("", text)


def parse_body_field(text: str) -> tuple[str, object]:
    """Parses KEY=JSON, whose strings may name environment variables. Raises UsageError."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not (key and equals):
        raise UsageError(f"--body {text}: give KEY=JSON, such as top_p=0.9")
    if key in OWN_FIELDS:
        remedy = f"use {OWN_FIELDS[key]}" if OWN_FIELDS[key] else "leave it out"
        raise UsageError(f"--body {key}=...: the measurement sets this field itself: {remedy}")
    if key in SEVERAL_TEXTS:
        raise UsageError(
            f"--body {key}=...: a response with several texts, or with its prompt, has no TTFT and"
            " TPOT of its own: leave it out"
        )
    try:
        return key, _expand_strings(f"--body {key}", json.loads(value, parse_constant=_refuse))
    except (ValueError, RecursionError):
        raise UsageError(
            f"--body {key}=...: the value is not JSON: quote text twice, such as '{key}=\"text\"'"
        ) from None
    except AccessError as error:
        raise UsageError(str(error)) from None


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _expand_strings(option: str, value: object) -> object:
    if isinstance(value, str):
        return expand_variables(option, value)
    if isinstance(value, list):
        return [_expand_strings(option, each) for each in value]
    if isinstance(value, dict):
        return {name: _expand_strings(option, each) for name, each in value.items()}
    return value


def targets_of_urls(arguments: argparse.Namespace) -> Targets:
    """The targets of --target, each URL or NAME=URL. Raises UsageError."""
    given = [NAMED.fullmatch(text) for text in arguments.target]
    named = {found[1]: found[2] for found in given if found}
    options = read_client_options(arguments, list(named))
    if len(arguments.target) == 1 and not named:
        return {"": target_of_url(arguments.target[0], options=options)}
    if len(named) < len(given):
        raise UsageError(
            "several targets need names that differ: give each as --target NAME=URL, such as"
            " --target east=http://10.0.0.5:8000, with a name of letters, digits, _, . and -"
        )
    return {name: target_of_url(url, name=name, options=options) for name, url in named.items()}


def target_of_url(
    text: str,
    option: str = "--target",
    name: str = "target",
    options: ClientOptions = NO_OPTIONS,
    side: str = "",
) -> Target:
    """The target of a running server. `side`: its name among `options`, if that is not `name`.
    Raises UsageError for a malformed URL.
    """
    key = side or name
    try:
        whole, secrets = expand_url(option, text.strip())
        access = options.make_access(key, whole, secrets)
        split_url(whole)
    except (ProfileError, AccessError) as error:
        raise UsageError(
            str(error) if str(error).startswith(("--", "SERVEOFF_")) else f"{option}: {error}"
        ) from None
    url = strip_user(whole)
    shown = access.hide_secrets(url)
    return Target(
        f"{option} {shown}",
        server=ServerSpec(name, shown, (), (EXTERNAL,), foreign=True),
        url=url,
        access=access,
        model=options.models.get(key, options.models.get("")),
        extra={**options.extra.get("", {}), **options.extra.get(key, {})},
        exporters=options.exporters.get(key, options.exporters.get("", ())),
        tokenizer=options.tokenizers.get(key, options.tokenizers.get("")),
    )


def describe_endpoints(targets: Targets, profiles: Mapping[str, Profile]) -> dict[str, JsonObject]:
    """The identity of each endpoint at a URL, for campaign.json: without secrets."""
    return {
        name or "target": {
            "url": target.access.hide_secrets(target.url),
            "model": profiles[name].model,
            "headers": sorted(header for header, _ in target.access.headers),
            "body": hide_in_json(hide_fields(target.extra), target.access.secrets),
        }
        for name, target in targets.items()
        if target.url and name in profiles
    }


def target_of_server(
    text: str, option: str, side: str = "", options: ClientOptions = NO_OPTIONS
) -> Target:
    """The target of a URL, a folder with a server.toml, or a command with {port}. Raises UsageError
    and CatalogError.
    """
    if text.startswith(("http://", "https://")):
        return target_of_url(text, option, OWN, options, side)
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not (folder / "server.toml").is_file():
            raise UsageError(
                f"{option} {text}: the folder has no server.toml: write one (see CONTRIBUTING.md),"
                " or give a command"
            )
        server = catalog.read_server(folder.resolve() / "server.toml", Checkout(folder.resolve()))
        return Target(text, server=dataclasses.replace(server, name=OWN))
    try:
        command = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"{option} {text}: not a command: {error}") from None
    if not any("{port}" in part for part in command):
        raise UsageError(
            f"{option} {text}: it is neither a URL nor a folder, and a command needs {{port}} in"
            " place of its port: write it like 'uvicorn app:app --port {port}'"
        )
    try:
        for part in command:
            part.format_map(dict.fromkeys(catalog.PLACEHOLDERS, ""))
    except (LookupError, ValueError) as error:
        raise UsageError(
            f"{option}: the command has {error} in braces, which is not a placeholder: double the"
            " braces that belong to the command"
        ) from None
    try:
        access = options.make_access(side, "")
    except AccessError as error:
        raise UsageError(str(error)) from None
    return Target(
        text,
        server=ServerSpec(
            OWN,
            text,
            command,
            (EXTERNAL,),
            requires=command[:1],
            foreign=True,
            ready="/v1/models",
            checkout=Checkout(Path.cwd()),
        ),
        access=access,
        model=options.models.get(side, options.models.get("")),
        extra={**options.extra.get("", {}), **options.extra.get(side, {})},
        tokenizer=options.tokenizers.get(side, options.tokenizers.get("")),
    )


def profile_targets(
    targets: Targets,
    needed: Sequence[str],
    share: launch.CoreShare,
    ready_timeout_s: float | None,
    tokenizers: Mapping[str, CountText | None],
) -> dict[str, Profile]:
    """Profiles each target, and starts a target that is not running for its profile. Base and head
    must serve the same model, unless the user named one for each. `needed`: the endpoints, "chat"
    or "completions", that each must have. Raises UsageError and LaunchError.
    """
    profiles: dict[str, Profile] = {}
    for name, target in targets.items():
        if twin := next((other for other in profiles if targets[other] is target), None):
            profiles[name] = profiles[twin]
            continue
        with ExitStack() as stack:
            url = target.url
            if url is None:
                assert target.server is not None
                log = Path(
                    stack.enter_context(tempfile.TemporaryDirectory(prefix="serveoff-")),
                    "server.log",
                )
                none = models.Model("", "", False)
                running = launch.run_server(
                    target.server,
                    target.server.engines[0],
                    none,
                    share,
                    log,
                    ready_timeout_s=ready_timeout_s,
                )
                url = stack.enter_context(running).base_url
            try:
                profiles[name] = profiler.profile_endpoint(
                    url,
                    access=target.access,
                    model=target.model,
                    extra=target.extra,
                    needed=needed,
                    ready_timeout_s=ready_timeout_s,
                    say=partial(print, flush=True),
                    count_text=tokenizers[name],
                )
            except ProfileError as error:
                which = f"{name}: " if name and not is_gate(targets) else ""
                raise UsageError(which + target.access.hide_secrets(str(error))) from None
    named = len({target.model for target in targets.values()}) > 1
    if len({profile.model for profile in profiles.values()}) > 1 and is_gate(targets) and not named:
        raise UsageError(
            "base and head serve different models: "
            + ", ".join(
                f"{name or targets[name].description} {profile.model!r}"
                for name, profile in profiles.items()
            )
            + ": give --model and a name that both serve, or one for each, such as"
            " --model base=NAME,head=NAME"
        )
    return profiles
