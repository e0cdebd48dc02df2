"""Features of single gateways: rate limits, allowed origins, /generate."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from servers.contract import api, oracle
from servers.runtime import catalog
from servers.runtime.errors import LaunchError
from tests.helpers.scripted_upstream import serve_upstream
from tests.helpers.started_gateway import (
    AUTHORIZED,
    GATEWAYS,
    KEY,
    PATIENCE_S,
    error_of,
    run_gateway,
)
from tests.helpers.started_server import MODEL, wanted

FASTAPI = [name for name in GATEWAYS if name.startswith("fastapi")]
each_of_fastapi = pytest.mark.parametrize("name", FASTAPI)


@pytest.fixture(scope="module")
def behind() -> Iterator[str]:
    with serve_upstream() as upstream:
        yield upstream.url


@pytest.fixture(scope="module", params=FASTAPI)
def plain(
    request: pytest.FixtureRequest, behind: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A gateway without settings."""
    folder = tmp_path_factory.mktemp(request.param)
    with run_gateway(request.param, folder, behind) as running:
        yield running.base_url


@each_of_fastapi
def test_beyond_the_rate_limit_there_is_a_429_that_no_header_evades(
    name: str, behind: str, tmp_path: Path
) -> None:
    with run_gateway(name, tmp_path, behind, RATE_LIMIT="4/hour") as running:
        url = running.base_url
        statuses = [
            httpx.post(
                url + api.COMPLETIONS, json=wanted(), headers={header: f"10.0.0.{number}"}
            ).status_code
            for number, header in enumerate(
                ("X-Forwarded-For", "X-Real-IP", "Forwarded", "A", "X-Forwarded-For")
            )
        ]
        assert statuses == [200, 200, 200, 200, 429]
        for path, body in ((api.COMPLETIONS, wanted()), ("/generate", {"prompt": "baba"})):
            refused = httpx.post(url + path, json=body)
            assert (
                error_of(refused, 429)["type"] == "rate_limit_error"
                and 3000 < int(refused.headers["Retry-After"]) <= 3600
            )
        for path in ("/v1/models", "/health"):
            assert httpx.get(url + path).status_code == 200


@pytest.mark.requires("node")
def test_node_also_refuses_an_invalid_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python servers read servers/runtime/limits.py."""
    monkeypatch.setenv("SERVEOFF_MAX_IN_FLIGHT", "many")
    command = [
        part.format(host="127.0.0.1", port=0)
        for part in catalog.find_server("node_gateway").command
    ]
    done = subprocess.run(
        command, cwd=catalog.ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stderr) == (
        2,
        "error: SERVEOFF_MAX_IN_FLIGHT is 'many': set it to a number above 0, or unset it\n",
    )


@each_of_fastapi
def test_an_invalid_rate_limit_prevents_the_start(name: str, behind: str, tmp_path: Path) -> None:
    with (
        pytest.raises(LaunchError, match="couldn't parse rate limit string 'often'"),
        run_gateway(name, tmp_path, behind, RATE_LIMIT="often"),
    ):
        pass


@each_of_fastapi
def test_only_pages_of_an_allowed_origin_may_read_responses(
    name: str, behind: str, tmp_path: Path
) -> None:
    allowed = "https://a.example"
    origins = f"{allowed},https://b.example"
    with run_gateway(name, tmp_path, behind, CORS_ORIGINS=origins, API_KEY=KEY) as running:
        for origin, headers in ((allowed, [allowed]), ("https://c.example", [])):
            preflight = httpx.options(
                running.base_url + api.COMPLETIONS,
                headers={
                    "Origin": origin,
                    "Access-Control-Request-Method": "POST",
                    "Access-Control-Request-Headers": "authorization,content-type",
                },
            )
            # without the key: browsers do not send it with a preflight request
            assert preflight.status_code == (200 if headers else 400)
            response = httpx.post(
                running.base_url + api.COMPLETIONS,
                json=wanted(),
                headers=AUTHORIZED | {"Origin": origin},
            )
            assert response.status_code == 200
            assert preflight.headers.get_list("Access-Control-Allow-Origin") == headers
            assert response.headers.get_list("Access-Control-Allow-Origin") == headers


def test_without_an_allow_list_no_page_may(plain: str) -> None:
    response = httpx.post(
        plain + api.COMPLETIONS, json=wanted(), headers={"Origin": "https://a.example"}
    )
    assert response.status_code == 200
    assert "Access-Control-Allow-Origin" not in response.headers


def test_generate_takes_a_prompt_and_returns_a_text(plain: str) -> None:
    response = httpx.post(f"{plain}/generate", json={"prompt": "bebe baba", "max_tokens": 5})
    assert response.status_code == 200
    assert response.json() == {"text": oracle.continuation("baba", 5)}
    assert httpx.post(
        f"{plain}/generate", json={"prompt": "baba", "model": MODEL, "stream": True}
    ).json().keys() == {"text"}
    assert (
        error_of(httpx.post(f"{plain}/generate", json={"max_tokens": 5}), 400)["param"] == "prompt"
    )
    assert (
        error_of(httpx.post(f"{plain}/generate", json={"prompt": "baba", "model": "nowhere"}), 404)[
            "param"
        ]
        == "model"
    )
