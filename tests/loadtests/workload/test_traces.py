"""Traces in other projects' formats are read; an error names file, line and remedy."""

from pathlib import Path

import pytest

from loadtests.workload.traces import TraceError, TraceRow, read_trace


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
    ],
)
def test_all_formats_give_the_same_rows(tmp_path: Path, text: str) -> None:
    first, second = read_trace(written(tmp_path, text))
    assert first == TraceRow(0.0, 374, 44)
    assert (second.prompt_tokens, second.output_tokens) == (396, 109)
    assert second.at_s == pytest.approx(4.314579, abs=2e-6)


def test_mooncakes_shared_prefixes_are_kept(tmp_path: Path) -> None:
    text = '{"timestamp": 0, "input_length": 1030, "output_length": 0, "hash_ids": [46, 47, 48]}'
    assert read_trace(written(tmp_path, text)) == (TraceRow(0.0, 1030, 1, (46, 47, 48)),)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n1,2\n", "has an unknown format"),
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
            '{"timestamp": 0, "input_length": 5}\n',
            "line 1: the key 'output_length' is missing: each line of a Mooncake trace needs",
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
    assert sentence in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.csv cannot be read: No such file"):
        read_trace(tmp_path / "none.csv")
