"""Traces in other projects' formats are read; an error names file, line and remedy."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.workload import record_blocks, traces
from loadtests.workload.arrivals import replay
from loadtests.workload.prompts import make_prompt
from loadtests.workload.traces import TraceError, TraceRow, read_trace
from servers.runtime import catalog


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "trace.txt"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""


@pytest.mark.parametrize(
    "text",
    [
        AZURE,
        AZURE.replace("\n", "\r\n"),
        "\ufeff" + AZURE,
        AZURE.replace("0,374", "0+00:00,374").replace("0,396", "0+00:00,396"),
        AZURE.replace(" 18", "T18"),
        (
            "GeneratedTokens,Model,timestamp,ContextTokens\n109,x,2023-11-16"
            " 18:15:50.9951690,396\n44,x,2023-11-16 18:15:46.6805900,374\n"
        ),
        "arrival_s,prompt_tokens,output_tokens\n100,374,44\n104.314579,396,109\n",
        (
            '{"timestamp": 1000, "input_length": 374, "output_length": 44}\n\n'
            '{"timestamp": 5314.579, "input_length": 396, "output_length": 109}\n'
        ),
        (
            "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
            "5,ChatGPT,374,44,418,Conversation log\n6,GPT-4,12,0,12,API log\n"
            "9.314579,GPT-4,396,109,505,API log\n"
        ),
        (
            "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,"
            "Log Type\n9.314579,s2,1.5,ChatGPT,396,109,505,Conversation log\n"
            "5,s1,2.5,ChatGPT,374,44,418,Conversation log\n"
        ),
        (
            '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 374,'
            ' "output_length": 44, "type": "text", "turn": 1}\n'
            '{"chat_id": 2, "parent_chat_id": -1, "timestamp": 65.428579, "input_length": 396,'
            ' "output_length": 109, "type": "text", "turn": 1}\n'
        ),
        (
            '{"arrival_s": 100, "prompt_tokens": 374, "output_tokens": 44}\n'
            '{"arrival_s": 104.314579, "prompt_tokens": 396, "output_tokens": 109}\n'
        ),
        AZURE.replace("2023-11-16 18:15:46.6805900", '"2023-11-16 18:15:46.6805900"'),
        "Note," + AZURE.replace("\n2", f'\n"{"x" * 1_000_000}",2'),
    ],
    ids=[
        "azure",
        "crlf",
        "byte order mark",
        "with a zone",
        "with a T",
        "other columns, unsorted",
        "ours",
        "mooncake",
        "burstgpt, with a failed request",
        "burstgpt with sessions, unsorted",
        "bailian",
        "ours as JSON lines",
        "quoted",
        "a field of a megabyte",
    ],
)
@pytest.mark.parametrize("way", ["columns", "rows"])
def test_all_formats_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, way: str
) -> None:
    """Whether blocks are read the quick way or the slow one."""
    if way == "rows":
        monkeypatch.setattr(traces, "read_csv_columns", lambda *_: None)
        monkeypatch.setattr(traces, "read_json_columns", lambda *_: None)
    first, second = read_trace(written(tmp_path, text)).rows
    assert (first.at_s, first.prompt_tokens, first.output_tokens) == (0.0, 374, 44)
    assert (second.prompt_tokens, second.output_tokens) == (396, 109)
    assert second.at_s == pytest.approx(4.314579, abs=2e-6)


def test_mooncakes_shared_prefixes_are_kept(tmp_path: Path) -> None:
    text = '{"timestamp": 0, "input_length": 1030, "output_length": 0, "hash_ids": [46, 47, 48]}'
    trace = read_trace(written(tmp_path, text))
    assert trace.rows == (TraceRow(0.0, 1030, 1, (46, 47, 48), (512, 512, 512)),)
    assert trace.format == "Mooncake (times in ms, blocks of 512 tokens)"


HEADER = "Timestamp,Model,Request tokens,Response tokens"


def words_of(trace: Path) -> list[list[str]]:
    """The prompts of the first minute."""
    scenario = {"arrivals": "trace", "trace": str(trace), "endpoint": "completions"}
    return [
        make_prompt("seed", scenario, 0, turn, arrival).text.split()
        for turn, arrival in enumerate(replay(scenario, 60.0))
    ]


def shared(one: list[str], other: list[str]) -> int:
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def test_bailians_blocks_have_16_tokens_and_its_times_are_seconds(tmp_path: Path) -> None:
    ids = [*range(33)]
    file = written(
        tmp_path,
        f"""{{"chat_id":1,"parent_chat_id":-1,"timestamp":61.114,"input_length":521,"""
        f""""output_length":132,"type":"text","turn":1,"hash_ids":{ids}}}
{{"chat_id":2,"parent_chat_id":1,"timestamp":62.5,"input_length":700,"output_length":9,"""
        f""""type":"text","turn":2,"hash_ids":{[*ids[:32], *range(50, 62)]}}}
