"""Targets: the servers of this checkout, an endpoint at a URL, or, for a gate, base and head as
revisions, folders, commands or URLs.
"""

import dataclasses
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from loadtests.errors import UsageError
from servers.profile import profiler
from servers.profile.client import ProfileError
from servers.profile.endpoint import split_url
from servers.profile.profile import Profile
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

    @property
    def is_external(self) -> bool:
        """Whether the target chooses its model itself."""
        return self.server is not None and self.server.engines == (EXTERNAL,)

    def find_server(self, name: str) -> ServerSpec:
        """The target's only server, or its server of this name. Raises CatalogError."""
        return self.server or catalog.find_server(name, self.checkout)


Targets = Mapping[str, Target]  # by Case.side


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


def target_of_url(url: str, option: str = "--target", name: str = "target") -> Target:
    """The target of a running server. Raises UsageError for a malformed URL."""
    try:
        split_url(url)
    except ProfileError as error:
        raise UsageError(f"{option}: {error}") from None
    return Target(
        f"{option} {url}", server=ServerSpec(name, url, (), (EXTERNAL,), foreign=True), url=url
    )


def target_of_server(text: str, option: str) -> Target:
    """The target of a URL, a folder with a server.toml, or a command with {port}. Raises UsageError
    and CatalogError.
    """
    if text.startswith(("http://", "https://")):
        return target_of_url(text, option, OWN)
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
    )


def profile_targets(
    targets: Targets,
    model: str | None,
    needed: Sequence[str],
    share: launch.CoreShare,
    ready_timeout_s: float | None,
) -> dict[str, Profile]:
    """Profiles each target, and starts a target that is not running for its profile. All must serve
    the same model: `model`, if the user named one. `needed`: the endpoints, "chat" or
    "completions", that each must have. Raises UsageError and LaunchError.
    """
    profiles = {}
    for name, target in targets.items():
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
                    model=model,
                    needed=needed,
                    ready_timeout_s=ready_timeout_s,
                    say=partial(print, flush=True),
                )
            except ProfileError as error:
                raise UsageError(str(error)) from None
    if len({profile.model for profile in profiles.values()}) > 1:
        raise UsageError(
            "base and head serve different models: "
            + ", ".join(
                f"{name or targets[name].description} {profile.model!r}"
                for name, profile in profiles.items()
            )
            + ": give --model and a name that both serve"
        )
    return profiles
