"""Scenarios are read verbatim; a broken one is refused, with its file and key."""

from pathlib import Path
from typing import Any

import pytest

from loadtests.errors import UsageError
from loadtests.workload.scenario import read_scenarios
from servers.runtime.catalog import CatalogError

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
NO_RANGE = "is not [least, most], two whole numbers from"


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
            "the key 'seed' is outside a table: put it below a [scenario]",
        ),
        (
            "[chat]",
            '["../chat"]',
            (
                "the scenario name '../chat' becomes part of folder names: use only letters,"
                " digits, - and _"
            ),
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
            "[chat]: burstiness does not apply with arrivals = 'poisson': remove it",
        ),
        (
            "users = 2",
            "users = 2\nthink_s = -0.1",
            "[chat]: think_s = -0.1 is not a number above or equal to 0",
        ),
        ("duration_s = 1.5", "duration_s = 0", "[chat]: duration_s = 0 is not a number above 0"),
        (
            "duration_s = 1.5",
            "duration_s = 1.5\nrequests = 0",
            "[chat]: requests = 0 is not a whole number above 0",
        ),
        (
            "duration_s = 1.5",
            "duration_s = 1.5\nduration_max_s = 9",
            "[chat]: duration_max_s needs requests, the number that extends a window",
        ),
        (
            "duration_s = 1.5",
            "duration_s = 1.5\nrequests = 9\nduration_max_s = 1",
            "[chat]: duration_max_s = 1 is less than duration_s",
        ),
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
        ("[4, 4]", "[4, 3]", f"[chat]: output_tokens = [4, 3] {NO_RANGE} 1 up"),
        ("[4, 4]", "[0, 4]", f"[chat]: output_tokens = [0, 4] {NO_RANGE} 1 up"),
        ("[4, 4]", "4", f"[chat]: output_tokens = 4 {NO_RANGE} 1 up"),
        ("[2, 8]", "[1, 8]", f"[chat]: prompt_tokens = [1, 8] {NO_RANGE} 2 up"),
        ("users = 2", "users = 2\nturns = 3", f"[chat]: turns = 3 {NO_RANGE} 1 up"),
        ("users = 2", "users = 2\nturns = [0, 3]", f"[chat]: turns = [0, 3] {NO_RANGE} 1 up"),
        (
            '"chat"\nprompt',
            '"completions"\nturns = [2, 3]\nprompt',
            '[chat]: turns needs conversations: use endpoint = "chat"',
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
                "[chat]: shared_tokens = 1 is too short for a chat's system message, whose role"
                " marker is one token: use at least 2"
            ),
        ),
        (
            "users = 2",
            "users = 2\nshared_prefixes = 3",
            "[chat]: shared_prefixes needs shared_tokens, the length of a prefix",
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
            "[chat]: zipf needs distinct_prompts, the number of prompts to draw from",
        ),
        (
            "users = 2",
            "users = 2\nturns = [2, 3]\ndistinct_prompts = 5",
            (
                "[chat]: distinct_prompts does not apply with turns: a question follows a different"
                " conversation each time, so no request repeats"
            ),
        ),
        (
            '"closed"\nusers = 2',
            '"trace"\ndistinct_prompts = 8',
            "[chat]: distinct_prompts does not apply with arrivals = 'trace': remove it",
        ),
        (
            "users = 2",
            "users = 2\nmax_in_flight = 4",
            "[chat]: max_in_flight does not apply with arrivals = 'closed': remove it",
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
            "[chat]: turns does not apply with arrivals = 'poisson': remove it",
        ),
        (
            '"closed"\nusers = 2',
            '"trace"\nshared_tokens = 8',
            "[chat]: shared_tokens does not apply with arrivals = 'trace': remove it",
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
    message = str(refused.value)
    assert message.startswith(str(tmp_path / "mine.toml")) and message.endswith(sentence), message


def test_an_unknown_key_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(
        CatalogError,
        match=r"there is no key in .*mine\.toml: \[chat\] 'warm_up_s'; did you mean 'warmup_s'\?",
    ):
        scenarios(tmp_path, GOOD.replace("warmup_s", "warm_up_s"))


def test_a_missing_file_or_one_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml cannot be read: No such file or directory$"):
        read_scenarios(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes("# Größe".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.toml is not valid TOML: .*utf-8"):
        read_scenarios(tmp_path / "latin.toml")
