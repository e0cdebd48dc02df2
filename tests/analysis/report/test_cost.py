"""Dollars, energy and shares of the physical limit, on rows whose numbers can be computed by hand,
and in the report.
"""

import math
import re

import pytest

from analysis import hardware, metrics
from analysis.dataset import InputError
from analysis.hardware import MachineCost, Price
from analysis.metrics import roofline
from tests.helpers import synthetic_campaign

pytestmark = pytest.mark.usefixtures("unillustrated")

SHAPE = {
    "parameters": 1000,
    "embedding_parameters": 300,
    "tied_embeddings": False,
    "layers": 3,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 5,
    "dtype_bytes": 2,
}
MODEL = {"name": "m", "path": "m", "planted": True, "shape": SHAPE}
PEAKS = MachineCost(bytes_per_s=1e6, flops=1e9)


@pytest.fixture
def computed(observe):
    """A case on a real engine, with the model's shape and the machine's peaks."""

    def make(rows=None, engine="hf", given=PEAKS, model=MODEL, **changes):
        o = observe(rows, engine=engine, data={"model": model}, **changes)
        o.machine_cost = given
        return o

    return make


def counted(values, name=roofline.PASSES):
    """One token per second."""
    return [
        dict(
            zip(
                synthetic_campaign.schema.SERVER_METRICS_FIELDS,
                (float(t), 0.25, name, "{}", float(v)),
                strict=True,
            )
        )
        for t, v in enumerate(values)
    ]


# --- dollars, energy


def test_dollars_are_for_tokens_that_met_the_slo(observe):
    rows = synthetic_campaign.requests()
    o = observe(rows)
    o.machine_cost = MachineCost(Price(3.96))
    assert metrics.requests.goodput_tokens_per_s(o) == 440  # 40 requests/s of 11 tokens
    assert metrics.resources.usd_per_million_tokens(o) == pytest.approx(2.5)
    for row in rows[::2]:
        row["first_s"] += 2.0  # Half of them miss the TTFT of 1 s.
    o = observe(rows)
    o.machine_cost = MachineCost(Price(3.96))
    assert metrics.requests.output_tokens_per_s(o) == pytest.approx(440, rel=0.01), (
        "tokens that missed the SLO do not lower the cost"
    )
    assert metrics.resources.usd_per_million_tokens(o) == pytest.approx(5)


def test_without_a_price_there_are_no_dollars_and_without_a_good_token_no_bound(observe):
    assert math.isnan(metrics.resources.usd_per_million_tokens(observe()))
    o = observe(slo={"ttft_s": 0.001})
    o.machine_cost = MachineCost(Price(1))
    assert metrics.resources.usd_per_million_tokens(o) == math.inf
    o = observe(window=None, counts=None)
    o.machine_cost = MachineCost(Price(1))
    assert math.isnan(metrics.resources.usd_per_million_tokens(o)), "nothing was measured"


def test_tokens_a_joule(observe):
    assert metrics.resources.gpu_tokens_per_joule(
        observe(samples=synthetic_campaign.telemetry(gpus=2))
    ) == pytest.approx(440 / 600, rel=0.01)
    assert math.isnan(metrics.resources.gpu_tokens_per_joule(observe()))


# --- the model's work


def one_request(**changes):
    """A prompt of 32 tokens, and a response of 4 in chunks of 1, 2 and 1, all inside [2, 10)."""
    rows = synthetic_campaign.requests(n=1, tokens=4)
    rows[0] |= {
        "scheduled_s": 2.5,
        "first_s": 3.0,
        "last_s": 5.0,
        "done_s": 5.0,
        "token_s": [3.0, 4.0, 5.0],
        "token_n": [1, 2, 1],
    }
    rows[0] |= changes
    return rows


def test_work_by_hand(computed):
    # The 2nd to 4th token look back on 33, 34 and 35 tokens; the prompt's on 1 to 32.
    assert roofline.model_work(computed(one_request())) == (4, 1, 32, 33 + 34 + 35, 32 * 33 / 2)
    assert roofline.model_work(computed(one_request(token_s=[1.0, 4.0, 5.0]))) == (
        3,
        0,
        0,
        33 + 34 + 35,
        0,
    ), "its prompt ran before the window"
    assert roofline.model_work(computed(one_request(token_s=[3.0, 4.0, 15.0]))) == (
        3,
        1,
        32,
        33 + 34,
        32 * 33 / 2,
    )
    assert roofline.model_work(computed(one_request(token_s=[4.0], token_n=[4]))) == (
        4,
        1,
        32,
        33 + 34 + 35,
        32 * 33 / 2,
    )
    two = one_request() + one_request(prompt_tokens=None, prompt_tokens_asked=32)
    assert roofline.model_work(computed(two)) == (8, 2, 64, 204, 2 * 528)
    assert roofline.model_work(computed([])) == (0, 0, 0, 0, 0)


