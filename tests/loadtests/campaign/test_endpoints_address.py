"""Where an endpoint is, what it calls its models, and what it wants before it responds."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.campaign_process import Bench
from tests.helpers.endpoint_campaign import (
    CALM,
    check_refused,
    measure,
    measure_script,
    measure_valid,
)
from tests.helpers.endpoint_script import CHAT, Script, serve_script

slow = pytest.mark.slow

# name: the script, what is appended to the URL, and more arguments
AT: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "v1": ({}, "/v1", ()),
    "v1 and a slash": ({}, "/v1/", ()),
    "a slash": ({}, "/", ()),
    "prefix": ({"root": "/ns/model/v1"}, "/ns/model", ()),
    "prefix and v1": ({"root": "/ns/model/v1"}, "/ns/model/v1", ()),
    "another version": ({"root": "/api/v3"}, "/api/v3", ()),
    "v1 below openai": ({"root": "/openai/v1"}, "/openai/v1", ()),
    "no version": ({"root": ""}, "", ()),
    "prefix without version": ({"root": "/serve/m"}, "/serve/m", ()),
    "deployment": (
        {"root": "/openai/deployments/m", "models": None, "query": "api-version=2024-06-01"},
        "/openai/deployments/m?api-version=2024-06-01",
        ("--model", "m"),
    ),
    "query below v1": ({"query": "region=eu"}, "/v1?region=eu&other=1", ()),
    "no list of models": ({"models": None}, "", ("--model", "m")),
    "no list of models below v1": ({"models": None}, "/v1", ("--model", "org/m:8b")),
    "one of several": ({"models": ("embed-small", "qwen3:8b")}, "", ("--model", "qwen3:8b")),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("v1", "prefix") else slow) for name in AT]
)
def test_it_is_measured_where_it_is(bench: Bench, tmp_path: Path, name: str) -> None:
    script, path, arguments = AT[name]
    measured = measure_valid(bench, tmp_path, Script(**CALM | script), *arguments, path=path)
    root = script.get("root", "/v1")
    load = measured.endpoint.load()
    asked = path.partition("?")[2]
    assert {each.path for each in load} == {f"{root}{CHAT}" + (f"?{asked}" if asked else "")}
    assert {each.status for each in load} == {200}
    profile = measured.profile
    assert f"{profile['base_url']}{profile['dialect']['root']}".endswith(root), profile
    assert profile["dialect"]["query"] == asked
    model = arguments[1] if "--model" in arguments else "m"
    assert profile["model"] == model
    assert {each.body["model"] for each in load} == {model}
    assert profile["models"] == list(script.get("models", ("m",)) or ())
    for arrived in measured.endpoint.requests():
        for wanted in (script.get("header", ""),):
            header, _, value = wanted.partition(": ")
            assert not header or arrived.headers.get(header) == value, arrived


@slow
def test_metrics_are_read_beside_the_prefix(bench: Bench, tmp_path: Path) -> None:
    """Where a gateway serves them: below the prefix."""
    script = Script(**CALM, root="/ns/model/v1", metrics="# TYPE a counter\na 1\n")
    measured = measure_valid(bench, tmp_path, script, path="/ns/model")
    asked = {each.path for each in measured.endpoint.requests() if each.method == "GET"}
    assert any(path.startswith("/ns/model") and path.endswith("/metrics") for path in asked)


def test_one_of_several_models_must_be_named(bench: Bench, tmp_path: Path) -> None:
    script = Script(models=("embed-small", "qwen3:8b"))
    measured = measure_script(bench, tmp_path, script)
    check_refused(measured, "embed-small", "qwen3:8b", "--model")
    assert not measured.endpoint.completions()


def test_a_model_that_is_not_served_is_named(bench: Bench, tmp_path: Path) -> None:
    script = Script(models=("embed-small", "qwen3:8b"))
    check_refused(
        measure_script(bench, tmp_path, script, "--model", "qwen3-8b"), "qwen3-8b", "qwen3:8b"
    )


def test_no_list_and_no_model(bench: Bench, tmp_path: Path) -> None:
    check_refused(measure_script(bench, tmp_path, Script(models=None)), "404", "--model")


@slow
def test_an_empty_list_and_no_model(bench: Bench, tmp_path: Path) -> None:
    check_refused(measure_script(bench, tmp_path, Script(models=())), "--model")


def test_it_is_waited_for(bench: Bench, tmp_path: Path) -> None:
    script = Script(**CALM, loading_s=6)
    measured = measure_valid(bench, tmp_path, script)
    assert {each.status for each in measured.endpoint.load()} == {200}


def test_it_is_waited_for_as_long_as_asked(bench: Bench, tmp_path: Path) -> None:
    script = Script(loading_s=600)
    measured = measure_script(bench, tmp_path, script, "--ready-timeout", "2")
    check_refused(measured, measured.endpoint.url, "503", "Loading model", "--ready-timeout")


@slow
def test_other_words_of_one_that_loads(bench: Bench, tmp_path: Path) -> None:
    script = Script(loading_s=600, loading="model weights: 3 of 8 shards")
    measured = measure_script(bench, tmp_path, script, "--ready-timeout", "2", "--model", "m")
    check_refused(measured, "503", "3 of 8 shards")


DENIED = "Access denied due to a missing api-key"


@pytest.mark.parametrize("model", [(), ("--model", "m")], ids=["", "model"])
def test_a_key_is_missing(bench: Bench, tmp_path: Path, model: tuple[str, ...]) -> None:
    script = Script(header="api-key: x")
    measured = measure_script(bench, tmp_path, script, *model)
    check_refused(measured, measured.endpoint.url, "401", DENIED)
    assert not measured.endpoint.load()


def test_a_query_parameter_is_missing(bench: Bench, tmp_path: Path) -> None:
    script = Script(query="api-version=2024-06-01")
    measured = measure_script(bench, tmp_path, script, "--model", "m")
    check_refused(measured, measured.endpoint.url, "404", "api-version is missing")


@slow
def test_a_redirect_is_named(bench: Bench, tmp_path: Path) -> None:
    script = Script(redirect="https://elsewhere.example")
    measured = measure_script(bench, tmp_path, script, "--model", "m")
    check_refused(measured, "308", "https://elsewhere.example")


@slow
@pytest.mark.parametrize("model", [(), ("--model", "m")], ids=["", "model"])
def test_https_where_http_is_spoken(bench: Bench, tmp_path: Path, model: tuple[str, ...]) -> None:
    with serve_script(tmp_path, Script()) as endpoint:
        url = endpoint.url.replace("http://", "https://")
        check_refused(measure(bench, endpoint, *model, target=url), url, "http://")


@slow
def test_nothing_below_that_path(bench: Bench, tmp_path: Path) -> None:
    measured = measure_script(bench, tmp_path, Script(), "--model", "m", path="/wrong/place")
    check_refused(measured, "/wrong/place", "404")


@pytest.mark.parametrize(
    "target",
    ["", " ", "127.0.0.1:8000", "ftp://127.0.0.1/", "http://"],
    ids=["empty", "blank", "no scheme", "another scheme", "no host"],
)
def test_no_url(bench: Bench, target: str) -> None:
    bench.refuses("--target", "--target", target, "--report", "none", "--out", "not_to_be")
