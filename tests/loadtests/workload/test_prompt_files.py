"""The user's file of prompts: each form is read, and a broken file is one sentence with the place
and the remedy.
"""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from loadtests.errors import UsageError
from loadtests.workload import prompt_files
from loadtests.workload.prompt_files import PromptFile, read_prompts, sendable_scenarios

TURNS = [("system", "be brief"), ("human", "one?"), ("gpt", "1"), ("human", "two?"), ("gpt", "2")]
SHAREGPT = [{"from": role, "value": text} for role, text in TURNS]
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one?"}]
LONG = "word, " * 40_000  # beyond the csv module's limit


def read(file: Path | str, seed: int = 1) -> PromptFile:
    found = read_prompts(str(file), seed)
    assert found is not None
    return found


def write(folder: Path, text: str, name: str = "prompts") -> Path:
    (folder / name).write_text(text)
    return folder / name


def as_lines(*records: Any) -> str:
    return "".join(f"{json.dumps(record)}\n" for record in records)


def texts_of(found: PromptFile) -> list[list[str]]:
    return [[message.text for message in each.messages] for each in found.conversations]


def test_json_lines_have_prompts_or_messages_and_their_own_lengths(tmp_path: Path) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "in parts"}]}]
    answered = [*MESSAGES, {"role": "assistant", "content": "1"}]
    records = {"prompt": "a b"}, {"messages": answered, "max_tokens": 7}, {"messages": parts}
    found = read(write(tmp_path, "\ufeff" + as_lines(*records) + "\n"))
    assert texts_of(found) == [["a b"], ["be brief", "one?"], ["in parts"]]
    assert [each.max_tokens for each in found.conversations] == [None, 7, None]
    assert found.described["form"] == "JSON lines" and found.conversation_at == "line 2"


@pytest.mark.parametrize(
    "turns",
    [SHAREGPT, [{"role": turn["from"], "content": turn["value"]} for turn in SHAREGPT]],
    ids=["from and value", "role and content"],
)
def test_sharegpt_keeps_whole_conversations(tmp_path: Path, turns: list[Any]) -> None:
    entries = [
        {"id": "1", "conversations": turns},
        {"conversations": []},
        {"conversations": [{"from": "gpt", "value": "hello"}, {"from": "human", "value": "hi"}]},
    ]
    found = read(write(tmp_path, json.dumps(entries, indent=4)))
    first, second = found.conversations
    assert [m.role for m in first.messages] == ["system", "user", "assistant", "user"]
    assert first.ends == (2, 4), "each question is a request with all messages before it"
    assert [m.text for m in second.messages] == ["hi"], "a chat starts with a question"
    assert found.described | {"sha256": ""} == {
        **{"file": "prompts", "sha256": "", "form": "JSON", "column": None},
        **{"prompts": 2, "requests": 3, "kept": 2, "left_out": 1},
    }


