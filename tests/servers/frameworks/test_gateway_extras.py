"""What single gateways have besides: rate limits, allowed origins, /generate."""

import subprocess

import httpx
import pytest

from servers.contract import api, oracle
from servers.runtime import catalog
from servers.runtime.errors import LaunchError
from tests.helpers.started_gateway import PATIENCE_S, Start, complete, each_of_fastapi, error_of
from tests.helpers.started_server import MODEL, wanted


@each_of_fastapi
def test_beyond_the_rate_limit_is_a_429_that_says_when_to_come_again(
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
def test_nobody_is_a_new_client_by_saying_so(name: str, gateway: Start, behind: str) -> None:
    url = gateway(name, behind, RATE_LIMIT="2/hour").base_url
    said = [
        httpx.post(
            url + api.COMPLETIONS, json=wanted(), headers={header: f"10.0.0.{number}"}
        ).status_code
        for number, header in enumerate(
            ("X-Forwarded-For", "X-Real-IP", "Forwarded", "X-Forwarded-For")
        )
    ]
    assert said == [200, 200, 429, 429]


@pytest.mark.requires("node")
def test_node_knows_a_bound_that_is_none_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in Python read servers/runtime/limits.py, as the harness does."""
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
        "error: SERVEOFF_MAX_IN_FLIGHT is 'many': set it to a number above 0, or not at all\n",
    )


@each_of_fastapi
def test_a_rate_limit_that_cannot_be_read_is_no_start_without_one(
    name: str, gateway: Start, behind: str
) -> None:
    with pytest.raises(LaunchError, match="couldn't parse rate limit string 'often'"):
        gateway(name, behind, RATE_LIMIT="often")


@each_of_fastapi
def test_only_pages_of_an_allowed_origin_may_read_answers(
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
        # without the key, which browsers do not send with it
        assert preflight.status_code == (200 if headers else 400)
        answer = httpx.post(
            url + api.COMPLETIONS,
            json=wanted(),
            headers={"Origin": origin, "Authorization": "Bearer s3cret"},
        )
        assert answer.status_code == 200
        assert preflight.headers.get_list("Access-Control-Allow-Origin") == headers
        assert answer.headers.get_list("Access-Control-Allow-Origin") == headers


@each_of_fastapi
def test_without_an_allow_list_no_page_may(name: str, gateway: Start, behind: str) -> None:
    url = gateway(name, behind).base_url
    answer = httpx.post(
        url + api.COMPLETIONS, json=wanted(), headers={"Origin": "https://a.example"}
    )
    assert answer.status_code == 200 and "Access-Control-Allow-Origin" not in answer.headers


@each_of_fastapi
def test_generate_takes_a_prompt_and_gives_a_text(name: str, gateway: Start, behind: str) -> None:
    url = gateway(name, behind).base_url
    answer = httpx.post(f"{url}/generate", json={"prompt": "bebe baba", "max_tokens": 5})
    assert (answer.status_code, answer.json()) == (200, {"text": oracle.continuation("baba", 5)})
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
