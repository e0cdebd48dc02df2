"""The order of the cases, and the error for each wrong plan."""

import itertools
import re
from collections import Counter
from typing import Any

import pytest

from loadtests.campaign.plan import make_plan, option_combinations
from loadtests.errors import UsageError
from loadtests.schema import Case
from servers.runtime.catalog import CatalogError, ServerSpec

REAL = {"a": ("hf",), "b": ("vllm",), "c": ("hf",), "d": ()}
SERVERS = [
    ServerSpec(f"server_{letter}", "", (), (*engines, "simulated"))
    for letter, engines in REAL.items()
]
CLOSED = {"arrivals": "closed", "users": 16, "duration_s": 25.0}
OPEN = {"arrivals": "poisson", "rate": 3.0, "duration_s": 20.0}


def plan(
    engines: tuple[str, ...] = ("simulated",), scenarios: Any = None, **options: Any
) -> list[Case]:
    return make_plan(SERVERS, engines, scenarios or {"chat": CLOSED}, **options)


def loads(cases: list[Case]) -> set[tuple[Any, ...]]:
    return {(case.scenario, case.users, case.rate, case.duration_s) for case in cases}


def test_an_open_loop_s_window_has_the_scenario_s_number_of_requests() -> None:
    scenarios = {"chat": CLOSED | {"requests": 299}, "steady": OPEN | {"requests": 299}}
    lengths = {case.scenario: case.duration_s for case in plan(scenarios=scenarios)}
    assert lengths["chat"] == CLOSED["duration_s"], "decided when the window opens"
    assert 90 < lengths["steady"] < 110, "299 requests at 3 requests/s"
    fixed = plan(scenarios=scenarios, duration_s=7.0)
    assert {case.duration_s for case in fixed} == {7.0}


def names(cases: list[Case]) -> list[str]:
    return [case.server for case in cases]


# --- order


def test_every_combination_is_planned_exactly_once_and_numbered() -> None:
    cases = plan(
        ("hf", "simulated"),
        {"chat": CLOSED, "steady": OPEN},
        users=(1, 4),
        rates=(0.5, 2.0, 8.0),
        repeat=3,
    )
    axes = [
        ("chat", 1, None),
        ("chat", 4, None),
        ("steady", None, 0.5),
        ("steady", None, 2.0),
        ("steady", None, 8.0),
    ]
    pairs = [
        (server.name, engine)
        for server in SERVERS
        for engine in ("hf", "simulated")
        if engine in server.engines
    ]
    expected = Counter(
        (*pair, *load, run) for pair, load, run in itertools.product(pairs, axes, (1, 2, 3))
    )
    assert (
        Counter((c.server, c.engine, c.scenario, c.users, c.rate, c.repetition) for c in cases)
        == expected
    )
    assert set(expected.values()) == {1}
    assert [case.index for case in cases] == list(range(1, len(cases) + 1))
    assert len({case.folder for case in cases}) == len(cases)


def test_repetitions_are_interleaved_and_every_second_one_is_reversed() -> None:
    order = names(plan(repeat=4))
    runs = [order[start : start + len(SERVERS)] for start in range(0, len(order), len(SERVERS))]
    assert sorted(runs[0]) == sorted(server.name for server in SERVERS), (
        "each server once before any runs twice"
    )
    assert runs == [runs[0], runs[0][::-1], runs[0], runs[0][::-1]]


def test_a_linear_drift_affects_all_servers_equally() -> None:
    cases = plan(repeat=4)
    positions = {
        server.name: sum(case.index for case in cases if case.server == server.name)
        for server in SERVERS
    }
    assert len(set(positions.values())) == 1


def test_the_seed_decides_the_order() -> None:
    assert names(plan(seed=7)) == names(plan(seed=7))
    assert len({tuple(names(plan(seed=seed))) for seed in range(20)}) > 5


def test_without_engines_each_server_uses_its_first() -> None:
    assert {case.server: case.engine for case in plan(())} == {
        server.name: server.engines[0] for server in SERVERS
    }


