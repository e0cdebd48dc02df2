"""The order of the cases, and every sentence that a wrong plan or a wrong scenarios file is refused
with.
"""

import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loadtests.campaign.plan import make_plan, option_combinations
from loadtests.errors import UsageError
from loadtests.schema import Case
from loadtests.workload.scenario import read_scenarios
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


def names(cases: list[Case]) -> list[str]:
    return [case.server for case in cases]


# --- order


def test_every_combination_comes_exactly_once_and_is_numbered() -> None:
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


def test_repetitions_are_interleaved_and_in_turn_reversed() -> None:
    order = names(plan(repeat=4))
    runs = [order[start : start + len(SERVERS)] for start in range(0, len(order), len(SERVERS))]
    assert sorted(runs[0]) == sorted(server.name for server in SERVERS), (
        "every server once before any comes twice"
    )
    assert runs == [runs[0], runs[0][::-1], runs[0], runs[0][::-1]]


def test_a_linear_drift_falls_on_all_servers_alike() -> None:
    cases = plan(repeat=4)
    positions = {
        server.name: sum(case.index for case in cases if case.server == server.name)
        for server in SERVERS
    }
    assert len(set(positions.values())) == 1


def test_the_order_is_the_seeds() -> None:
    assert names(plan(seed=7)) == names(plan(seed=7))
    assert len({tuple(names(plan(seed=seed))) for seed in range(20)}) > 5


def test_without_engines_each_server_has_its_real_one() -> None:
    assert {case.server: case.engine for case in plan(())} == {
        server.name: server.engines[0] for server in SERVERS
    }


def test_each_choice_of_options_makes_cases_of_its_own() -> None:
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
def test_an_option_that_cannot_be_is_refused(wanted: str, sentence: str) -> None:
    with pytest.raises((UsageError, CatalogError), match=re.escape(sentence)):
        option_combinations(SERVERS, [wanted])


