"""Several endpoints in one campaign: each gets its own key, headers, fields and model."""

import json
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from loadtests import gate
from loadtests.campaign import results_folder, runner, targets
from loadtests.campaign.targets import Targets, profile_targets, target_key
from loadtests.cli import parse_arguments
from loadtests.errors import UsageError
from loadtests.schema import CampaignFile, Case
from servers.profile.profile import Dialect, Profile
from servers.runtime.launch import CoreShare
from tests.helpers.campaign_process import Bench, is_complete, runs, said_of, table, wait_for
from tests.helpers.endpoint_campaign import CALM, SCENARIOS
from tests.helpers.endpoint_script import Script, serve_script
from tests.helpers.synthetic_campaign import campaign_data

KEYS = {
    "east": "sk-east-0123456789",
    "west": "sk-west-9876543210",
    "north": "north-pass-55",
    "path": "path-key-77",
}


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVEOFF_API_KEY", raising=False)
    monkeypatch.setenv("EAST_KEY", KEYS["east"])


def targets_of(*command: str) -> Targets:
    return targets.targets_of_urls(parse_arguments(command))


def profile_all(found: Targets) -> dict[str, str]:
    """Return the model of each target."""
    profiles = profile_targets(found, (), CoreShare((), 1, 1), None, dict.fromkeys(found))
    return {name: profile.model for name, profile in profiles.items()}


def test_options_with_a_name_are_for_that_target_only() -> None:
    found = targets_of(
        *("--target", "east=http://a:1/v1", "--target", "west=http://me:pass@b:2?region=eu"),
        *("--header", "X-Org: research", "--header", "east=api-key: ${EAST_KEY}"),
        *("--body", "top_p=0.5", "--body", "west=top_p=1", "--body", 'west=extra={"a": 1}'),
        *("--model", "east=small,west=org/large:8b"),
    )
    east, west = found["east"], found["west"]
    assert dict(east.access.headers) == {"X-Org": "research", "api-key": KEYS["east"]}
    assert dict(west.access.headers) == {"X-Org": "research", "Authorization": "Basic bWU6cGFzcw=="}
    assert (east.model, west.model) == ("small", "org/large:8b")
    assert (east.extra, west.extra) == ({"top_p": 0.5}, {"top_p": 1, "extra": {"a": 1}})
    assert (east.url, west.url) == ("http://a:1/v1", "http://b:2?region=eu")
    assert "pass" not in f"{west.description} {west.server}"


def test_a_secret_in_a_body_is_sent_but_not_described() -> None:
    found = targets_of(
        *("--target", "east=http://a", "--body", 'api_key="${EAST_KEY}"', "--body", "min_tokens=2"),
        *("--body", 'auth={"id": 7, "token": "abc"}'),
    )["east"]
    assert found.extra["api_key"] == KEYS["east"] and found.extra["auth"]["token"] == "abc"
    profile = Profile("http://a", Dialect(extra=found.extra), "m")
    described = targets.describe_endpoints({"east": found}, {"east": profile})["east"]["body"]
    assert described == {"api_key": "***", "min_tokens": 2, "auth": {"id": 7, "token": "***"}}
    assert found.access.hide_secrets(KEYS["east"]) == "***"


