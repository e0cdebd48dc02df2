"""Plans a campaign: servers x engines x scenarios x loads x repetitions, as an ordered list of
cases. Pure.
"""

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from loadtests.campaign.targets import Target
from loadtests.errors import UsageError
from loadtests.schema import Case
from loadtests.workload import arrivals
from loadtests.workload.prompt_files import PromptFile
from loadtests.workload.prompts import longest_request
from loadtests.workload.scenario import Tables
from servers.profile.profile import ENDPOINTS, Profile
from servers.runtime.catalog import CORE, ServerSpec, check_name, list_servers
from servers.runtime.engine_specs import ENGINES

# options of servers that have no effect on the simulated engine
OF_REAL_ENGINES = ("quantization", "tensor_parallel")


def choose_servers(
    arguments: argparse.Namespace, targets: Sequence[Target]
) -> tuple[list[ServerSpec], list[str]]:
    """The servers to measure, and the engines that the user chose for them. Raises CatalogError
    and UsageError.
    """
    engines = [name for name in arguments.engines.split(",") if name]
    for name in engines:
        check_name(name, ENGINES, "engine")
    own = targets[0]
    if arguments.target and (arguments.servers != CORE or arguments.set):
        option = "--set" if arguments.servers == CORE else "--servers"
        raise UsageError(
            f"--target measures a server that already runs, and {option} chooses one to start: give"
            " one of the two"
        )
    if own.server:
        chosen = [target.server for target in targets if target.server]
        return chosen, [] if own.is_external else engines
    if arguments.servers == "all":
        known = list_servers(own.checkout).values()
        return [s for s in known if not engines or set(engines) & set(s.engines)], engines
    names = dict.fromkeys(filter(None, arguments.servers.split(",")))
    return [own.find_server(name) for name in names], engines


def default_loads(arguments: argparse.Namespace, on_gpu: bool) -> tuple[str, Sequence[int]]:
    """The scenarios of a command without --scenarios, and the users of one without both (none: the
    scenarios' own). On a GPU they make a comparison within 20 minutes, or a search for capacity.
    """
    if arguments.target:
        return "interactive,steady", ()  # for a server that is already running
    if not on_gpu:
        return "quick-chat,quick-steady", ()
    if arguments.find_capacity:
        return "gpu-chat,gpu-steady", ()
    if arguments.scenarios:
        return "", ()
    return "gpu-quick,gpu-steady" if arguments.rate else "gpu-quick", (1, 16, 64)


def list_loads(cases: Sequence[Case]) -> dict[str, list[str] | list[int]]:
    """The values of --scenarios and --users that make these cases; without --users, if each
    scenario's own makes them.
    """
    scenarios = list(dict.fromkeys(case.scenario for case in cases))
    users = list(dict.fromkeys(case.users for case in cases if case.users))
    closed = {case.scenario for case in cases if case.users}
    return {"scenarios": scenarios} | ({"users": users} if len(users) > len(closed) else {})


def option_combinations(
    servers: Sequence[ServerSpec], wanted: Sequence[str]
) -> dict[str, list[dict[str, str]]]:
    """Returns, by server, every combination of the option values in `wanted`, such as
    "fastapi_vllm.loop=uvloop,asyncio". Raises UsageError and CatalogError.
    """
    by_name = {server.name: server for server in servers}
    found: dict[str, list[dict[str, str]]] = {name: [{}] for name in by_name}
    for text in wanted:
        where, _, values = text.partition("=")
        name, _, option = where.partition(".")
        if not (option and values):
            raise UsageError(
                f"--set {text}: give SERVER.OPTION=VALUE, such as fastapi_vllm.loop=asyncio;"
                " several values make several cases"
            )
        check_name(name, by_name, "chosen server")
        found[name] = [
            chosen | {option: value} for chosen in found[name] for value in values.split(",")
        ]
    for name, combinations in found.items():
        for chosen in combinations:
            by_name[name].choose(chosen)
    return found


def check_context(server: str, tokens: int, scenarios: Tables) -> None:
    """Raises UsageError if a server with this context would refuse a scenario's longest request."""
    for name, table in scenarios.items():
        if tokens < (longest := sum(longest_request(table))):
            raise UsageError(
                f"{server}.max_model_len={tokens} is too short for {name}, whose longest request"
                f" has {longest:,} tokens: give {longest} or more"
            )


def check_use(arguments: argparse.Namespace, scenarios: Tables, has_url: bool) -> None:
    """Raises UsageError if an option has no use with these scenarios, or with targets of which none
    `has_url`.
    """
    if (arguments.gpu_metrics or arguments.host_metrics) and not has_url:
        raise UsageError(
            "--gpu-metrics and --host-metrics are for a server at a URL: leave them out, or give"
            " --target"
        )
    if arguments.trace and not any("trace" in table for table in scenarios.values()):
        raise UsageError(
            '--trace is for scenarios with arrivals = "trace", and none is chosen: add --scenarios'
            " replay"
        )
    for name, table in scenarios.items():
        if (cap := table.get("max_in_flight", arguments.load_workers)) < arguments.load_workers:
            raise UsageError(
                f"the scenario {name!r} has max_in_flight = {cap}: give --load-workers {cap} or"
                " fewer"
            )


