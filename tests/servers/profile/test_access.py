"""Headers, TLS and proxies of an endpoint, and that no secret is repeated."""

import json
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pytest

from servers.contract.chunks import shorten
from servers.profile import access, profiler
from servers.profile.access import Access, AccessError, make_access
from servers.profile.client import ProfileError, open_connection, send
from servers.profile.endpoint import split_url
from servers.profile.redaction import hide_in_json
from tests.helpers.endpoint_script import Failure, Script, serve_script

KEY = "sk-east-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVEOFF_API_KEY", raising=False)
    monkeypatch.setenv("GATEWAY_KEY", KEY)


def test_a_header_replaces_the_clients_own_of_that_name() -> None:
    found = make_access(["content-type: application/json; charset=utf-8", "X-Org: research"])
    assert found.merge_headers({"Content-Type": "application/json", "Host": "a"}) == {
        "Host": "a",
        "content-type": "application/json; charset=utf-8",
        "X-Org": "research",
    }


def test_the_key_is_a_bearer_token_unless_the_user_names_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SERVEOFF_API_KEY", "from-environment")
    assert make_access().headers == (("Authorization", "Bearer from-environment"),)
    basic = ("Authorization", "Basic bWU6cC93")
    assert make_access(url="http://me:p%2Fw@host/v1").headers == (basic,)
    assert make_access(["authorization: Token x"], url="http://me:p@h").headers == (
        ("authorization", "Token x"),
    )


def test_a_secret_is_hidden_wherever_it_stands() -> None:
    given = make_access(
        ["api-key: ${GATEWAY_KEY}", "Authorization: Bearer t0p-secret", "X-Org: research"],
        url="http://me:hunter22@host/v1?sig=abcdef0123&api-version=2024-06-01",
    )
    hidden = given.hide_secrets(f"{KEY} t0p-secret hunter22 abcdef0123 research 2024-06-01")
    assert hidden == "*** *** *** *** research 2024-06-01"


def test_it_survives_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    east = make_access(["api-key: ${GATEWAY_KEY}"], insecure=True, proxy="http://proxy:3128")
    passed = access.access_environment({"": Access(), "east": east})
    monkeypatch.setenv(*next(iter(passed.items())))
    assert access.read_access("east") == east and access.read_access("west") == Access()


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        (["no colon"], "--header no colon: give NAME: VALUE"),
        (["two words: x"], "give NAME: VALUE"),
        (["Content-Length: 3"], "Serveoff sets this header itself: leave it out"),
        (["api-key: ${NO_SUCH_KEY}"], "the environment variable NO_SUCH_KEY is not set: set it"),
        (["x: a\r\nEvil: b"], "must be printable ASCII text on one line"),
    ],
)
def test_an_unusable_header_is_one_sentence(headers: list[str], words: str) -> None:
    with pytest.raises(AccessError, match=r"^--header ") as refused:
        make_access(headers)
    assert words in str(refused.value)


def test_an_unusable_file_or_proxy_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "not.pem").write_text("no certificate")
    with pytest.raises(AccessError, match="it holds no PEM certificate"):
        make_access(ca_file=str(tmp_path / "not.pem"))
    with pytest.raises(AccessError, match=r"missing\.pem: No such file or directory"):
        make_access(ca_file=str(tmp_path / "missing.pem"))
    with pytest.raises(AccessError, match="give the URL of an HTTP proxy"):
        make_access(proxy="socks5://proxy:1080")


def test_a_gateways_key_has_its_own_header(tmp_path: Path) -> None:
    """The profile, as the load, sends the header and the query to every path."""
    script = Script(
        header=f"api-key: {KEY}",
        root="/openai/deployments/m",
        models=None,
        query="api-version=2024-06-01",
    )
    with serve_script(tmp_path, script) as endpoint:
        url = f"{endpoint.url}/openai/deployments/m?api-version=2024-06-01"
        found = profiler.profile_endpoint(
            url, access=make_access(["api-key: ${GATEWAY_KEY}"]), model="m", extra={"top_p": 0.5}
        )
        with pytest.raises(ProfileError, match=r"http 401: .*--header 'api-key"):
            profiler.profile_endpoint(url, model="m")
        asked = endpoint.completions()
    assert found.dialect.query == "api-version=2024-06-01" and found.dialect.extra == {"top_p": 0.5}
    assert {each.body["top_p"] for each in asked if each.status == 200} == {0.5}
    assert all("authorization" not in each.headers for each in asked)


def test_the_servers_words_do_not_repeat_the_key(tmp_path: Path) -> None:
    words = f"Incorrect API key provided: {KEY}."
    with serve_script(tmp_path, Script(failure=Failure(400, words))) as endpoint:
        url = endpoint.url.replace("http://", f"http://me:{KEY}@")
        with pytest.raises(ProfileError) as refused:
            profiler.profile_endpoint(url, access=make_access(url=url), model="m")
        asked = endpoint.requests()
    assert KEY not in str(refused.value) and "Incorrect API key provided: ***" in str(refused.value)
    assert all(each.headers["host"] == endpoint.url.removeprefix("http://") for each in asked)
    assert all(each.headers["authorization"].startswith("Basic ") for each in asked)


def test_a_url_with_a_user_is_split_without_it() -> None:
    assert split_url("https://me:pw@[::1]:8443/v1?version=2") == (
        "https://[::1]:8443",
        "/v1",
        "version=2",
    )