def test_one_target_needs_no_name_but_may_have_one() -> None:
    assert list(targets_of("--target", "http://a:1")) == [""]
    named = targets_of("--target", "east=http://a:1", "--model", "org/m=x", "--header", "east=a: b")
    assert named["east"].model == "org/m=x" and dict(named["east"].access.headers) == {"a": "b"}
    case = Case(1, "east", "external", "chat", 1, 2, None, 3.0)
    assert (
        target_key(named, case) == "east"
        and target_key(targets_of("--target", "http://a"), case) == ""
    )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            ["--target", "http://a", "--target", "http://b"],
            "several targets need names that differ",
        ),
        (["--target", "a=http://a", "--target", "a=http://b"], "need names that differ"),
        (["--target", "a b=http://a", "--target", "c=http://b"], "with a name of letters, digits"),
        (["--target", "a=http://a", "--model", "a=m,b=m"], "--model ...,b=m: give NAME=MODEL for"),
        (
            ["--target", "a=http://a", "--header", "b=x: y"],
            "no target has this name: choose from a",
        ),
        (["--target", "http://a", "--header", "b=x: y"], "name it with --target NAME=URL"),
        (["--target", "http://a", "--header", "nonsense"], "give NAME: VALUE"),
        (["--target", "http://a", "--body", "top_p"], "give KEY=JSON, such as top_p=0.9"),
        (["--target", "http://a", "--body", "effort=low"], "quote text twice, such as 'effort="),
        (
            ["--target", "http://a", "--body", "stream=false"],
            "sets this field itself: leave it out",
        ),
        (["--target", "http://a", "--body", "max_tokens=5"], "sets this field itself: use --scen"),
        (
            ["--target", "a=http://a", "--target", "b=http://b", "--gpu-metrics", "http://c:9400"],
            "it needs the name of its target, as each may run on another machine: give --gpu-",
        ),
        (["--target", "a=http://a", "--gpu-metrics", "b=http://c"], "has this name: choose from a"),
        (["--target", "http://a", "--host-metrics", "b=http://c"], "name: give the URL alone"),
        (["--target", "http://a", *["--host-metrics", "http://b"] * 2], "give it once"),
        (["--target", "http://a", "--gpu-metrics", "a:9400"], "not the URL of an exporter: give"),
        (["--target", "http://a", "--gpu-metrics", "http://a?gpu="], "names no GPU: give numbers"),
        (["--target", "http://a", "--body", "n=2"], "--body n=...: a response with several texts"),
        (["--target", "http://a", "--body", "x=NaN"], "the value is not JSON"),
        (["--target", "http://a", "--body", 'x="${NO_KEY}"'], "variable NO_KEY is not set"),
        (["--target", "http://[::1"], "--target: the URL has an IPv6 address without its brackets"),
        (["--target", "http://${NO_HOST}"], "environment variable NO_HOST is not set: set it"),
        (["--target", "http://a", "--cacert", "/missing.pem"], "No such file or directory"),
    ],
)
def test_an_unusable_option_is_one_sentence(command: Sequence[str], words: str) -> None:
    with pytest.raises(UsageError) as refused:
        targets_of(*command)
    assert words in str(refused.value) and str(refused.value).startswith("--") | (
        "several targets" in str(refused.value)
    )


def test_exporters_belong_to_their_target() -> None:
    found = targets_of(
        *("--target", "east=http://a:1/v1", "--target", "west=http://b:2", "--insecure"),
        *("--gpu-metrics", "east=http://a:9400?gpu=0,1", "--gpu-metrics", "east=https://c/gpu?x=1"),
        *("--host-metrics", "west=http://${EAST_KEY}@b:9100/"),
    )
    first, second = found["east"].exporters
    assert (first.url, first.chosen) == ("http://a:9400/metrics", ("0", "1"))
    assert (second.url, second.shown) == ("https://c/gpu?x=1", "https://c/gpu")
    assert not second.access.verifies and second.access.headers == ()
    (host,) = found["west"].exporters
    assert (host.kind, host.url) == ("host", "http://b:9100/metrics")
    assert KEYS["east"] not in host.url and host.access.headers
    sides = gate_targets(
        *("--base-server", "http://a", "--head-server", "http://b"),
        *("--gpu-metrics", "base=http://a:9400"),
    )
    assert [len(sides[side].exporters) for side in ("base", "head", "control")] == [1, 0, 1]
    with pytest.raises(UsageError, match="are for a server at a URL: leave them out"):
        runner.plan_campaign(parse_arguments(["--gpu-metrics", "http://a:9400"]))


def test_targets_may_have_the_names_of_a_gates_sides() -> None:
    """Only a gate has sides: here all three are measured, and their models may differ."""
    command = [
        part
        for name in ("base", "head", "control")
        for part in ("--target", f"{name}=http://{name}")
    ]
    arguments = parse_arguments([*command, "--target", "4090=http://card"])
    plan = runner.plan_campaign(arguments)
    assert {case.server for case in plan.cases} == {"base", "head", "control", "4090"}
    assert not targets.is_gate(plan.targets)
    assert targets.is_gate(
        gate_targets("--base-server", "http://base", "--head-server", "http://head")
    )


def gate_targets(*command: str) -> Targets:
    own, others = gate.parse_gate_arguments(command)
    found = gate.find_targets(own, gate.read_campaign_arguments(own, others))
    assert found is not None
    return found


def test_the_sides_of_a_gate_may_serve_different_models(tmp_path: Path) -> None:
    with (
        serve_script(tmp_path / "base", Script(models=("old",))) as base,
        serve_script(tmp_path / "head", Script(models=("new",), header="x-key: 1")) as head,
    ):
        command = [
            "--base-server",
            base.url,
            "--head-server",
            head.url,
            "--header",
            "head=x-key: 1",
        ]
        named = gate_targets(*command, "--model", "base=old,head=new")
        assert profile_all(named) == {"base": "old", "head": "new", "control": "old"}
        with pytest.raises(UsageError, match=r"different models: .*--model base=NAME"):
            profile_all(gate_targets(*command))
        assert all("x-key" not in each.headers for each in base.requests())


