"""A model whose context does not fit vLLM's memory starts with a shorter one, which it enforces."""

import json
import shutil
from pathlib import Path

import httpx
import pytest

from servers.runtime import launch, models
from servers.runtime.models import Model
from tests.helpers.started_server import SERVERS, SHARE

pytestmark = [pytest.mark.slow, pytest.mark.requires("vllm")]


@pytest.mark.parametrize("name", ["fastapi_vllm", "vllm_openai"])
def test_a_long_context_is_fitted_to_the_memory(name: str, tmp_path: Path) -> None:
    tiny = models.resolve_model("tiny", needs_weights=True)
    folder = tmp_path / "long"
    shutil.copytree(tiny.path, folder)
    positions = 4_000_000  # 6 GB of keys and values; vLLM has 1 GiB for them on a CPU
    for file, key in (
        ("config.json", "max_position_embeddings"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        table = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(table | {key: positions}))
    model = Model("long", str(folder), False)
    share = launch.CoreShare((), SHARE["threads"])
    with launch.run_server(SERVERS[name], "vllm", model, share, tmp_path / "log") as running:

        def status(max_tokens: int) -> int:
            body = {"model": "long", "prompt": "baba", "max_tokens": max_tokens}
            url = f"{running.base_url}/v1/completions"
            return httpx.post(url, json=body, timeout=60).status_code

        assert (status(4), status(positions // 2)) == (200, 400)
