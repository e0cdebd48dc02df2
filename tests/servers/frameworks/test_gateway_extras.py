"""Features of single gateways: rate limits, allowed origins, /generate."""

import subprocess

import httpx
import pytest

from servers.contract import api, oracle
from servers.runtime import catalog
from servers.runtime.errors import LaunchError
from tests.helpers.started_gateway import PATIENCE_S, Start, complete, each_of_fastapi, error_of
from tests.helpers.started_server import MODEL, wanted


@each_of_fastapi
def test_beyond_the_rate_limit_there_is_a_429_with_retry_after(
    name: str, gateway: Start, behind: str
) -> None:
    url = gateway(name, behind, RATE_LIMIT="3/hour").base_url
    assert [complete(url).status_code for _ in range(3)] == [200, 200, 200]
    for path, body in ((api.COMPLETIONS, wanted()), ("/generate", {"prompt": "baba"})):
        refused = httpx.post(url + path, json=body)
        assert (
            error_of(refused, 429)["type"] == "rate_limit_error"
            and 3000 < int(refused.headers["Retry-After"]) <= 3600
        )
    assert (
        httpx.get(f"{url}/v1/models").status_code == httpx.get(f"{url}/health").status_code == 200
    )


@each_of_fastapi
def test_a_client_cannot_evade_the_limit_with_a_header(
    name: str, gateway: Start, behind: str
) -> None:
    url = gateway(name, behind, RATE_LIMIT="2/hour").base_url
    statuses = [
        httpx.post(
            url + api.COMPLETIONS, json=wanted(), headers={header: f"10.0.0.{number}"}
        ).status_code
        for number, header in enumerate(
            ("X-Forwarded-For", "X-Real-IP", "Forwarded", "X-Forwarded-For")
        )
    ]
    assert statuses == [200, 200, 429, 429]


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
def test_an_invalid_rate_limit_prevents_the_start(name: str, gateway: Start, behind: str) -> None:
    with pytest.raises(LaunchError, match="couldn't parse rate limit string 'often'"):
        gateway(name, behind, RATE_LIMIT="often")


@each_of_fastapi
def test_only_pages_of_an_allowed_origin_may_read_responses(
    name: str, gateway: Start, behind: str
) -> None:
    allowed = "https://a.example"
    url = gateway(
        name, behind, CORS_ORIGINS=f"{allowed},https://b.example", API_KEY="s3cret"
    ).base_url
    for origin, headers in ((allowed, [allowed]), ("https://c.example", [])):
        preflight = httpx.options(
            url + api.COMPLETIONS,
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type",
            },
        )
        # without the key: browsers do not send it with a preflight request
        assert preflight.status_code == (200 if headers else 400)
        response = httpx.post(
            url + api.COMPLETIONS,
            json=wanted(),
            headers={"Origin": origin, "Authorization": "Bearer s3cret"},
        )
        assert response.status_code == 200
        assert preflight.headers.get_list("Access-Control-Allow-Origin") == headers
        assert response.headers.get_list("Access-Control-Allow-Origin") == headers


@each_of_fastapi
def test_without_an_allow_list_no_page_may(name: str, gateway: Start, behind: str) -> None:
    url = gateway(name, behind).base_url
    response = httpx.post(
        url + api.COMPLETIONS, json=wanted(), headers={"Origin": "https://a.example"}
    )
    assert response.status_code == 200
    assert "Access-Control-Allow-Origin" not in response.headers


@each_of_fastapi
def test_generate_takes_a_prompt_and_returns_a_text(name: str, gateway: Start, behind: str) -> None:
    url = gateway(name, behind).base_url
    response = httpx.post(f"{url}/generate", json={"prompt": "bebe baba", "max_tokens": 5})
    assert response.status_code == 200
    assert response.json() == {"text": oracle.continuation("baba", 5)}
    assert httpx.post(
        f"{url}/generate", json={"prompt": "baba", "model": MODEL, "stream": True}
    ).json().keys() == {"text"}
    assert error_of(httpx.post(f"{url}/generate", json={"max_tokens": 5}), 400)["param"] == "prompt"
    assert (
        error_of(httpx.post(f"{url}/generate", json={"prompt": "baba", "model": "nowhere"}), 404)[
            "param"
        ]
        == "model"
    )