def test_what_only_a_real_engine_does_is_refused_of_the_simulated_one() -> None:
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
            r"^fast\.quantization=fp8 changes nothing under the simulated engine: .* choose"
            r" --engines vllm$"
        ),
    ):
        make_plan([server], ("simulated",), {"chat": CLOSED}, options=options)


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
        ({"engines": ("vllm",)}, "server_a runs on none of the engines vllm; it has hf, simulated"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
        plan(**options)


# --- scenarios

GOOD = """
[chat]
summary = "chat"
arrivals = "closed"
users = 2
endpoint = "chat"
prompt_tokens = [2, 8]
output_tokens = [4, 4]
warmup_s = 0
duration_s = 1.5
drain_s = 5
timeout_s = 20
"""


def scenarios(folder: Path, text: str) -> dict[str, dict[str, Any]]:
    (folder / "mine.toml").write_text(text)
    return read_scenarios(folder / "mine.toml")


def test_a_scenario_is_read_verbatim(tmp_path: Path) -> None:
    assert scenarios(tmp_path, GOOD)["chat"] == {
        "summary": "chat",
        "arrivals": "closed",
        "users": 2,
        "endpoint": "chat",
        "prompt_tokens": [2, 8],
        "output_tokens": [4, 4],
        "warmup_s": 0,
        "duration_s": 1.5,
        "drain_s": 5,
        "timeout_s": 20,
    }


def test_the_scenarios_that_come_with_serveoff_are_sound() -> None:
    known = read_scenarios()
    assert {"interactive", "steady", "chat", "rag"} <= known.keys()
    assert known["websocket"] == known["interactive"] | {
        "summary": known["websocket"]["summary"],
        "transport": "websocket",
    }


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("users = 2", "users = ", "is not valid TOML: Invalid value (at line 5, column 9)"),
        (
            "[chat]",
            "seed = 1\n[chat]",
            "'seed' stands outside of a table: put it below a [scenario]",
        ),
        (
            "[chat]",
            '["../chat"]',
            "the scenario '../chat' must be named with letters, digits, - and _: it names folders",
        ),
        ("drain_s = 5", "", "[chat]: the key 'drain_s' is missing"),
        ("users = 2", "", "[chat]: closed arrivals need the key 'users'"),
        (
            '"closed"',
            '"open"',
            "[chat]: arrivals = 'open' is not one of closed, constant, poisson, gamma, trace",
        ),
        (
            '"closed"',
            '["closed"]',
            "[chat]: arrivals = ['closed'] is not one of closed, constant, poisson, gamma, trace",
        ),
        (
            '"chat"\nprompt',
            '"chats"\nprompt',
            "[chat]: endpoint = 'chats' is neither chat nor completions",
        ),
        ('summary = "chat"', "summary = 1", "[chat]: summary = 1 is not a string"),
        ("users = 2", "users = 0", "[chat]: users = 0 is not a whole number above 0"),
        ("users = 2", "users = -2", "[chat]: users = -2 is not a whole number above 0"),
        ("users = 2", "users = 2.5", "[chat]: users = 2.5 is not a whole number above 0"),
        ("users = 2", "users = true", "[chat]: users = True is not a whole number above 0"),
        ("users = 2", 'users = "2"', "[chat]: users = '2' is not a whole number above 0"),
        (
            '"closed"\nusers = 2',
            '"poisson"\nrate = -1',
            "[chat]: rate = -1 is not a number above 0",
        ),
        (
            '"closed"\nusers = 2',
            '"poisson"\nrate = nan',
            "[chat]: rate = nan is not a number above 0",
        ),
        (
            '"closed"\nusers = 2',
            '"poisson"\nrate = 2\nburstiness = 1',
            "[chat]: burstiness does not go with arrivals = 'poisson': leave it out",
        ),
        (
            "users = 2",
            "users = 2\nthink_s = -0.1",
            "[chat]: think_s = -0.1 is not a number above or equal to 0",
        ),
        ("duration_s = 1.5", "duration_s = 0", "[chat]: duration_s = 0 is not a number above 0"),
        (
            "duration_s = 1.5",
            "duration_s = inf",
            "[chat]: duration_s = inf is not a number above 0",
        ),
        (
            "warmup_s = 0",
            "warmup_s = -1",
            "[chat]: warmup_s = -1 is not a number above or equal to 0",
        ),
        (
            "users = 2",
            'users = 2\ntransport = "pigeon"',
            "[chat]: transport = 'pigeon' is not one of sse, websocket",
        ),
        (
            "users = 2",
            'users = 2\ntransport = ["sse"]',
            "[chat]: transport = ['sse'] is not one of sse, websocket",
        ),
        ("[4, 4]", "[4, 3]", "[chat]: output_tokens = [4, 3] is not [least, most] of at least 1"),
        ("[4, 4]", "[0, 4]", "[chat]: output_tokens = [0, 4] is not [least, most] of at least 1"),
        ("[4, 4]", "4", "[chat]: output_tokens = 4 is not [least, most] of at least 1"),
        ("[2, 8]", "[1, 8]", "[chat]: prompt_tokens = [1, 8] is not [least, most] of at least 2"),
        (
            "users = 2",
            "users = 2\nturns = 3",
            "[chat]: turns = 3 is not [least, most] of at least 1",
        ),
        (
            "users = 2",
            "users = 2\nturns = [0, 3]",
            "[chat]: turns = [0, 3] is not [least, most] of at least 1",
        ),
        (
            '"chat"\nprompt',
            '"completions"\nturns = [2, 3]\nprompt',
            '[chat]: turns are of a conversation: use endpoint = "chat"',
        ),
        (
            "users = 2",
            "users = 2\nshared_tokens = 0",
            "[chat]: shared_tokens = 0 is not a whole number above 0",
        ),
        (
            "users = 2",
            "users = 2\nshared_tokens = 1.5",
            "[chat]: shared_tokens = 1.5 is not a whole number above 0",
        ),
        (
            "users = 2",
            "users = 2\nshared_tokens = 1",
            (
                "[chat]: shared_tokens = 1 is too short for a chat's system message: its role's"
                " marker is one"
            ),
        ),
        (
            "users = 2",
            "users = 2\nshared_prefixes = 3",
            "[chat]: shared_prefixes need shared_tokens, their length",
        ),
        (
            "users = 2",
            "users = 2\nshared_tokens = 8\nshared_prefixes = 0",
            "[chat]: shared_prefixes = 0 is not a whole number above 0",
        ),
        (
            "users = 2",
            "users = 2\ndistinct_prompts = 0",
            "[chat]: distinct_prompts = 0 is not a whole number above 0",
        ),
        (
            "users = 2",
            "users = 2\ndistinct_prompts = 1.5",
            "[chat]: distinct_prompts = 1.5 is not a whole number above 0",
        ),
        (
            "users = 2",
            "users = 2\ndistinct_prompts = [5]",
            "[chat]: distinct_prompts = [5] is not a whole number above 0",
        ),
        (
            "users = 2",
            "users = 2\ndistinct_prompts = 5\nzipf = -1",
            "[chat]: zipf = -1 is not a number above or equal to 0",
        ),
        (
            "users = 2",
            "users = 2\ndistinct_prompts = 5\nzipf = inf",
            "[chat]: zipf = inf is not a number above or equal to 0",
        ),
        (
            "users = 2",
            "users = 2\nzipf = 1.1",
            "[chat]: zipf needs distinct_prompts, how many there are to choose from",
        ),
        (
            "users = 2",
            "users = 2\nturns = [2, 3]\ndistinct_prompts = 5",
            (
                "[chat]: distinct_prompts do not go with turns: the conversation so far makes"
                " each question new"
            ),
        ),
        (
            '"closed"\nusers = 2',
            '"trace"\ndistinct_prompts = 8',
            "[chat]: distinct_prompts does not go with arrivals = 'trace': leave it out",
        ),
        (
            "users = 2",
            "users = 2\nmax_in_flight = 4",
            "[chat]: max_in_flight does not go with arrivals = 'closed': leave it out",
        ),
        (
            '"closed"\nusers = 2',
            '"poisson"\nrate = 2\nmax_in_flight = 0',
            "[chat]: max_in_flight = 0 is not a whole number above 0",
        ),
        (
            '"closed"\nusers = 2',
            '"poisson"\nrate = 2\nmax_in_flight = 2.5',
            "[chat]: max_in_flight = 2.5 is not a whole number above 0",
        ),
        (
            '"closed"\nusers = 2',
            '"poisson"\nrate = 2\nturns = [1, 2]',
            "[chat]: turns does not go with arrivals = 'poisson': leave it out",
        ),
        (
            '"closed"\nusers = 2',
            '"trace"\nshared_tokens = 8',
            "[chat]: shared_tokens does not go with arrivals = 'trace': leave it out",
        ),
        (
            "warmup_s = 0",
            "warmup_s = 3\nwarmup_max_s = 2",
            "[chat]: warmup_max_s = 2 is less than warmup_s",
        ),
    ],
)
def test_a_broken_scenario_is_refused_and_located(
    tmp_path: Path, before: str, after: str, sentence: str
) -> None:
    assert GOOD.count(before) == 1
    with pytest.raises(UsageError) as refused:
        scenarios(tmp_path, GOOD.replace(before, after))
    said = str(refused.value)
    assert said.startswith(str(tmp_path / "mine.toml")) and said.endswith(sentence), said


def test_an_unknown_key_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(
        CatalogError,
        match=r"there is no key in .*mine\.toml: \[chat\] 'warm_up_s'; did you mean 'warmup_s'\?",
    ):
        scenarios(tmp_path, GOOD.replace("warmup_s", "warm_up_s"))


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml cannot be read: No such file or directory$"):
        read_scenarios(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes("# Größe".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.toml is not valid TOML: .*utf-8"):
        read_scenarios(tmp_path / "latin.toml")
