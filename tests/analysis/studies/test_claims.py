"""Claims, judged by campaigns with known numbers: alpha sustains 440 tokens/s, beta half of that,
in two runs each.
"""

import json
from pathlib import Path

import pytest

from analysis import __main__ as command
from analysis.dataset import InputError
from analysis.studies import claims
from loadtests.campaign.runner import plan_cases
from loadtests.campaign.targets import Target
from loadtests.cli import parse_arguments
from tests.helpers import synthetic_campaign

ROOT = Path(__file__).parents[3]
CLAIM = 'says = "x"\nsource = "y"\n'
CAMPAIGN = '[campaigns.one]\narguments = ["--servers", "alpha,beta"]\n'


def judged(folder: Path, *all_parts: str, more: str = "") -> list[claims.ClaimVerdict]:
    """The verdicts on one claim for each of these parts."""
    file = folder / "claims.toml"
    file.write_text(
        CAMPAIGN
        + "".join(
            f'[claims.it{n}]\nsays = "it is so"\nsource = "people"\ncampaign = "one"\n{more}\n'
            f"parts = [{parts}]\n"
            for n, parts in enumerate(all_parts)
        )
    )
    if not (folder / "one").exists():
        synthetic_campaign.campaign(folder / "one")
    return claims.judge_claims(folder, file)


RATIO = '{{ metric = "output_tokens_per_s", of = "alpha", to = "beta", {} }}'


def test_an_interval_confirms_inside_refutes_outside_and_else_does_neither(tmp_path: Path) -> None:
    expected = {
        "least = 1.5": "confirmed",
        "least = 1.5, most = 3": "confirmed",
        "most = 3": "confirmed",
        "least = 3": "refuted",
        "most = 1.2": "refuted",
        "least = 5, most = 10": "refuted",
        "least = 2.0": "undecided",
        "most = 2.05": "undecided",
    }
    found = judged(tmp_path, *map(RATIO.format, expected))
    assert dict(zip(expected, (each.verdict for each in found), strict=True)) == expected
    for each in found:
        (part,) = each.parts
        assert (
            part.low < part.value < part.high
            and part.value == pytest.approx(2.04, abs=0.03)
            and part.traffic == "chat, 8 users"
        )


def test_a_value_of_one_server_has_the_metric_s_own_unit(tmp_path: Path) -> None:
    (found,) = judged(tmp_path, '{ metric = "ttft_p50_s", of = "alpha", most = 60 }')
    assert found.verdict in ("confirmed", "undecided") and found.parts[0].value == pytest.approx(
        50, rel=0.01
    )
    assert (found.parts[0].of, found.parts[0].claimed) == ("TTFT P50 of alpha, ms", "at most 60")


def test_all_parts_must_hold(tmp_path: Path) -> None:
    true = RATIO.format("least = 1.5")
    holds, fails, open_ = judged(
        tmp_path,
        f"{true}, {RATIO.format('most = 3')}",
        f"{true}, {RATIO.format('least = 3')}",
        f"{true}, {RATIO.format('least = 2.0')}",
    )
    assert (holds.verdict, fails.verdict, open_.verdict) == ("confirmed", "refuted", "undecided")
    assert "more runs would decide" in open_.why


def test_a_value_beyond_the_claim_refutes_it_with_the_reason(tmp_path: Path) -> None:
    beyond = RATIO.format("least = 1.2, most = 1.5")
    # about half: less is better
    latency = '{{ metric = "e2e_p50_s", of = "alpha", to = "beta", least = {}, most = {} }}'
    better, one_is_less, shorter, longer = judged(
        tmp_path,
        f"{beyond}, {RATIO.format('least = 1.5')}",
        f"{beyond}, {RATIO.format('least = 3')}",
        latency.format(0.7, 0.8),
        latency.format(0.1, 0.2),
    )
    assert (better.verdict, better.why) == ("refuted", "the value is better than claimed")
    assert shorter.why == "the value is better than claimed"
    assert one_is_less.why == longer.why == ""


def test_an_open_loop_is_judged_like_a_closed_one(tmp_path: Path) -> None:
    folder = synthetic_campaign.campaign(tmp_path / "one")
    for file in folder.glob("cases/*/run.json"):
        run = json.loads(file.read_text())
        file.write_text(json.dumps(run | {"case": run["case"] | {"users": None, "rate": 40.0}}))
    (found,) = judged(tmp_path, RATIO.format("least = 1.5"))
    assert found.verdict == "confirmed" and found.parts[0].traffic == "chat, 40 requests/s"


def part(traffic: str, verdict: str) -> claims.PartVerdict:
    return claims.PartVerdict(traffic, "it", "at least 1", 1.0, 0.9, 1.1, verdict)