""",
    )
    first, second = read_trace(file).rows
    assert second.at_s == pytest.approx(1.386)
    assert first == TraceRow(0.0, 521, 132, tuple(ids), (16,) * 33)
    before, after = words_of(file)
    assert (len(before), len(after), shared(before, after)) == (521, 700, 512)


@pytest.mark.parametrize("form", ["BurstGPT", "Bailian", "ours", "ours as JSON lines"])
def test_a_turn_starts_with_the_turn_before_it(tmp_path: Path, form: str) -> None:
    """There are no hash_ids. The third turn is shorter than the two turns before it, so the history
    was cut, and the text of the rest is unknown.
    """
    turns = [("a", 0, 40, 20), ("b", 1, 30, 5), ("a", 2, 90, 10), ("a", 3, 50, 10), ("a", 4, 80, 1)]
    lines = {
        "BurstGPT": ["Timestamp,SessionID,Model,Request tokens,Response tokens"],
        "ours": ["session,arrival_s,prompt_tokens,output_tokens"],
    }.get(form, [])
    parents = {"a": -1, "b": -1}
    for number, (session, at, prompt, output) in enumerate(turns):
        lines.append(
            {
                "BurstGPT": f"{at},{session},gpt,{prompt},{output}",
                "ours": f"{session},{at},{prompt},{output}",
                "ours as JSON lines": f'{{"arrival_s": {at}, "prompt_tokens": {prompt},'
                f' "output_tokens": {output}, "session": "{session}"}}',
                "Bailian": f'{{"timestamp": {at}, "input_length": {prompt}, "output_length":'
                f' {output}, "chat_id": {number}, "parent_chat_id": {parents[session]}}}',
            }[form]
        )
        parents[session] = number
    file = written(tmp_path, "\n".join(lines))
    first, other, second, third, fourth = words_of(file)
    assert [len(each) for each in (first, other, second, third, fourth)] == [40, 30, 90, 50, 80]
    assert shared(first, second) == 40 and shared(third, fourth) == 50
    assert shared(first, other) == shared(second, third) == 0


def test_our_json_lines_state_the_size_of_their_blocks(tmp_path: Path) -> None:
    line = '{"arrival_s": 0, "prompt_tokens": 9, "output_tokens": 5, "hash_ids": [7, 8, 9]%s}'
    trace = read_trace(written(tmp_path, line % ', "block_tokens": 4'))
    assert trace.rows == (TraceRow(0.0, 9, 5, (7, 8, 9), (4, 4, 4)),)
    (tmp_path / "other.jsonl").write_text(line % "")
    with pytest.raises(TraceError, match="line 1: the key 'block_tokens' is missing"):
        read_trace(tmp_path / "other.jsonl")


@pytest.mark.parametrize("block_bytes", [40, 1 << 20])
def test_only_the_wanted_part_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """Also if the rows are in no order, the first one failed, and blocks end anywhere. What is
    wrong with rows that are not replayed does not matter.
    """
    monkeypatch.setattr(record_blocks, "READ_BYTES", block_bytes)
    rows = [(at, 10 + at, at % 7) for at in range(7, 100)]
    random.Random(3).shuffle(rows)
    lines = [f"{at},gpt,{prompt},{output}" for at, prompt, output in rows]
    lines.insert(0, "0,gpt,5,0")
    lines.insert(50, '99,"a \n ""model""",many,5')
    file = written(tmp_path, "\n".join([HEADER, *lines]))
    part = read_trace(file, 10.0, 30.0)
    # 7 has failed, so the first request is at 8
    assert [row.at_s for row in part.rows] == [at - 8 for at in range(18, 38) if at % 7]
    assert [row.prompt_tokens for row in part.rows] == [at + 10 for at in range(18, 38) if at % 7]
    assert part.failed == 3
    # from the first row of this file, the last one would be in the part
    (tmp_path / "late.csv").write_text("\n".join([HEADER, "95,a,5,5", *lines, "120,a,many,5"]))
    assert read_trace(tmp_path / "late.csv", 10.0, 30.0).rows == part.rows
    with pytest.raises(TraceError, match=r"line \d+: 'many' is not a number"):
        read_trace(file)


