"""`python -m servers profile URL`: finds out what an endpoint is and does."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from servers.profile.client import ProfileError
from servers.profile.profile import Profile
from servers.profile.profiler import profile_endpoint
from tests.helpers.campaign_process import ROOT
from tests.helpers.endpoint_campaign import UNTRUE
from tests.helpers.endpoint_script import CHAT, COMPLETIONS, DONE, Failure, Script, serve_script
from tests.helpers.started_server import OURS, start

slow = pytest.mark.slow
PATIENCE_S = 120.0  # against hanging; not a measurement
FIELDS = ("ignore_eos", "stream_options", "max_tokens", "temperature")


def run_profile(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "servers", "profile", *arguments],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def read_profile(url: str, *arguments: str) -> dict[str, Any]:
    done = run_profile(url, "--json", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    profile = json.loads(done.stdout)
    assert set(profile) == set(Profile.__dataclass_fields__), profile
    assert isinstance(profile, dict)
    return profile


def call_profiler(url: str) -> dict[str, Any]:
    """Return the profile as the command prints it, without starting a process."""
    profile: dict[str, Any] = json.loads(json.dumps(profile_endpoint(url).to_json()))
    return profile


def check_fields(profile: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare the expected fields; in nested fields, only the expected keys."""
    for name, value in expected.items():
        found = profile[name]
        if isinstance(value, dict):
            found = {key: found.get(key) for key in value}
        assert found == value, (name, profile)