def test_a_claim_that_is_true_under_one_traffic_depends_on_it() -> None:
    mixed = [
        part("chat, 1 user", "refuted"),
        part("chat, 16 users", "confirmed"),
        part("chat, 64 users", "confirmed"),
    ]
    assert claims._together(mixed) == (
        "depends",
        "it is true under chat, 16 users and chat, 64 users; it is false under chat, 1 user",
    )
    assert claims._together(
        [part("chat, 1 user", "refuted"), part("chat, 1 user", "confirmed")]
    ) == ("refuted", "")
    verdict, why = claims._together(
        [part("chat, 1 user", "no result"), part("chat, 1 user", "refuted")]
    )
    assert verdict == "undecided" and why.startswith("there is no result for it, chat, 1 user")


def test_no_undecided_or_missing_traffic_is_left_out() -> None:
    refuted, undecided = part("one", "refuted"), part("two", "undecided")
    crosses = "under two an interval crosses the threshold or is missing: more runs would decide"
    assert claims._together([refuted, undecided]) == (
        "undecided",
        f"it is false under one; {crosses}",
    )
    verdict, why = claims._together(
        [refuted, undecided, part("three", "confirmed"), part("four", "no result")]
    )
    assert verdict == "depends"
    assert (
        f"it is true under three; it is false under one; {crosses};"
        " there is no result for it, four" in why
    )
    assert claims._together([refuted, part("two", "refuted")]) == ("refuted", "")


def test_a_claim_s_note_is_beside_the_verdict(tmp_path: Path) -> None:
    (found,) = judged(tmp_path, RATIO.format("least = 1.5"), more='note = "of this machine"')
    assert found.why == "of this machine"


def test_a_claim_that_was_not_measured_has_the_reason(tmp_path: Path) -> None:
    (omega,) = judged(tmp_path, '{ metric = "output_tokens_per_s", of = "omega", least = 1 }')
    assert omega.verdict == "not testable here"
    (cores,) = judged(tmp_path, RATIO.format("least = 1.5"), more="server_cores = 2")
    assert (cores.verdict, cores.why) == ("not testable here", "the server has 1 core here")
    file = tmp_path / "claims.toml"
    file.write_text(
        f'{CAMPAIGN}[claims.a]\n{CLAIM}campaign = "one"\nparts = []\n[claims.b]\n{CLAIM}needs = "a'
        ' GPU"\n'
    )
    not_run, without = claims.judge_claims(tmp_path / "elsewhere", file)
    assert (not_run.verdict, not_run.why) == ("not run", "`nox -s claims -- one` runs it")
    assert (without.verdict, without.why) == ("not testable here", "it needs a GPU")


def test_the_pages_show_every_claim_with_its_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (verdict,) = judged(tmp_path, RATIO.format("least = 1.5"))
    monkeypatch.setattr(claims, "FILE", tmp_path / "claims.toml")
    monkeypatch.setattr(claims, "judge_claims", lambda results: [verdict])
    assert command.main(["claims", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("confirmed          it is so\n")
    page, text = (tmp_path / "claims.html").read_text(), (tmp_path / "README.md").read_text()
    assert (
        "## confirmed: “it is so”" in text
        and "| chat, 8 users | output throughput of alpha / beta | 2.0" in text
    )
    assert "output throughput of alpha / beta" in page and 'href="one/report.md"' in page


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[claims.a]\nsays = "x"\ncampaign = "one"\n', "the claim 'a' has no 'source'"),
        (f'[claims.a]\n{CLAIM}campaign = "two"\n', "the claim 'a' names no campaign of this file"),
        (
            (
                f'[claims.a]\n{CLAIM}campaign = "one"\nparts = [{{ metric = "speed", of = "b",'
                " least = 1 }]\n"
            ),
            "a part of the claim 'a'",
        ),
        (
            (
                f'[claims.a]\n{CLAIM}campaign = "one"\nparts = [{{ metric = "requests_per_s", of ='
                ' "b" }]\n'
            ),
            "a part of the claim 'a'",
        ),
        ("[claims", "cannot be read"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "claims.toml"
    file.write_text(CAMPAIGN + text)
    with pytest.raises(InputError, match=sentence):
        claims.read_claims(file)


# --- the committed claims


@pytest.mark.parametrize("name", claims.read_claims()["campaigns"])
def test_our_campaigns_can_be_planned_and_have_the_claims_servers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = claims.read_claims()
    monkeypatch.chdir(ROOT)
    cases, _ = plan_cases(parse_arguments(table["campaigns"][name]["arguments"]), [Target()])
    asked = {
        part[key]
        for claim in table["claims"].values()
        if claim.get("campaign") == name
        for part in claim["parts"]
        for key in ("of", "to")
        if key in part
    }
    assert asked and asked <= {case.label for case in cases}
    scenarios = {
        claim["scenario"]
        for claim in table["claims"].values()
        if claim.get("campaign") == name and "scenario" in claim
    }
    assert scenarios <= {case.scenario for case in cases} and {
        case.repetition for case in cases
    } >= {1, 2, 3}
