"""Conversations keep their whole history and start over when they must; prompts share as many
prefixes as the scenario has.
"""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from loadtests.client.http import request_id
from loadtests.generator.locust_process import Workers
from loadtests.workload import prompts
from servers.contract import oracle
from tests.helpers.campaign_process import QUICK, Bench, is_complete, runs, table
from tests.helpers.recording_server import (
    CLOSED,
    SCENARIO,
    SEED,
    Asked,
    Driven,
    Witness,
    drive,
    task_of,
)

CHAT = CLOSED | {
    "turns": [2, 5],
    "shared_tokens": 8,
    "prompt_tokens": [4, 12],
    "output_tokens": [4, 8],
    "context": 75,
    "think_s": 0.02,
}
USERS = 4


def refused(asked: Asked) -> bool:
    return len(asked.body["messages"]) == 6 and asked.body["max_tokens"] == 5


@pytest.fixture(scope="module")
def chat(bench: Bench) -> tuple[Driven, dict[str, Asked]]:
    with Witness(answer_s=0.01, fails=refused) as witness:
        driven = drive(
            bench.folder / "chat",
            task_of(witness.url, CHAT, users=USERS, duration_s=3.0),
            Workers(2),
        )
        assert len(driven.rows) == len(witness.asked) > 100
        return driven, {asked.request_id: asked for asked in witness.asked}


def of_user(chat: tuple[Driven, dict[str, Asked]], user: int) -> list[tuple[dict[str, Any], Asked]]:
    driven, asked = chat
    rows = sorted(
        (row for row in driven.rows if row["user"] == user), key=lambda row: row["request"]
    )
    return [(row, asked[request_id(row["worker"], row["request"])]) for row in rows]


def test_a_conversation_keeps_its_history_and_starts_over_when_it_must(
    chat: tuple[Driven, dict[str, Asked]],
) -> None:
    restarts = {"its turns are over": 0, "a request failed": 0, "the context would be exceeded": 0}
    for user in range(USERS):
        begun_at, requests = 0, of_user(chat, user)
        assert len(requests[0][1].body["messages"]) == 2
        for turn, ((row, before), (_, after)) in enumerate(pairwise(requests), 1):
            system, *history, question = after.body["messages"]
            assert (
                system == requests[0][1].body["messages"][0]
                and len(system["content"].split()) == CHAT["shared_tokens"] - 1
            )
            wanted = prompts.make_prompt(SEED, CHAT, user, turn)
            assert (
                question == {"role": "user", "content": wanted.text}
                and after.body["max_tokens"] == wanted.max_tokens
            )
            answered = [*before.body["messages"], {"role": "assistant", "content": before.said}]
            whole = oracle.chat_text(
                [(each["role"], each["content"]) for each in [*answered, question]]
            )
            reason = None
            if turn - begun_at >= prompts.conversation_turns(SEED, CHAT, user, begun_at):
                reason = "its turns are over"
            elif row["error"] is not None:
                reason = "a request failed"
            elif oracle.count_tokens(whole) + wanted.max_tokens > CHAT["context"]:
                reason = "the context would be exceeded"
            assert [system, *history] == ([system] if reason else answered), (user, turn, reason)
            if reason:
                restarts[reason] += 1
                begun_at = turn
    assert all(count >= 3 for count in restarts.values()), restarts


def test_lengths_are_the_server_s_and_responses_are_exact(
    chat: tuple[Driven, dict[str, Asked]],
) -> None:
    for row in chat[0].rows:
        asked = chat[1][request_id(row["worker"], row["request"])]
        if refused(asked):
            assert (row["error"], row["answer"]) == ("http 500", "unchecked")
        else:
            assert (row["error"], row["answer"]) == (None, "exact")
            assert row["prompt_tokens_asked"] == row["prompt_tokens"] == asked.prompt_tokens
            assert row["prompt_tokens"] + row["max_tokens"] <= CHAT["context"]


def test_a_user_thinks_after_each_response(chat: tuple[Driven, dict[str, Asked]]) -> None:
    for user in range(USERS):
        for (before, _), (after, _) in pairwise(of_user(chat, user)):
            if before["error"] is None:
                assert after["scheduled_s"] == pytest.approx(
                    before["done_s"] + CHAT["think_s"], abs=2e-6
                )
            assert after["sent_s"] >= after["scheduled_s"] > before["done_s"]


