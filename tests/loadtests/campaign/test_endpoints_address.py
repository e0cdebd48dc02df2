"""An endpoint's address, its models, and its conditions for a response."""

from pathlib import Path
from typing import Any

import pytest

from loadtests.campaign.targets import target_of_url
from loadtests.errors import UsageError
from tests.helpers.campaign_process import Bench
from tests.helpers.endpoint_campaign import CALM, Measured, check_refused, measure_script
from tests.helpers.endpoint_load import measure_endpoint, measure_load, measure_valid_load
from tests.helpers.endpoint_script import CHAT, Script, serve_script

slow = pytest.mark.slow

# name: the script, what is appended to the URL, and the model
AT: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "v1": ({}, "/v1", None),
    "v1 and a slash": ({}, "/v1/", None),
    "a slash": ({}, "/", None),
    "prefix": ({"root": "/ns/model/v1"}, "/ns/model", None),
    "prefix and v1": ({"root": "/ns/model/v1"}, "/ns/model/v1", None),
    "another version": ({"root": "/api/v3"}, "/api/v3", None),
    "v1 below openai": ({"root": "/openai/v1"}, "/openai/v1", None),
    "no version": ({"root": ""}, "", None),
    "prefix without version": ({"root": "/serve/m"}, "/serve/m", None),
    "deployment": (
        {"root": "/openai/deployments/m", "models": None, "query": "api-version=2024-06-01"},
        "/openai/deployments/m?api-version=2024-06-01",
        "m",
    ),
    "query below v1": ({"query": "region=eu"}, "/v1?region=eu&other=1", None),
    "no list of models": ({"models": None}, "", "m"),
    "no list of models below v1": ({"models": None}, "/v1", "org/m:8b"),
    "a list that needs a key": ({"models_refused": (401, "no key")}, "", "m"),
    "one of several": ({"models": ("embed-small", "qwen3:8b")}, "", "qwen3:8b"),
}


QUICK = ("v1", "prefix", "a list that needs a key")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else slow) for name in AT]
)
def test_it_is_measured_where_it_is(tmp_path: Path, name: str) -> None:
    script, path, model = AT[name]
    measured = measure_valid_load(tmp_path, Script(**CALM | script), path=path, model=model)
    check_place(measured, name)


def check_place(measured: Measured, name: str) -> None:
    """The load went to the address that the profile had found."""
    script, path, model = AT[name]
    root = script.get("root", "/v1")
    load = measured.endpoint.load()
    asked = path.partition("?")[2]
    assert {each.path for each in load} == {f"{root}{CHAT}" + (f"?{asked}" if asked else "")}
    assert {each.status for each in load} == {200}
    profile = measured.profile
    assert f"{profile['base_url']}{profile['dialect']['root']}".endswith(root), profile
    assert profile["dialect"]["query"] == asked
    assert profile["model"] == (model or "m")
    assert {each.body["model"] for each in load} == {model or "m"}
    listed = script.get("models", ("m",)) if "models_refused" not in script else ()
    assert profile["models"] == list(listed or ())


@slow
def test_metrics_are_read_beside_the_prefix(tmp_path: Path) -> None:
    """A gateway serves its metrics below the prefix."""
    script = Script(**CALM, root="/ns/model/v1", metrics="# TYPE a counter\na 1\n")
    measured = measure_valid_load(tmp_path, script, path="/ns/model")
    asked = {each.path for each in measured.endpoint.requests() if each.method == "GET"}
    assert any(path.startswith("/ns/model") and path.endswith("/metrics") for path in asked)


def test_one_of_several_models_must_be_named(bench: Bench, tmp_path: Path) -> None:
    script = Script(models=("embed-small", "qwen3:8b"))
    measured = measure_script(bench, tmp_path, script)
    check_refused(measured, "embed-small", "qwen3:8b", "--model")
    assert not measured.endpoint.completions()


def test_a_model_that_is_not_served_is_named(tmp_path: Path) -> None:
    script = Script(models=("embed-small", "qwen3:8b"))
    check_refused(measure_load(tmp_path, script, model="qwen3-8b"), "qwen3-8b", "qwen3:8b")


def test_no_list_and_no_model(tmp_path: Path) -> None:
    check_refused(measure_load(tmp_path, Script(models=None)), "404", "--model")


def test_an_empty_list_and_no_model(tmp_path: Path) -> None:
    check_refused(measure_load(tmp_path, Script(models=())), "--model")


def test_the_load_waits_until_the_endpoint_is_ready(tmp_path: Path) -> None:
    measured = measure_valid_load(tmp_path, Script(**CALM, loading_s=1.5))
    assert {each.status for each in measured.endpoint.load()} == {200}


def test_the_wait_ends_after_the_ready_timeout(bench: Bench, tmp_path: Path) -> None:
    script = Script(loading_s=600)
    measured = measure_script(bench, tmp_path, script, "--ready-timeout", "1")
    check_refused(measured, measured.endpoint.url, "503", "Loading model", "--ready-timeout")


def test_another_message_while_a_model_loads(tmp_path: Path) -> None:
    script = Script(loading_s=600, loading="model weights: 3 of 8 shards")
    measured = measure_load(tmp_path, script, model="m", ready_timeout_s=0.5)
    check_refused(measured, "503", "3 of 8 shards")


DENIED = "Access denied due to a missing api-key"


@pytest.mark.parametrize("model", [None, "m"], ids=["", "model"])
def test_a_key_is_missing(tmp_path: Path, model: str | None) -> None:
    measured = measure_load(tmp_path, Script(header="api-key: x"), model=model)
    check_refused(measured, measured.endpoint.url, "401", DENIED)
    assert not measured.endpoint.load()


def test_a_query_parameter_is_missing(tmp_path: Path) -> None:
    measured = measure_load(tmp_path, Script(query="api-version=2024-06-01"), model="m")
    check_refused(measured, measured.endpoint.url, "404", "api-version is missing")


def test_a_redirect_is_named(tmp_path: Path) -> None:
    measured = measure_load(tmp_path, Script(redirect="https://elsewhere.example"), model="m")
    check_refused(measured, "308", "https://elsewhere.example")


@pytest.mark.parametrize("model", [None, "m"], ids=["", "model"])
def test_https_for_an_http_server(tmp_path: Path, model: str | None) -> None:
    with serve_script(tmp_path, Script()) as endpoint:
        url = endpoint.url.replace("http://", "https://")
        check_refused(measure_endpoint(tmp_path, endpoint, url, model=model), url, "http://")


def test_a_path_without_an_endpoint(tmp_path: Path) -> None:
    measured = measure_load(tmp_path, Script(), model="m", path="/wrong/place")
    check_refused(measured, "/wrong/place", "404")


@pytest.mark.parametrize(
    "url",
    ["", " ", "127.0.0.1:8000", "ftp://127.0.0.1/", "http://"],
    ids=["empty", "blank", "no scheme", "another scheme", "no host"],
)
def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"^--target: "):
        target_of_url(url)