ROLE = json.dumps({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
AZURE = json.dumps({"choices": [], "prompt_filter_results": []})
VLLM_METRICS = (
    "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 0\n"
    "# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total 5\n"
)
PLAIN = {
    "model": "m",
    "models": ["m"],
    "endpoints": ["chat", "completions"],
    "usage": "stream",
    "reasoning": None,
    "early_chunks": 0,
    "repeats_alone": True,
    "repeats_under_load": True,
    "template_tokens": 0,
    "context": None,
    "metrics": None,
    "dialect": {
        "root": "/v1",
        "query": "",
        "max_tokens_field": "max_tokens",
        "omitted": [],
        "usage": "stream",
        "has_system_role": True,
    },
    "fields": dict.fromkeys(FIELDS, "accepted"),
}

SCRIPTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "chat only": ({"endpoints": (CHAT,)}, {"endpoints": ["chat"]}),
    "completions only": ({"endpoints": (COMPLETIONS,)}, {"endpoints": ["completions"]}),
    # the chunks of a response that ends at max_tokens show its tokens
    "no usage": (
        {"usage": "never"},
        {"usage": "never", "tokens_per_word": None, "tokens_per_chunk": 1.0},
    ),
    "plain usage": ({"usage": "plain"}, {"usage": "plain"}),
    "continuous usage": (
        {"usage": "continuous"},
        {"usage": "continuous", "dialect": {"usage": "stream"}},
    ),
    "usage unasked": ({"usage": "running"}, {"usage": "continuous"}),
    "speculative": ({"per_chunk": (4,)}, {"tokens_per_chunk": 4.0}),
    "speculative, continuous": (
        {"per_chunk": (1, 3), "usage": "continuous"},
        {"tokens_per_chunk": 2.0, "usage": "continuous", "dialect": {"usage": "continuous"}},
    ),
    "thinking": (
        {"reasoning": 0.8, "reasoning_field": "reasoning"},
        {"reasoning": "reasoning", "tokens_per_chunk": 1.0},
    ),
    "thinking, empty content": (
        {"reasoning": 0.5, "empty_content": True},
        {"reasoning": "reasoning_content"},
    ),
    "thinking in parts": (
        {"reasoning": 0.5, "reasoning_field": "parts"},
        {"reasoning": "content.thinking"},
    ),
    "early role": ({"early": (ROLE,)}, {"early_chunks": 1}),
    "Azure's early chunks": ({"early": (AZURE, ROLE)}, {"early_chunks": 2}),
    "ignore_eos refused": (
        {"refused": {"ignore_eos": (400, "unknown field ignore_eos")}},
        {"fields": {"ignore_eos": "refused"}, "dialect": {"omitted": ["ignore_eos"]}},
    ),
    "ignore_eos ignored": (
        {"lengths": (5, 20), "finish": "stop"},
        {"fields": {"ignore_eos": "ignored"}},
    ),
    "max_completion_tokens only": (
        {"refused": {"max_tokens": (400, "use max_completion_tokens")}},
        {
            "fields": {"max_tokens": "refused", "max_completion_tokens": "accepted"},
            "dialect": {"max_tokens_field": "max_completion_tokens"},
        },
    ),
    "no system role": (
        {"refused": {"role system": (400, "System role not supported")}},
        {"dialect": {"has_system_role": False}},
    ),
    "busy text": ({"text": "busy"}, {"repeats_alone": True, "repeats_under_load": False}),
    "second text": ({"text": "second"}, {"repeats_alone": False}),
    "2.1 tokens per word": ({"prompt_factor": 2.1, "template_tokens": 9}, {"template_tokens": 9}),
    "context": ({"context": 4096}, {"context": 4096}),
    "vLLM's metrics": ({"metrics": VLLM_METRICS}, {"metrics": "vllm"}),
    "fast": ({"first_s": 0.0, "step_s": 0.0}, {"tokens_per_chunk": 1.0}),
    "at once": ({"at_once": True}, {"tokens_per_chunk": 1.0}),
    "slow": ({"first_s": 0.25, "step_s": 0.025}, {"tokens_per_chunk": 1.0}),
    "prefix": ({"root": "/ns/model/v1"}, {}),
}
QUICK = ("plain", "thinking", "speculative", "busy text", "max_completion_tokens only")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else slow) for name in SCRIPTED]
)
def test_a_scripted_endpoint(tmp_path: Path, name: str) -> None:
    script, expected = SCRIPTED[name]
    path = "/ns/model" if "root" in script else ""
    with serve_script(tmp_path, Script(**script)) as endpoint:
        read = read_profile if name == "thinking" else call_profiler
        profile = read(f"{endpoint.url}{path}")
    plain = {key: value for key, value in PLAIN.items() if key not in expected}
    if {"lengths", "refused", "text", "endpoints", "root", "usage"} & set(script):
        plain.pop("fields", None)  # the expected ones are checked one by one
        plain.pop("dialect", None)
    if script.get("metrics") or script.get("root"):
        plain.pop("metrics", None)
    if script.get("text") == "second":
        plain.pop("repeats_under_load")  # depends on the same change of text
    if script.get("endpoints") == (COMPLETIONS,):
        plain.pop("template_tokens")
        plain.pop("dialect", None)
    if script.get("usage") == "never":
        plain.pop("template_tokens")
    check_fields(profile, plain | expected)
    if "tokens_per_chunk" not in expected:
        assert profile["tokens_per_chunk"] == pytest.approx(1.0, abs=0.1), profile
    if script.get("usage") != "never":
        words = script.get("prompt_factor", 1.0)
        assert profile["tokens_per_word"] == pytest.approx(words, rel=0.03)
    root = script.get("root", "/v1")
    assert f"{profile['base_url']}{profile['dialect']['root']}".endswith(root)


def test_people_can_read_it(tmp_path: Path) -> None:
    """One line per finding, and no Python syntax."""
    script = Script(reasoning=0.5, per_chunk=(2,), usage="finish")
    with serve_script(tmp_path, script) as endpoint:
        done = run_profile(endpoint.url)
    assert done.returncode == 0, done.stderr
    assert endpoint.url in done.stdout and "reasoning_content" in done.stdout
    assert len(done.stdout.splitlines()) >= 10
    assert not {"None", "True", "False", "{", "('"} & set(done.stdout.split()), done.stdout


