"""Bad input gives one sentence with the remedy and exit code 2, before anything is started or
written.
"""

import socket
from pathlib import Path

import pytest

from tests.helpers.campaign_process import QUICK, Bench


def dead_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


BAD = [
    (
        ("--servers", "flask_gunicron"),
        "there is no server 'flask_gunicron'; did you mean 'flask_gunicorn'?",
    ),
    (("--servers", ","), "nothing to do: name at least one server and one scenario"),
    (("--engines", "simulate"), "there is no engine 'simulate'; did you mean 'simulated'?"),
    (("--scenarios", "quik"), "there is no scenario 'quik'; did you mean 'quick'?"),
    (
        ("--servers", "flask_gunicorn", "--engines", "vllm"),
        "flask_gunicorn runs on none of the engines vllm",
    ),
    (("--scenarios-file", "none.toml"), "none.toml cannot be read: No such file or directory"),
    (("--model", "/no/such/model"), "the model '/no/such/model' does not exist"),
    (("--model", "empty"), "empty is not a model folder: it has no config.json"),
    (("--users", "0"), "argument --users: '0' is not a whole number of users above 0"),
    (("--users", "4,x"), "argument --users: '4,x' is not a whole number of users above 0"),
    (("--rate", "-1"), "argument --rate: '-1' is not a rate above 0"),
    (("--rate", "2"), "--rate is for open-loop scenarios, and none is chosen"),
    (("--duration", "nan"), "argument --duration: 'nan' is not a number of seconds above 0"),
    (("--max-errors", "5"), "argument --max-errors: '5': give a share of the requests, such as 5%"),
    (("--duration", "1,2"), "argument --duration: '1,2': give one value"),
    (("--simulated", "step=1"), "argument --simulated: 'step' is not one of prefill_ms"),
    (("--simulated", "early_chunk=2"), "'early_chunk=2': must be from 0 to 1"),
    (("--simulated", "reasoning_share=nan"), "'reasoning_share=nan': must be from 0 to 1"),
    (
        ("--simulated", "tokens_per_chunk=1.5"),
        "'tokens_per_chunk=1.5': '1.5' is not a whole number",
    ),
    (
        ("--serverz", "flask_gunicorn"),
        "unrecognized arguments: --serverz flask_gunicorn (see --help)",
    ),
    (
        ("--out", "mine.toml/below"),
        "mine.toml/below/cases: Not a directory: choose a writable folder",
    ),
    (("--out", "mine.toml"), "mine.toml: Not a directory: choose a writable folder"),
    (("--out", "/dev/full"), "/dev/full: Not a directory: choose a writable folder"),
    (("--out", "/proc/serveoff"), ": No such file or directory: choose a writable folder"),
    (("--out", "."), ". is not empty and has no campaign: choose another --out"),
    (("--out", "no_json"), "no_json/campaign.json is not JSON"),
    (
        ("--find-capacity", "--slo", "ttft=fast"),
        "cannot read the SLO 'ttft=fast': write it as ttft_p99=500ms",
    ),
    (
        ("--find-capacity", "--users", "1,2"),
        "--users has several values, but --find-capacity chooses the loads itself: give at most",
    ),
    (("--find-capacity", "--repeat", "2"), "--repeat cannot be used with --find-capacity"),
    (("--target", "not a url"), "--target: 'not a url' is not a URL: use one such as"),
    (("--target", ""), "--target: '' is not a URL: use one such as"),
    (
        ("--target", "http://127.0.0.1:1", "--servers", "tornado"),
        "--target measures a server that already runs, and --servers chooses one to start",
    ),
]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("none", None, "none cannot be read"),
        ("empty", "", "must contain the key on one line"),
        ("two", "a\nb", "must contain the key on one line"),
    ],
)
def test_a_key_file_without_a_key(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    text: str | None,
    sentence: str,
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    monkeypatch.setitem(bench.environment, "SERVEOFF_API_KEY_FILE", str(tmp_path / name))
    bench.refuses(sentence, "--servers", "flask_gunicorn", *QUICK, "--out", "not_to_be")


def test_a_user_without_a_home(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.environment, "HOME", "~")
    bench.refuses(
        "set HOME to a writable folder", "--servers", "flask_gunicorn", *QUICK, "--out", "not_to_be"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD]
)
def test_bad_input_is_one_sentence(bench: Bench, arguments: tuple[str, ...], sentence: str) -> None:
    for name, text in (("no_json/campaign.json", "{"), ("empty/hello", "")):
        (bench.folder / name).parent.mkdir(exist_ok=True)
        (bench.folder / name).write_text(text)
    out = () if "--out" in arguments else ("--out", "not_to_be")
    bench.refuses(sentence, *QUICK, *arguments, *out)


def test_a_target_without_a_server(bench: Bench) -> None:
    """As a process."""
    url = f"http://127.0.0.1:{dead_port()}"
    bench.check_refusal(
        bench.run(*QUICK, "--target", url, "--out", "not_to_be"),
        f"GET {url}/v1/models: no server listens there: start it, or use the URL of a running one",
    )