def test_conversations_have_every_length_in_the_scenario_s_range() -> None:
    found = {
        prompts.conversation_turns(SEED, CHAT, user, turn)
        for user in range(20)
        for turn in range(20)
    }
    assert found == {2, 3, 4, 5}


@pytest.mark.parametrize("shared", [2, 3, 64])
@pytest.mark.parametrize(
    "history",
    [(), (prompts.PromptMessage("user", "baba"), prompts.PromptMessage("assistant", "babe babi"))],
)
def test_a_chat_s_stated_length_is_that_of_its_text(
    shared: int, history: tuple[prompts.PromptMessage, ...]
) -> None:
    for turn in range(50):
        wanted = prompts.make_prompt(
            SEED, CHAT | {"shared_tokens": shared}, 0, turn, history=history
        )
        messages = [*((each.role, each.text) for each in wanted.history), ("user", wanted.text)]
        assert oracle.count_tokens(oracle.chat_text(messages)) == wanted.tokens


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_there_are_as_many_prefixes_as_stated_and_no_prompt_repeats(
    tmp_path: Path, marked: Bench, endpoint: str
) -> None:
    scenario = SCENARIO | {"endpoint": endpoint, "shared_tokens": 32, "shared_prefixes": 5}
    with Witness() as witness:
        driven = drive(tmp_path / "load", task_of(witness.url, scenario, rate=80.0), Workers())
    if endpoint == "chat":
        parts = [
            [message["content"].split() for message in asked.body["messages"]]
            for asked in witness.asked
        ]
        assert {len(system) for system, _ in parts} == {31}, "the role's marker is the first of 32"
    else:
        words = [asked.body["prompt"].split() for asked in witness.asked]
        parts = [[text[:32], text[32:]] for text in words]
    assert len({tuple(prefix) for prefix, _ in parts}) == 5 and len(parts) > 60
    assert len({tuple(own) for _, own in parts}) == len(parts)
    for row in driven.rows:
        assert (
            row["prompt_tokens"] == row["prompt_tokens_asked"]
            and 32 + 4 <= row["prompt_tokens"] <= 32 + 16
        )
        assert row["answer"] == "exact"


# --- the scenarios that come with Serveoff


def test_chats_and_documents_are_measured(bench: Bench) -> None:
    """Runs `chat` and `rag` of loadtests/workload/scenarios.toml with their own lengths and shorter
    times.
    """
    text = (Path(prompts.__file__).parent / "scenarios.toml").read_text()
    shipped = "".join(
        re.findall(r"^\[(?:chat|rag)\]\n.*?(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    )
    for key, value in (
        ("think_s = 2.0", "think_s = 0.05"),
        ("warmup_s = 12.0", "warmup_s = 0.5"),
        ("warmup_s = 8.0", "warmup_s = 0.5"),
        ("timeout_s =", "warmup_max_s = 0.5\ntimeout_s ="),
    ):
        assert key in shipped
        shipped = shipped.replace(key, value)
    (bench.folder / "mine.toml").write_text(shipped)
    done = bench.run(
        *QUICK,
        "--scenarios",
        "chat,rag",
        "--servers",
        "fastapi_threadpool",
        "--users",
        "4",
        "--rate",
        "20",
        "--duration",
        "2.5",
        "--out",
        "shipped",
    )
    assert is_complete(done.returncode, done.stderr), done.stdout + done.stderr
    for (folder, run), shared in zip(runs(bench.folder / "shipped"), (64, 1024), strict=True):
        rows = table(folder, "requests")
        assert (
            run["status"] == "ok"
            and {row["answer"] for row in rows} == {"exact"}
            and len(rows) > 20
        )
        assert all(
            row["prompt_tokens"] == row["prompt_tokens_asked"] >= shared + 16 for row in rows
        )
        longest = max(row["prompt_tokens"] for row in rows)
        assert longest > 64 + 64 if shared == 64 else longest <= 1024 + 64, (
            "chats grow, documents do not"
        )