def test_each_combination_of_options_makes_cases_of_its_own() -> None:
    server = ServerSpec(
        "fast",
        "",
        ("{workers}",),
        ("simulated",),
        options={"loop": ("uvloop", "asyncio"), "json": ("orjson", "stdlib")},
    )
    chosen = option_combinations([server, *SERVERS], ["fast.loop=uvloop,asyncio", "fast.workers=4"])
    assert chosen == {
        "fast": [{"loop": "uvloop", "workers": "4"}, {"loop": "asyncio", "workers": "4"}],
        **{other.name: [{}] for other in SERVERS},
    }
    cases = make_plan([server, SERVERS[0]], ("simulated",), {"chat": CLOSED}, options=chosen)
    assert sorted(case.label for case in cases) == [
        "fast loop=asyncio workers=4",
        "fast loop=uvloop workers=4",
        "server_a",
    ]
    assert len({case.folder for case in cases}) == 3 and "fast.loop=uvloop.workers=4" in "".join(
        case.folder for case in cases
    )


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ("server_a", "give SERVER.OPTION=VALUE"),
        ("server_a.loop", "give SERVER.OPTION=VALUE"),
        ("server_a=5", "give SERVER.OPTION=VALUE"),
        ("server_z.loop=5", "there is no chosen server 'server_z'; did you mean"),
        ("server_a.loop=5", "there is no option of server_a"),
    ],
)
def test_a_wrong_option_is_refused(wanted: str, sentence: str) -> None:
    with pytest.raises((UsageError, CatalogError), match=re.escape(sentence)):
        option_combinations(SERVERS, [wanted])


def test_options_of_real_engines_are_refused_for_the_simulated_one() -> None:
    server = ServerSpec(
        "fast", "", (), ("vllm", "simulated"), options={"quantization": ("none", "fp8")}
    )
    options = option_combinations([server], ["fast.quantization=none,fp8"])
    assert len(make_plan([server], ("vllm",), {"chat": CLOSED}, options=options)) == 2
    assert (
        len(
            make_plan(
                [server],
                ("simulated",),
                {"chat": CLOSED},
                options={"fast": [{"quantization": "none"}]},
            )
        )
        == 1
    )
    with pytest.raises(
        UsageError,
        match=(
            r"^fast\.quantization=fp8 has no effect on the simulated engine: .* choose --engines"
            r" vllm$"
        ),
    ):
        make_plan([server], ("simulated",), {"chat": CLOSED}, options=options)


def test_a_context_that_would_refuse_a_request_is_refused() -> None:
    server = ServerSpec("fast", "", (), ("vllm", "simulated"))
    table = CLOSED | {"prompt_tokens": [16, 512], "output_tokens": [8, 256]}
    longest = 512 + 256

    def planned(tokens: int, engine: str = "vllm") -> int:
        options = option_combinations([server], [f"fast.max_model_len={tokens},auto"])
        return len(make_plan([server], (engine,), {"chat": table}, options=options))

    assert planned(longest) == 2
    with pytest.raises(
        UsageError,
        match=rf"max_model_len={longest - 1} is too short for chat, .*: give {longest} or more",
    ):
        planned(longest - 1)
    with pytest.raises(UsageError, match="has no effect on the simulated engine: leave it out"):
        planned(longest, "simulated")


def test_users_and_rates_replace_the_scenarios_own_where_they_apply() -> None:
    both = {"chat": CLOSED, "steady": OPEN}
    assert loads(plan(scenarios=both)) == {("chat", 16, None, 25.0), ("steady", None, 3.0, 20.0)}
    found = loads(plan(scenarios=both, users=(1, 2), duration_s=5.0))
    assert found == {("chat", 1, None, 5.0), ("chat", 2, None, 5.0), ("steady", None, 3.0, 5.0)}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"rates": (1.0,)},
            (
                "--rate is for open-loop scenarios, and none is chosen: use --users, or add"
                " --scenarios steady"
            ),
        ),
        (
            {"users": (1,), "scenarios": {"steady": OPEN}},
            (
                "--users is for closed-loop scenarios, and none is chosen: use --rate, or add"
                " --scenarios interactive"
            ),
        ),
        (
            {"engines": ("vllm",)},
            "server_a runs on none of the engines vllm: choose from hf, simulated",
        ),
    ],
)
def test_an_impossible_plan_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
        plan(**options)