def test_mbu_by_hand(computed):
    """4 passes read 700 weights each. The 3 later tokens read 3 layers x 2 heads x 5 keys and
    values of every token before them.
    """
    moved = 2 * (4 * 700 + 2 * 3 * 2 * 5 * 102)
    assert metrics.resources.mbu(computed(one_request())) == pytest.approx(moved / 8 / 1e6)
    tied = MODEL | {"shape": SHAPE | {"tied_embeddings": True}}
    assert metrics.resources.mbu(computed(one_request(), model=tied)) == pytest.approx(
        (moved + 2 * 4 * 300) / 8 / 1e6
    ), "the table is the head"


def test_mfu_by_hand(computed):
    """32 prompt tokens and 3 later ones go through 400 weights, 4 through the head's 300; each look
    back costs 4 x 3 x 4 x 5.
    """
    done = 2 * (400 * (32 + 3) + 300 * 4) + 4 * 3 * 4 * 5 * (102 + 528)
    assert metrics.resources.mfu(computed(one_request())) == pytest.approx(done / 8 / 1e9)
    tied = MODEL | {"shape": SHAPE | {"tied_embeddings": True}}
    assert metrics.resources.mfu(computed(one_request(), model=tied)) == pytest.approx(
        (done + 2 * 300 * 35) / 8 / 1e9
    )


def test_passes_are_counted_or_one_per_token_or_a_lower_bound(computed):
    rows = synthetic_campaign.requests()
    assert roofline.weight_passes(computed(rows)) == (440, "one per token")
    # Scrapes at 2 to 9 s are answered a quarter of a second later, inside the window.
    assert roofline.weight_passes(computed(rows, "vllm", said=counted(range(0, 1200, 100)))) == (
        100,
        "counted by vLLM",
    )
    _, how = roofline.weight_passes(computed(rows, "vllm", said=counted([0, 0, 0, 100])[3:]))
    assert how == "at least", "one scrape shows no passes"
    # four requests whose tokens come together: 3 passes at least
    batch = [row for _ in range(4) for row in one_request()]
    assert roofline.weight_passes(computed(batch, "hf_batched")) == (
        pytest.approx(3 / 8),
        "at least",
    )
    together = computed(batch)
    together.run["case"]["options"] = {"batching": "continuous"}  # of a server with the engine hf
    assert roofline.weight_passes(together) == (pytest.approx(3 / 8), "at least")
    # one after the other: none of 6 was shared
    alone = one_request() + one_request(token_s=[6.0, 7.0, 8.0])
    assert roofline.weight_passes(computed(alone, "hf_batched"))[0] == pytest.approx(6 / 8)


def test_an_unknown_limit_has_no_share(computed):
    def shares(**changes):
        o = computed(**changes)
        return metrics.resources.mbu(o), metrics.resources.mfu(o)

    assert all(value > 0 for value in shares())
    unknown = {
        "an engine without a model": {"engine": "simulated"},
        "answers out of a cache": {"said": counted([5] * 10, "serveoff_cache_hits_total")},
        "an older campaign": {"model": {key: MODEL[key] for key in ("name", "path", "planted")}},
        "no dense decoder": {"model": MODEL | {"shape": None}},
        "no peaks": {"given": hardware.NO_COST},
        "no load": {"window": None, "counts": None},
    }
    for why, changes in unknown.items():
        assert all(math.isnan(value) for value in shares(**changes)), why
    assert all(
        value > 0 for value in shares(said=counted([0] * 10, "serveoff_cache_hits_total"))
    ), "a cache without a single hit"
    bytes_share, operations_share = shares(said=counted([5] * 10, roofline.PREFIX_HITS))
    assert bytes_share > 0 and math.isnan(operations_share), "prompts that were not computed"


# --- prices, peaks


MAKERS_PAGES = (
    "https://www.nvidia.com/",
    "https://images.nvidia.com/",
    "https://resources.nvidia.com/",
    # the card exists only at AWS, which publishes NVIDIA's data sheet
    "https://d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet",
)


