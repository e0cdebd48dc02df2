"""The plan leaves out default scenarios whose endpoint a target lacks."""

from dataclasses import replace

import pytest

from loadtests.campaign import capacity_rounds, gate_rounds
from loadtests.campaign.plan import make_plan
from loadtests.campaign.runner import CampaignPlan, keep_possible_cases
from loadtests.campaign.targets import target_of_url
from loadtests.errors import UsageError
from loadtests.schema import CapacitySearch, PairedGate
from loadtests.workload.prompts import longest_request
from loadtests.workload.scenario import read_scenarios
from servers.profile.profile import Dialect, Profile

NAMES = ("interactive", "steady")  # a chat, and completions


def plan():
    known, target = read_scenarios(), target_of_url("http://127.0.0.1:1")
    scenarios = {name: known[name] for name in NAMES}
    cases = make_plan([target.server], [], scenarios)
    search = CapacitySearch("", None, {}, {}, capacity_rounds.searched_systems(cases))
    gate = PairedGate({}, 1, "", [], "", 1.0, gate_rounds.gated_systems(cases))
    return CampaignPlan({"": target}, None, cases, scenarios, search, gate)


def profile(*endpoints):
    return {"": Profile("http://127.0.0.1:1", Dialect(), "m", endpoints=endpoints)}


@pytest.mark.parametrize(("endpoint", "kept"), [("chat", "interactive"), ("completions", "steady")])
def test_only_possible_scenarios_are_kept(endpoint, kept, capsys):
    left = keep_possible_cases(plan(), profile(endpoint))
    assert list(left.scenarios) == [kept]
    for systems in (left.cases, left.search.systems, left.gate.systems):
        assert {each.scenario for each in systems} == {kept}
    assert "is left out: the target has no" in capsys.readouterr().out


def test_a_plan_without_impossible_scenarios_is_unchanged():
    assert keep_possible_cases(plan(), profile("chat", "completions")) == plan()


def test_a_plan_without_possible_scenarios_is_an_error():
    both = "the target has no /chat/completions; steady: the target has no /completions"
    with pytest.raises(UsageError, match=both):
        keep_possible_cases(plan(), profile())


def test_the_target_that_lacks_an_endpoint_is_named(capsys):
    profiles = {"east": profile("chat", "completions")[""], "west": profile("completions")[""]}
    assert list(keep_possible_cases(plan(), profiles).scenarios) == ["steady"]
    assert "interactive is left out: west has no /chat/completions" in capsys.readouterr().out


def test_a_scenario_whose_requests_exceed_the_context_is_impossible(capsys):
    def served(context):
        known = profile("chat", "completions")[""]
        return {"": replace(known, context=context)}

    tables = plan().scenarios
    tables["steady"]["prompt_tokens"] = [16, 500]
    short, long = (sum(longest_request(tables[name])) for name in NAMES)
    assert short < long
    wanted = replace(plan(), scenarios=tables)
    assert keep_possible_cases(wanted, served(long)) == wanted
    assert list(keep_possible_cases(wanted, served(short)).scenarios) == ["interactive"]
    assert f"its longest request has {long:,} tokens" in capsys.readouterr().out
    with pytest.raises(UsageError, match=f"steady: .* the context of the target {short:,}:"):
        keep_possible_cases(wanted, served(short), are_chosen=True)