def test_csv_and_parquet_have_a_column(tmp_path: Path) -> None:
    questions = ["one?", 'quoted "two"\nlines', LONG]
    for column in ("prompt", "question"):
        with (tmp_path / f"{column}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["id", column, "max_tokens"])
            rows.writerows((n, text, "" if n else "5.0") for n, text in enumerate(questions))
        table = pyarrow.table({column: questions, "max_tokens": [5.0, None, None]})
        parquet.write_table(table, tmp_path / f"{column}.parquet")
    for name in (
        *("prompt.csv", "question.csv:question"),
        *("prompt.parquet", "question.parquet:question"),
    ):
        found = read(f"{tmp_path}/{name}")
        assert texts_of(found) == [[text] for text in questions], name
        assert [each.max_tokens for each in found.conversations] == [5, None, None], name


def test_csv_and_parquet_have_messages_too(tmp_path: Path) -> None:
    with (tmp_path / "chats.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps(MESSAGES)]])
    parquet.write_table(pyarrow.table({"messages": [MESSAGES]}), tmp_path / "chats.parquet")
    parquet.write_table(pyarrow.table({"chat": [SHAREGPT]}), tmp_path / "turns.parquet")
    for name in ("chats.csv", "chats.parquet"):
        assert texts_of(read(tmp_path / name)) == [["be brief", "one?"]]
    assert read(f"{tmp_path}/turns.parquet:chat").conversations[0].ends == (2, 4)


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    found = read(write(tmp_path, '{"prompt": "a \\ud83d b \\ud83d\\ude00"}'))
    assert texts_of(found) == [["a \ufffd b \U0001f600"]]


def test_a_large_file_is_sampled_by_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_files, "MOST_CONVERSATIONS", 50)
    file = write(tmp_path, as_lines(*({"prompt": f"prompt {n}"} for n in range(1000))))
    first, again, other = (texts_of(read(file, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len({text for [text] in first}) == 50 == read(file).described["kept"]
    assert max(int(text.split()[1]) for [text] in first) > 800, "from the whole file"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty: choose another file"),
        ('{"prompt": "a"}\n{"prompt": \n', "line 2: it is not a JSON object: give one object"),
        ('{"prompt": "a"}\n\n[1]\n', "line 3: it is not a JSON object"),
        ('{"prompt": " "}', "line 1: its prompt is empty: remove it"),
        ('{"text": "a"}', "line 1: it has no prompt, messages or conversations: add it, or name"),
        ('{"prompt": 5}', "line 1: prompt is neither text nor a list of messages"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens 0 is not a whole number above 0"),
        ('{"prompt": "a", "max_tokens": 1.5}', "max_tokens 1.5 is not a whole number"),
        ('{"messages": [{"role": "tool", "content": "a"}]}', "the role 'tool' is not one of"),
        ('{"messages": [{"role": "user", "content": ""}]}', "its last message is empty"),
        ('{"messages": [{"role": "system", "content": "a"}]}', "is not the user's"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
            "line 1: a message has content other than text: remove it",
        ),
        ('[{"conversations": [{"from": "human", "value": "a"}]}, {"conv', "entry 2: it is not com"),
        ('[{"conversations": [{"from": "bot", "value": "a"}]}]', "entry 1: 'bot' is none of human"),
        ('[{"conversations": []}]', "it has no prompts: choose another file"),
        ("[1]", "entry 1: it is not a JSON object: give a list of objects"),
        ('id,prompt\n1,a\n2,"b\n3,c\n', "line 3: a quote is opened and never closed: close it"),
        ('id,prompt\n1,"a"b\n', "line 2: it is not valid CSV: quote fields"),
        ("id,text\n1,a\n", "it has no column prompt or messages, only id, text: name the column"),
        ("id,messages\n1,[{]\n", "line 2: messages is not JSON: repair it"),
        ("plain text\nof two lines\n", "it has no column prompt or messages, only plain text"),
        ("PAR1 no table", "it is not a whole Parquet file: write it again"),
        ("\x1f\x0b\0\0", "it is not text: give JSON lines, ShareGPT's JSON, CSV with a header"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UsageError) as refused:
        read(file)
    message = str(refused.value)
    assert message.startswith(f"--prompts {file}") and words in message
    assert len(message.splitlines()) == 1


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b'{"prompt": "caf\xe9"}')
    (tmp_path / "packed").write_bytes(b"\x1f\x8b\x08")
    # Without a reader and a writer at once, opening a pipe waits.
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    for name, words in (
        ("missing", "No such file or directory: give the path of a file"),
        ("", "Is a directory: give the path"),
        ("missing.csv:column", "missing.csv: it cannot be read"),
        ("latin", "it is not UTF-8 text: convert it to UTF-8"),
        ("pipe", "it can be read only once, as a pipe can: write it to a file"),
        ("packed", "it is compressed: unpack it"),
    ):
        with pytest.raises(UsageError, match=words):
            read(tmp_path / name)
    os.close(pipe)


def test_messages_are_not_sent_as_completions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables: Any = {"chats": {"endpoint": "chat"}, "texts": {"endpoint": "completions"}}
    plain, chats = (
        read(write(tmp_path, as_lines(record)))
        for record in ({"prompt": "a"}, {"messages": MESSAGES})
    )
    assert sendable_scenarios(tables, plain, are_chosen=True) == tables
    assert list(sendable_scenarios(tables, chats, are_chosen=False)) == ["chats"]
    assert "texts is left out: it sends completions" in capsys.readouterr().out
    with pytest.raises(UsageError, match="line 1: texts sends completions, which have no messages"):
        sendable_scenarios(tables, chats, are_chosen=True)