# name: the script, the requested model, and words of the sentence
REFUSALS: dict[str, tuple[dict[str, Any], str | None, Sequence[str]]] = {
    "several models": ({"models": ("a", "b:1")}, None, ("a", "b:1", "--model")),
    "no such model": ({"models": ("a", "b:1")}, "c", ("c", "b:1")),
    "no list": ({"models": None}, None, ("404", "--model")),
    "a key is missing": ({"header": "api-key: x"}, None, ("401", "missing api-key")),
    "it redirects": ({"redirect": "https://elsewhere.example"}, None, ("308", "elsewhere.example")),
    "no token": ({"failure": Failure(events=(DONE,))}, None, ("no token",)),
    "an error": ({"failure": Failure(500, "CUDA error: no kernel")}, None, ("500", "CUDA error")),
    "no endpoint": ({"endpoints": ()}, None, ("404",)),
    "mixed texts": ({"text": "mixed"}, None, ("another request",)),
    "a cut text": ({"text": "cut"}, None, ("stream",)),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "several models" else slow) for name in REFUSALS],
)
def test_an_endpoint_whose_numbers_would_be_wrong_is_refused(tmp_path: Path, name: str) -> None:
    script, model, words = REFUSALS[name]
    with (
        serve_script(tmp_path, Script(**script)) as endpoint,
        pytest.raises(ProfileError) as refused,
    ):
        profile_endpoint(endpoint.url, model=model)
    sentence = str(refused.value)
    for word in words:
        assert word in sentence, sentence
    assert "\n" not in sentence and not UNTRUE.search(sentence), sentence


def test_the_command_refuses_with_one_sentence(tmp_path: Path) -> None:
    with serve_script(tmp_path, Script(models=("a", "b:1"))) as endpoint:
        done = run_profile(endpoint.url, "--model", "c")
    assert done.returncode != 0, done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "c" in done.stderr and "b:1" in done.stderr


# --- our own servers

OWN = {
    "model": "serveoff-tiny",
    "models": ["serveoff-tiny"],
    "endpoints": ["chat", "completions"],
    "usage": "continuous",
    "reasoning": None,
    "early_chunks": 0,
    "repeats_alone": True,
    "repeats_under_load": True,
    "tokens_per_word": 1.0,
    "template_tokens": 1,
    "notes": [],
    "dialect": PLAIN["dialect"],
    "fields": PLAIN["fields"],
}


@pytest.mark.parametrize(
    "server",
    [pytest.param(name, marks=[] if name == "fastapi_threadpool" else slow) for name in OURS],
)
def test_each_of_our_own_servers(tmp_path: Path, server: str) -> None:
    read = read_profile if server == "fastapi_threadpool" else call_profiler
    with start(server, "simulated", tmp_path) as running:
        profile = read(running.base_url)
    check_fields(profile, OWN)
    assert profile["tokens_per_chunk"] == pytest.approx(1.0, abs=0.05)


SIMULATED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "thinking": (
        {"reasoning_share": 0.5},
        {"reasoning": "reasoning_content", "tokens_per_chunk": 1.0},
    ),
    "speculative": ({"tokens_per_chunk": 4}, {"reasoning": None}),
    "early chunk": ({"early_chunk": 1}, {"early_chunks": 1}),
    "two tokens per word": ({"tokens_per_word": 2}, {"tokens_per_word": 2.0}),
    "slow": ({"prefill_ms": 800, "step_ms": 60}, {"tokens_per_chunk": 1.0, "notes": []}),
    "fast": ({"prefill_ms": 1, "step_ms": 0.2}, {"notes": []}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "thinking" else slow) for name in SIMULATED]
)
def test_other_kinds_of_simulated_engines(tmp_path: Path, name: str) -> None:
    simulated, expected = SIMULATED[name]
    with start("fastapi_threadpool", "simulated", tmp_path, **simulated) as running:
        profile = call_profiler(running.base_url)
    check_fields(profile, expected)
    if name == "speculative":
        assert profile["tokens_per_chunk"] == pytest.approx(4, rel=0.1)