def manifest(*names):
    return {"manifest": {"gpus": [{"name": name} for name in names]}}


def test_peaks_are_those_of_the_gpus_that_the_server_uses(computed):
    """On one of eight cards MBU was eight times too low."""

    def peak(names, older=False, **run):
        o = computed(given=hardware.NO_COST, **run)
        o.campaign |= manifest(*names)
        if older:
            del o.run["gpus"]
        return roofline.bytes_per_s(o) / metrics.resources.mbu(o)

    eight = ["NVIDIA H200"] * 8
    assert peak(eight, gpus=[3]) == pytest.approx(4.8e12)
    assert peak(eight, gpus=[0, 1]) == pytest.approx(9.6e12)
    assert peak(eight, older=True) == pytest.approx(8 * 4.8e12), "as it was then"
    assert math.isnan(peak(eight, gpus=None)), "it may be any of them"
    assert peak(["NVIDIA H200"], gpus=None) == pytest.approx(4.8e12)
    assert peak(["NVIDIA Z9", "NVIDIA L4"], gpus=[1]) == pytest.approx(300e9)
    assert math.isnan(peak(["NVIDIA H200"], gpus=[])), "it computed on the CPU"


def test_peaks_cover_all_gpus_or_none():
    one = hardware.find_peaks(("NVIDIA H200",), hardware.NO_COST)
    assert (one.bytes_per_s, one.flops) == (4.8e12, 989e12)
    assert (
        "4,800 GB/s" in one.bandwidth_source
        and "nvidia.com/en-us/data-center/h200" in one.bandwidth_source
    )
    two = hardware.find_peaks(("NVIDIA L4", "NVIDIA L4"), hardware.NO_COST)
    assert (two.bytes_per_s, two.flops) == (600e9, 242e12) and "2 × NVIDIA L4" in two.flops_source
    assert hardware.gpu_names(manifest(None)) == ("?",)
    for names in ((), ("NVIDIA L4", "NVIDIA Z9"), ("?",)):
        found = hardware.find_peaks(names, hardware.NO_COST)
        assert (
            math.isnan(found.bytes_per_s) and math.isnan(found.flops) and not found.bandwidth_source
        )
    given = hardware.find_peaks(("NVIDIA L4",), MachineCost(bytes_per_s=25e9))
    assert (given.bytes_per_s, given.flops) == (
        25e9,
        121e12,
    ) and "25 GB/s, given" in given.bandwidth_source


def test_every_price_and_peak_has_a_source_and_a_date():
    for name, price in hardware.read_prices().items():
        assert (
            price.usd_per_hour > 0
            and re.search(r"\w\.\w+/", price.source)
            and re.fullmatch(r"20\d\d-\d\d-\d\d", price.date)
        ), name
        assert price.what and (len(price.gpus) > 0) == ("no GPU" not in price.what), name
        assert not price.gpus or f"{len(price.gpus)} × " in price.what, name
    for name, row in hardware.read_peaks().items():
        assert (
            row["bytes_per_s"] > 1e11
            and row["flops"] > 1e13
            and row["source"].startswith(MAKERS_PAGES)
        ), name
        assert str(row["date"]).startswith("20")
    priced = {name for price in hardware.read_prices().values() for name in price.gpus}
    assert priced <= hardware.read_peaks().keys()


def test_a_peak_of_other_numbers_than_bfloat16_names_them():
    found = hardware.find_peaks(("Tesla T4",), hardware.NO_COST)
    assert found.flops == 65e12 and "1 × Tesla T4 in float16 (" in found.flops_source
    assert "float16" not in found.bandwidth_source
    found = hardware.find_peaks(("NVIDIA L4",), hardware.NO_COST)
    assert "stated for 1 × NVIDIA L4 (" in found.flops_source


def test_options_are_read_and_refused():
    assert hardware.read_machine_cost() == hardware.NO_COST
    assert hardware.read_machine_cost("2.50", "4800", "989") == MachineCost(
        Price(2.5), 4.8e12, 989e12
    )
    assert (
        hardware.read_machine_cost("aws-g6.xlarge").price == hardware.read_prices()["aws-g6.xlarge"]
    )
    for arguments in (
        ("free",),
        ("0",),
        ("-1",),
        ("nan",),
        ("inf",),
        ("",),
        (None, "0"),
        (None, "fast"),
        (None, None, "-5"),
    ):
        with pytest.raises(InputError, match=r"^--"):
            hardware.read_machine_cost(*arguments)


# --- the report