def possible_scenarios(
    scenarios: Tables,
    profiles: Mapping[str, Profile],
    are_chosen: bool,
    prompts: PromptFile | None = None,
) -> Tables:
    """Leaves out the default scenarios that an endpoint with one of these profiles cannot serve.
    With the user's `prompts` the scenarios' lengths do not matter. Raises UsageError, also if the
    user chose such a scenario.
    """
    found = {}
    for name, table in scenarios.items():
        for target, profile in profiles.items():
            who = target or "the target"
            context = profile.context or 0
            fitted = table | {"context": min(context, table.get("context", arrivals.CONTEXT))}
            longest = 0 if prompts or not context else sum(longest_request(fitted))
            if table["endpoint"] not in profile.endpoints:
                found[name] = f"{who} has no {ENDPOINTS[table['endpoint']]}"
            elif longest > context:
                found[name] = (
                    f"its longest request has {longest:,} tokens, and the context of {who}"
                    f" {context:,}"
                )
    left = {name: table for name, table in scenarios.items() if name not in found}
    if found and (are_chosen or not left):
        reasons = "; ".join(f"{name}: {why}" for name, why in found.items())
        raise UsageError(f"{reasons}: choose other scenarios with --scenarios")
    for name, why in found.items():
        print(f"{name} is left out: {why}", flush=True)
    return left


def make_plan(
    servers: Sequence[ServerSpec],
    engines: Sequence[str],
    scenarios: Tables,
    *,
    users: Sequence[int] = (),
    rates: Sequence[float] = (),
    duration_s: float | None = None,
    repeat: int = 1,
    seed: int = 0,
    options: Mapping[str, Sequence[dict[str, str]]] | None = None,
) -> list[Case]:
    """Lists the cases in order. `engines`: empty means each server's first. `users` and `rates`
    replace the scenarios' own. `options`: by server, as option_combinations returns them; each
    combination makes cases of its own. Raises UsageError.

    Repetitions are interleaved: every server once in a seeded order, then in the reverse order, and
    so on (ABBA). A drift of the machine then affects all of them equally.
    """
    kinds = {table["arrivals"] for table in scenarios.values()}
    if users and "closed" not in kinds:
        raise UsageError(
            "--users is for closed-loop scenarios, and none is chosen: use --rate, or add"
            " --scenarios interactive"
        )
    if rates and not kinds - {"closed", "trace"}:
        raise UsageError(
            "--rate is for open-loop scenarios, and none is chosen: use --users, or add --scenarios"
            " steady"
        )
    pairs = [
        (server, engine, chosen)
        for server in servers
        for engine in engines or server.engines[:1]
        if engine in server.engines
        for chosen in (options or {}).get(server.name, [{}])
    ]
    for server in servers:
        if not any(pair[0] is server for pair in pairs):
            raise UsageError(
                f"{server.name} runs on none of the engines {', '.join(engines)}: choose from"
                f" {', '.join(server.engines)}"
            )
    for server, engine, chosen in pairs:
        for name in chosen.keys() & set(OF_REAL_ENGINES):
            if engine == "simulated" and chosen[name] != server.options[name][0]:
                raise UsageError(
                    f"{server.name}.{name}={chosen[name]} has no effect on the simulated engine:"
                    f" leave it out, or choose --engines {server.engines[0]}"
                )
        of_others = {name for spec in ENGINES.values() for name in spec.options}
        of_others -= ENGINES[engine].options.keys() if engine in ENGINES else set()
        for name in sorted(of_others & chosen.keys()):
            raise UsageError(
                f"{server.name}.{name}={chosen[name]} has no effect on the {engine} engine: leave"
                " it out, or choose --engines vllm"
            )
        if chosen.get("max_model_len", "auto") != "auto":
            check_context(server.name, int(chosen["max_model_len"]), scenarios)
    loads: list[tuple[str, int | None, float | None]] = []
    for name, table in scenarios.items():
        if table["arrivals"] == "closed":
            loads += [(name, count, None) for count in users or (table["users"],)]
        else:
            own = (table["rate"],)
            loads += [
                (name, None, rate)
                for rate in (own if table["arrivals"] == "trace" else rates or own)
            ]
    random.Random(seed).shuffle(pairs)
    cases: list[Case] = []
    for repetition in range(1, repeat + 1):
        for name, count, rate in loads:
            length = duration_s or scenarios[name]["duration_s"]
            if rate and not duration_s and "requests" in scenarios[name]:
                load_seed = arrivals.load_seed(seed, name, repetition)
                length = arrivals.window_for_arrivals(load_seed, scenarios[name], rate, length)
            ordered = pairs if repetition % 2 else pairs[::-1]
            cases += [
                Case(0, server.name, engine, name, repetition, count, rate, length, chosen)
                for server, engine, chosen in ordered
            ]
    return [replace(case, index=index) for index, case in enumerate(cases, 1)]