def test_each_target_gets_its_own_and_no_secret_is_written(bench: Bench, tmp_path: Path) -> None:
    """Three endpoints with different keys, headers and models, in one interleaved campaign."""
    (bench.folder / "endpoints.toml").write_text(SCENARIOS)
    bench.environment |= {f"{name.upper()}_KEY": key for name, key in KEYS.items()}
    basic = "authorization: Basic bm9ydGg6bm9ydGgtcGFzcy01NQ=="
    scripts = {
        "east": Script(**CALM, header=f"api-key: {KEYS['east']}", models=("small",)),
        "west": Script(**CALM, header=f"authorization: Bearer {KEYS['west']}", models=("a", "b")),
        "north": Script(**CALM, header=basic, models=("small",), root=f"/{KEYS['path']}/v1"),
    }
    with (
        serve_script(tmp_path / "east", scripts["east"]) as east,
        serve_script(tmp_path / "west", scripts["west"]) as west,
        serve_script(tmp_path / "north", scripts["north"]) as north,
    ):
        place = north.url.removeprefix("http://")
        campaign = bench.start(
            *("--scenarios-file", "endpoints.toml", "--scenarios", "chats", "--duration", "2"),
            *("--target", f"east={east.url}", "--target", f"west={west.url}/v1"),
            *("--target", f"north=http://north:{KEYS['north']}@{place}/${{PATH_KEY}}"),
            *("--header", "east=api-key: ${EAST_KEY}", "--model", "west=b"),
            *("--header", "west=Authorization: Bearer ${WEST_KEY}", "--body", "west=top_p=0.5"),
            *("--report", "page", "--out", "out"),
        )
        commands: list[list[str]] = []

        def is_loading() -> bool:
            parent = psutil.Process(campaign.pid)
            typed = said_of(parent)  # and that of a child until it runs its own program
            family = map(said_of, parent.children(recursive=True))
            commands.extend(command for command in family if command != typed)
            loading = any(bench.folder.glob("out/cases/*/load.json"))
            return loading or campaign.poll() is not None

        wait_for(is_loading, "a case under load")
        printed, _ = campaign.communicate(timeout=120)
        assert is_complete(campaign.returncode, printed), printed
        for endpoint, model in ((east, "small"), (west, "b"), (north, "small")):
            assert {each.status for each in endpoint.load()} == {200}
            assert {each.body["model"] for each in endpoint.load()} == {model}
            host = endpoint.url.removeprefix("http://")
            assert {each.headers["host"] for each in endpoint.requests()} == {host}
        assert {each.body.get("top_p") for each in west.load()} == {0.5}
        assert {each.body.get("top_p") for each in east.load()} == {None}
    out = bench.folder / "out"
    assert sorted(run["case"]["server"] for _, run in runs(out)) == ["east", "north", "west"]
    assert all(table(folder, "requests") for folder, _ in runs(out))
    for _, run in runs(out):
        assert (
            "the targets serve different models (east small, west b, north small), so this also"
            " compares the models" in run["notes"]
        )
    described = json.loads((out / "campaign.json").read_text())["targets"]
    assert {name: (each["model"], each["headers"]) for name, each in described.items()} == {
        "east": ("small", ["api-key"]),
        "west": ("b", ["Authorization"]),
        "north": ("small", ["Authorization"]),
    }
    written = b"".join(file.read_bytes() for file in out.rglob("*") if file.is_file())
    shown = f"{printed} {commands} {written.decode('latin-1')}"
    assert not [key for key in KEYS.values() if key in shown]
    assert "bm9ydGg6" not in shown


def test_another_url_is_another_campaign(tmp_path: Path) -> None:
    model = {"name": "m", "path": "", "planted": False, "shape": None}
    data = campaign_data([], model=model)
    one = CampaignFile(**data | {"targets": {"east": {"url": "http://a", "model": "m"}}})
    two = CampaignFile(**data | {"targets": {"east": {"url": "http://b", "model": "m"}}})
    results_folder.open_campaign(tmp_path / "out", one)
    results_folder.open_campaign(tmp_path / "out", one)
    with pytest.raises(UsageError, match="out is a campaign with another targets"):
        results_folder.open_campaign(tmp_path / "out", two)