def test_proxies_of_the_environment_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with serve_script(tmp_path, Script()) as endpoint:
        assert json.loads(send("GET", f"{endpoint.url}/v1/models").body)["data"]
        with pytest.raises(ProfileError, match=r"no proxy listens at 127\.0\.0\.1:1: check"):
            send("GET", endpoint.url, access=make_access(proxy="http://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("http://me:${PASSWORD}@host/v1", "p@s/s#w:rd%"),
        ("http://host/v1?key=${PASSWORD}&x=1", "p@s/s#w&rd%"),
        ("http://host/v1?key=already%2Fencoded", "already/encoded"),
    ],
)
def test_a_value_with_a_urls_own_characters_arrives_whole(
    monkeypatch: pytest.MonkeyPatch, url: str, secret: str
) -> None:
    monkeypatch.setenv("PASSWORD", secret)
    whole, _ = access.expand_url("--target", url)
    parts = urlsplit(whole)
    assert parts.hostname == "host" and parts.path == "/v1"
    sent = unquote(parts.password or "") or dict(parse_qsl(parts.query))["key"]
    assert sent == secret
    given = make_access(url=whole)
    for form in (secret, quote(secret), quote(secret, safe=""), json.dumps(secret)):
        assert secret not in (hidden := given.hide_secrets(f"http 401: {form}")), hidden
        assert quote(secret, safe="") not in hidden


def test_a_key_in_a_path_is_a_secret_if_its_variable_is_named_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEPLOYMENT", "llama-70b")
    whole, secrets = access.expand_url("--target", "https://host/${GATEWAY_KEY}/${DEPLOYMENT}")
    assert (whole, secrets) == (f"https://host/{KEY}/llama-70b", [KEY])


def test_a_short_secret_is_hidden_where_its_name_stands() -> None:
    given = make_access(url="http://host/v1?key=abc&v=2&sig=x")
    shown = "redirected to 'http://other/v1?key=***&v=2&sig=***'"
    assert given.hide_secrets("redirected to 'http://other/v1?key=abc&v=2&sig=x'") == shown
    assert hide_in_json({"query": "key=abc&v=2"}, given.secrets) == {"query": "key=***&v=2"}
    assert given.hide_secrets("?max_tokens=5") == "?max_tokens=5"


def test_a_secret_of_digits_leaves_numbers_alone() -> None:
    secrets = make_access(["x-token: 00000000"]).secrets
    assert hide_in_json({"s": 0.1000000001, "why": "00000000"}, secrets) == {
        "s": 0.1000000001,
        "why": "***",
    }


def test_the_part_of_a_secret_that_a_message_keeps_is_hidden() -> None:
    given = make_access(["api-key: north-0123456789"])
    words = shorten("x" * 188 + " north-0123456789 is wrong")
    assert words.endswith(" north-01...") and given.hide_secrets(words).endswith(" ***...")


def test_a_variable_within_a_header_and_the_parts_of_a_cookie_are_secrets() -> None:
    given = make_access(["x-id: me/${GATEWAY_KEY}/x", "Cookie: session=abcdefgh; theme=dark"])
    assert given.hide_secrets(f"{KEY} abcdefgh dark") == "*** *** dark"


def test_the_key_may_end_with_a_line_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVEOFF_API_KEY", "sk-1234\n")
    assert make_access().headers == (("Authorization", "Bearer sk-1234"),)
    monkeypatch.setenv("SERVEOFF_API_KEY", "sk-1234\nHost: evil")
    with pytest.raises(AccessError, match="must be printable ASCII text on one line"):
        make_access()


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("http://proxy:abc", "--proxy http://proxy:abc: give"),
        ("http://[::1", "--proxy: give the URL"),
        ("socks5://me:hunter22@proxy:1", "--proxy socks5://proxy:1: give"),
    ],
)
def test_an_unusable_proxy_is_one_sentence_without_its_password(proxy: str, words: str) -> None:
    with pytest.raises(AccessError) as refused:
        make_access(proxy=proxy)
    assert words in str(refused.value) and "hunter22" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://[::1", "IPv6 address without its brackets"),
        ("http://a:0/v1", "has no valid port"),
        ("http://me:p/ss@host/v1", r"write it as %2F"),
    ],
)
def test_an_unusable_url_is_one_sentence(url: str, words: str) -> None:
    with pytest.raises((ProfileError, AccessError), match=words) as refused:
        split_url(url)
    assert "p/ss" not in str(refused.value)


def test_a_url_may_have_characters_of_any_language(tmp_path: Path) -> None:
    assert split_url("http://bücher.example/v1")[0] == "http://xn--bcher-kva.example"
    script = Script(root="/my%20m%C3%B6del/v1", query="name=m%C3%B6del")
    with serve_script(tmp_path, script) as endpoint:
        found = profiler.profile_endpoint(f"{endpoint.url}/my mödel/v1?name=mödel")
    assert found.base_url.endswith("/my%20m%C3%B6del") and found.model == "m"


@pytest.mark.parametrize(("url", "port"), [("http://[::1]/v1", 80), ("https://[::1]/v1", 443)])
def test_an_ipv6_address_needs_no_port(url: str, port: int) -> None:
    connection, _ = open_connection(url, Access(), 1.0)
    assert (connection.host, connection.port) == ("::1", port)


def test_a_redirect_does_not_repeat_a_key_and_a_refused_key_is_named(tmp_path: Path) -> None:
    script = Script(redirect="https://other.example", query="key=abc")
    with serve_script(tmp_path, script) as endpoint, pytest.raises(ProfileError) as refused:
        profiler.profile_endpoint(f"{endpoint.url}/v1?key=abc")
    assert "redirected to 'https://other.example/v1/models?key=***'" in str(refused.value)
    with (
        serve_script(tmp_path, Script(header="x-api-key: 12")) as endpoint,
        pytest.raises(ProfileError, match=r"http 401: .*: check the value of X-Api-Key, which"),
    ):
        profiler.profile_endpoint(f"{endpoint.url}//v1//", access=make_access(["X-Api-Key: 13"]))
    assert split_url("http://host//v1//") == ("http://host", "/v1", "")
