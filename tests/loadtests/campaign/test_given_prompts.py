"""A campaign with the user's prompts."""

import json
from pathlib import Path
from typing import Any

from loadtests.campaign.case_run import context_of
from servers.runtime.models import Model
from tests.helpers.campaign_process import Bench, is_complete, runs, table
from tests.helpers.endpoint_campaign import SCENARIOS
from tests.helpers.endpoint_script import Endpoint, Script, serve_script

CONVERSATIONS: list[dict[str, Any]] = [
    {
        "conversations": [
            {"from": "human", "value": f"question {n}"},
            {"from": "gpt", "value": f"response {n}"},
            {"from": "human", "value": f"another question {n}"},
            {"from": "gpt", "value": "the end"},
        ]
    }
    for n in range(400)
]


def messages_of(endpoint: Endpoint) -> list[list[str]]:
    return [[each["content"] for each in served.body["messages"]] for served in endpoint.load()]


def test_two_targets_get_the_same_prompts_in_the_same_order(bench: Bench, tmp_path: Path) -> None:
    (bench.folder / "endpoints.toml").write_text(SCENARIOS)
    (bench.folder / "chats.json").write_text(json.dumps(CONVERSATIONS))
    with (
        serve_script(tmp_path / "fast", Script(first_s=0.02, step_s=0.001)) as fast,
        serve_script(tmp_path / "slow", Script(first_s=0.1, step_s=0.001)) as slow,
    ):
        done = bench.run(
            *("--scenarios-file", "endpoints.toml", "--scenarios", "chats", "--duration", "1"),
            *("--target", f"fast={fast.url}", "--target", f"slow={slow.url}", "--users", "1"),
            *("--prompts", "chats.json", "--report", "page", "--out", "out"),
        )
        assert is_complete(done.returncode, done.stdout + done.stderr), done.stderr
        quick, rest = messages_of(fast), messages_of(slow)
    assert 4 < len(rest) < len(quick) and rest == quick[: len(rest)]
    for first, second in zip(quick[::2], quick[1::2], strict=False):
        number = first[0].split()[1]
        assert second == [*first, f"response {number}", f"another question {number}"]
    firsts = [texts[0] for texts in quick[::2]]
    assert len(set(firsts)) == len(firsts) and firsts != sorted(firsts)
    out = bench.folder / "out"
    described = json.loads((out / "campaign.json").read_text())["prompts"]
    assert (described["file"], described["requests"]) == ("chats.json", 800)
    assert "another question" not in (out / "campaign.json").read_text()
    for folder, _ in runs(out):
        rows = table(folder, "requests")
        assert {row["prompt_tokens_asked"] for row in rows} == {None}
        assert not (folder / "load_inputs.json").exists()
    assert "chats.json: 400 with 800 requests" in (out / "report.md").read_text()


def test_the_context_of_a_model_comes_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 8192}')
    assert context_of(Model("m", str(tmp_path), planted=False)) == 8192
    assert context_of(Model("m", "org/name", planted=False)) is None
    assert context_of(Model("serveoff-tiny", "", planted=True)) == 4096