CHILD = """
import sys
from pathlib import Path
from loadtests.workload import traces
print(sum(len(traces.read_trace(Path(name), 1000.0, 1005.0).rows) for name in sys.argv[1:]))
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.slow
def test_a_large_trace_takes_little_memory(tmp_path: Path) -> None:
    """When all rows were kept, the second file alone took 265 MB."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process's memory is read from /proc")
    with (tmp_path / "burst.csv").open("w") as csv, (tmp_path / "moon.jsonl").open("w") as lines:
        csv.write("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n")
        for n in range(500_000):
            csv.write(f"{n / 10},ChatGPT,{n % 900},{n % 400 + 1},1,Conversation log\n")
            lines.write(
                f'{{"timestamp": {100 * n}, "input_length": 2000, "output_length": 20,'
                f' "hash_ids": [0, {n}, {n + 1}, {n + 2}]}}\n'
            )
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "burst.csv", tmp_path / "moon.jsonl"],
        cwd=catalog.ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    rows, kilobytes = map(int, done.stdout.split())
    assert rows == 100 and kilobytes < 200_000


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n1,2\n", "has an unknown format: use a CSV file with the columns TIMESTAMP,"),
        ("a,b\n1,2\n", "(Bailian), or arrival_s,prompt_tokens,output_tokens (ours)"),
        (
            "timestamp,arrival_s,prompt_tokens,output_tokens,ContextTokens,GeneratedTokens\n",
            "has several formats at once: use a CSV file",
        ),
        (
            '{"timestamp": 1, "input_length": 5, "output_length": 5, "turn": 1}',
            "has Bailian's turn but not both chat_id and parent_chat_id, so the unit of its times"
            " is unknown: use",
        ),
        (
            '{"timestamp": 1, "input_length": 521, "output_length": 5, "hash_ids":'
            f" {[*range(33)]}}}",
            "line 1: 33 hash_ids are too many for 521 tokens in blocks of 512 tokens: use our",
        ),
        (
            '{"timestamp": 1, "input_length": 5, "output_length": 5, "hash_ids": ["a"]}',
            "line 1: hash_ids is not a list of whole numbers",
        ),
        (
            "Timestamp,Model,Request tokens,Response tokens\n1,a,5,0\n",
            "has only failed requests: choose another trace",
        ),
        (
            'arrival_s,prompt_tokens,output_tokens,x\n0,1,1,a\n1,1,1,"b\n2,1,1,c\n',
            "line 3: it is not a row of a CSV file: close each quote",
        ),
        (
            'arrival_s,prompt_tokens,output_tokens,x\n0,1,1,a\n1,1,1,"b\n2,1,1,"c"\n',
            "line 3: it is not a row of a CSV file: close each quote",
        ),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,1\n1,\0,1\n", "line 3: it has a NUL byte"),
        (AZURE.encode("utf-16"), "is not UTF-8 text: if it is compressed, unpack it"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS: fetch"),
        ("[1, 2]", "has an unknown format"),
        ("", "has an unknown format"),
        ("arrival_s,prompt_tokens,output_tokens\n", "has no requests"),
        (
            "arrival_s,prompt_tokens,output_tokens\n0,1,1\nsoon,1,1\n",
            "line 3: 'soon' is not a number",
        ),
        (
            "arrival_s,prompt_tokens,output_tokens\n0,1,1\nnan,1,1\n",
            "line 3: 'nan' is not a number",
        ),
        (
            "arrival_s,prompt_tokens,output_tokens\n0,-1,1\n",
            "line 2: '-1' is not a number of tokens",
        ),
        (
            "arrival_s,prompt_tokens,output_tokens\n0,1.5,1\n",
            "line 2: '1.5' is not a number of tokens",
        ),
        ("arrival_s,prompt_tokens,output_tokens\n0,1\n", "line 2: '' is not a number"),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n",
            "line 2: 'yesterday' is not a time",
        ),
        (
            "ContextTokens,GeneratedTokens,TIMESTAMP\n1,1,2023-11-16 18:17:03\n1\n",
            "line 3: '' is not a time",
        ),
        (
            f"arrival_s,prompt_tokens,output_tokens\n{'1' * 200_000},1,1\n",
            "... (200,002 characters) is not a number",
        ),
        ('{"timestamp": 0, "input_length": 5}\n', "has an unknown format"),
        (
            '{"timestamp": 0, "input_length": 5, "output_length": 5}\n'
            '{"timestamp": 0, "input_length": 5}\n',
            "line 2: the key 'output_length' is missing: each line of a trace in Mooncake's format",
        ),
        (
            '{"timestamp": 0, "input_length": 5, "output_length": 5}\nhalf a li',
            "line 2: it is not a JSON object",
        ),
        ('{"timestamp": 0, "input_length": [], "output_length": 5}\n', "line 1: [] is not a"),
        (b"\x1f\x8b\x08\x00\xff\xfe", "is not UTF-8 text: if it is compressed"),
    ],
)
def test_an_error_names_file_and_line(tmp_path: Path, text: str | bytes, sentence: str) -> None:
    with pytest.raises(TraceError, match=r"trace\.txt") as refused:
        read_trace(written(tmp_path, text))
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_a_quote_that_opens_far_from_the_end_is_not_searched_in_all_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_blocks, "READ_BYTES", 100)
    monkeypatch.setattr(record_blocks, "LONGEST_BYTES", 1 << 20)
    row = "1,1,1,x\n"
    text = f'arrival_s,prompt_tokens,output_tokens,x\n{row}2,1,1,"x\n{row * 200_000}'
    with pytest.raises(TraceError, match="line 3: it opens a quote that is not closed within 1 MB"):
        read_trace(written(tmp_path, text))


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """It can be read only once."""
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(TraceError, match=r"pipe\.csv is not a regular file: save the trace to one"):
        read_trace(tmp_path / "pipe.csv")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.csv cannot be read: No such file"):
        read_trace(tmp_path / "none.csv")
