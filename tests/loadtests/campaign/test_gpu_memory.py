"""The GPU memory budget: sums by hand, and a campaign on the fake driver's cards that is refused
before it starts anything.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from loadtests.campaign import gpu_memory
from loadtests.campaign.gpu_memory import GIB, Budget, Card, Demand
from loadtests.campaign.targets import Target
from loadtests.errors import UsageError
from loadtests.schema import Case
from servers.runtime import catalog, launch, models
from servers.runtime.cuda_devices import CudaDevice, TorchReport
from tests.helpers.campaign_process import Bench
from tests.helpers.fake_nvml import TWO_CARDS, compile_driver
from tests.helpers.fake_torch import device, install_torch

SERVERS = catalog.list_servers()
# Llama 3.1 8B's config.json
LLAMA_8B = {
    "parameters": 8_030_261_248,
    "dtype_bytes": 2,
    "layers": 32,
    "kv_heads": 8,
    "head_dim": 128,
}
MODEL = models.Model("llama", "", True, LLAMA_8B)
WEIGHTS_GIB, CUDA_GIB = 2 * 8_030_261_248 / GIB, 0.6
# 128 KiB of keys and values per token
LONG_GIB = 4096 * 131_072 / GIB
# of 4,096 tokens
CLOSED = {"arrivals": "closed", "prompt_tokens": [16, 3072], "output_tokens": [2, 1024]}
SCENARIOS = {"long": CLOSED, "open": CLOSED | {"arrivals": "poisson"}}


def card(total_gib: float, free_gib: float | None = None) -> Card:
    return Card(
        "a card", int(total_gib * GIB), int((total_gib if free_gib is None else free_gib) * GIB)
    )


def case(server: str, engine: str = "hf", **options: str) -> Case:
    return Case(1, server, engine, "long", 1, 4, None, 5.0, options)


def demand(*cases: Case, searching: bool = False) -> Demand:
    return Demand(cases, SERVERS, SCENARIOS, searching)


def check(wanted: Case, workers: int, on: Card | None) -> None:
    demands = gpu_memory.list_demands({"": Target()}, [wanted], SCENARIOS, False)
    gpu_memory.check_memory(demands, MODEL, workers, on)


def refusal(wanted: Case, workers: int, on: Card) -> str:
    with pytest.raises(UsageError) as refused:
        check(wanted, workers, on)
    return str(refused.value)


@pytest.mark.parametrize(
    ("total_gib", "model"), [(139, "8b"), (24, "8b"), (16, "1b"), (4, "1b"), (1, "small")]
)
def test_the_largest_model_that_leaves_room(total_gib: float, model: str) -> None:
    assert gpu_memory.default_preset(card(total_gib)) == model


def test_the_default_model_leaves_room_for_the_cases() -> None:
    """A pool of 40 threads holds 20 GiB of keys and values of the largest model's longest requests,
    which do not fit beside its weights.
    """
    busy = demand(replace(case("fastapi_threadpool"), users=64))
    assert gpu_memory.default_preset(card(24), [busy]) == "1b"
    assert gpu_memory.default_preset(card(48), [busy]) == "8b"
    never = demand(replace(case("fastapi_vllm", "vllm"), scenario="open"))
    assert gpu_memory.default_preset(card(24, 1), [never]) == "8b", "no model would help"


def test_without_a_gpu_nothing_changes() -> None:
    wanted = case("flask_gunicorn")
    assert gpu_memory.default_preset(None) == "small"
    assert gpu_memory.default_workers(None, [demand(wanted)], MODEL, 16) == 16
    check(wanted, 1000, None)


def test_sizes_are_those_of_the_published_models() -> None:
    need = Budget(demand(), MODEL, card(80)).need(case("flask_gunicorn"), 2)
    assert (need.processes, need.requests, need.tokens) == (2, 2, 4096)
    assert need.total / GIB == pytest.approx(2 * (WEIGHTS_GIB + CUDA_GIB) + 2 * LONG_GIB)
    presets = models.preset_models()
    assert list(presets) == ["8b", "1b", "small", "tiny"]
    made = presets["8b"].shape
    assert made and LLAMA_8B.items() <= made.items()
    tiny = models.resolve_model("tiny", needs_weights=True)
    assert tiny.shape == presets["tiny"].shape, "as read from the files"


@pytest.mark.parametrize(("free_gib", "count"), [(139, 4), (40, 2), (20, 1), (3, 1)])
def test_as_many_workers_as_fit(free_gib: float, count: int) -> None:
    wanted = [demand(case("flask_gunicorn"))]
    assert gpu_memory.default_workers(card(139, free_gib), wanted, MODEL, 16) == count
    assert gpu_memory.default_workers(card(139), wanted, MODEL, 2) == 2, "no more than the cores"


def test_requests_in_flight_count_and_not_more_than_there_are() -> None:
    def requests(wanted: Case, workers: int = 2, searching: bool = False) -> int:
        budget = Budget(demand(searching=searching), MODEL, card(80))
        return budget.need(wanted, workers).requests

    pool = replace(case("fastapi_threadpool"), users=64)
    assert requests(pool) == 40, "its threads"
    assert requests(replace(pool, users=16)) == 16, "its users"
    assert requests(replace(pool, users=16), searching=True) == 40, "a search raises the users"
    assert requests(replace(pool, options={"threads": "4"})) == 4
    assert requests(replace(case("fastapi_gunicorn"), users=256), workers=4) == 160
    assert requests(replace(case("flask_gunicorn", threads="16"), users=64), workers=2) == 32
    assert requests(replace(case("fastapi_batched", "hf_batched", batch="8"), users=64)) == 8
    assert requests(replace(case("nginx_balanced", replicas="4"), users=64)) == 64
    rated = {"scenario": "open", "users": None, "rate": 4.0}
    assert requests(replace(case("flask_fastcgi"), **rated)) == gpu_memory.MOST_IN_FLIGHT
    assert requests(replace(case("fastapi_vllm", "vllm"), users=64)) == 1, "others wait in vLLM"


def test_every_server_of_a_blocking_engine_declares_its_threads() -> None:
    """The sum is wrong where a pool's size and its server.toml disagree."""
    for name, server in SERVERS.items():
        source = "".join(file.read_text() for file in (catalog.FOLDER / name).glob("*.py"))
        for size in re.findall(r"ThreadPoolExecutor\(max_workers=(\d+)\)", source):
            assert str(server.concurrency) == size, name


@pytest.mark.parametrize(
    ("wanted", "copies"),
    [
        (case("flask_gunicorn"), 16),
        (case("flask_gunicorn", workers="3"), 3),
        (case("fastapi_threadpool"), 1),
        (case("nginx_balanced", replicas="4"), 4),
        (case("nginx_balanced", replicas="2", of="flask_gunicorn"), 16),
        (case("litserve", workers_per_device="2"), 2),
        (case("fastapi_gateway", "vllm"), 1),
    ],
    ids=lambda value: getattr(value, "label", value),
)
def test_every_process_that_loads_the_model_counts(wanted: Case, copies: int) -> None:
    assert SERVERS[wanted.server].copies(wanted.engine, wanted.options, 16) == copies


def test_a_case_that_does_not_fit_is_refused_with_its_sum() -> None:
    check(case("flask_gunicorn", workers="8"), 16, card(139))
    sentence = (
        "flask_gunicorn with long does not fit the GPU (a card): it needs 16 x (15.0 GiB of weights"
        " + 0.6 GiB for CUDA) + 4 requests x 0.50 GiB of keys and values (4,096 tokens) = 250.9"
        " GiB, but only 139.0 of 139.0 GiB are free: give --workers 8"
    )
    assert refusal(case("flask_gunicorn"), 16, card(139)) == sentence
    check(case("flask_gunicorn"), 8, card(139))
    check(case("flask_gunicorn", "simulated"), 1000, card(139))


def test_a_cache_that_only_a_cpu_has_is_refused() -> None:
    wanted = case("fastapi_vllm", "vllm", kv_cache_gib="4")
    assert refusal(wanted, 1, card(139)) == (
        "fastapi_vllm.kv_cache_gib has no effect on a GPU: leave it out, or give --set"
        " fastapi_vllm.gpu_memory_utilization=SHARE"
    )
    check(wanted, 1, None)


def test_forty_threads_hold_forty_requests() -> None:
    pool = replace(case("fastapi_threadpool"), users=64)
    check(replace(pool, users=16), 1, card(24))
    said = refusal(pool, 1, card(24))
    assert "+ 40 requests x 0.50 GiB of keys and values (4,096 tokens) = 35.6 GiB" in said
    assert said.endswith("give --set fastapi_threadpool.threads=16")
    check(replace(pool, options={"threads": "16"}), 1, card(24))


@pytest.mark.parametrize(
    ("wanted", "workers", "on", "remedy"),
    [
        # the share of a card that something else uses: no model is small enough
        (
            case("fastapi_vllm", "vllm"),
            1,
            card(139, 100),
            "free GPU memory, of which 39.0 GiB are in use, or give --set"
            " fastapi_vllm.gpu_memory_utilization=0.71",
        ),
        (case("fastapi_vllm", "vllm"), 1, card(139, 139 * 0.895), "gpu_memory_utilization=0.89"),
        (case("fastapi_vllm", "vllm"), 1, card(16), "give a smaller --model"),
        (
            case("fastapi_vllm", "vllm", max_model_len="131072"),
            1,
            card(24),
            "give --set fastapi_vllm.max_model_len=auto",
        ),
        (case("flask_gunicorn", workers="4"), 1, card(40), "give --set flask_gunicorn.workers=2"),
        (
            case("litserve", workers_per_device="4"),
            1,
            card(40),
            "give --set litserve.workers_per_device=2",
        ),
        (replace(case("fastapi_gunicorn"), users=64), 4, card(24), "give --workers 1 --users 16"),
        (replace(case("tornado"), users=64), 1, card(24), "give --users 16"),
        (case("flask_gunicorn"), 1, card(24, 8), "free GPU memory, of which 16.0 GiB are in use"),
        (case("flask_gunicorn"), 2, card(12), "give a smaller --model"),
    ],
    ids=lambda value: getattr(value, "label", None),
)
def test_the_remedy_helps(wanted: Case, workers: int, on: Card, remedy: str) -> None:
    assert refusal(wanted, workers, on).endswith(remedy)


def test_each_card_needs_room_for_its_part() -> None:
    halves = case("vllm_openai", "vllm", tensor_parallel="2")
    pair = [
        CudaDevice(index, "a card", None, (9, 0), 80 * GIB, free * GIB)
        for index, free in enumerate((79, 40))
    ]
    two = card(80, 79)._replace(cards=2, report=TorchReport("2.14.0", "13.0", tuple(pair), ""))
    assert refusal(halves, 1, two).endswith(
        "vLLM takes 90% of the card (72.0 GiB), but only 40.0 of 80.0 GiB are free: free GPU"
        " memory, of which 40.0 GiB are in use, or give --set"
        " vllm_openai.gpu_memory_utilization=0.49"
    )
    check(case("vllm_openai", "vllm"), 1, two)


@pytest.mark.parametrize("kind", ["fp8", "gptq", "awq"])
def test_quantised_weights_need_less(kind: str) -> None:
    """The 8b model in 8 or 4 bits fits a card of 16 GiB, on which it does not fit otherwise."""
    check(case("vllm_openai", "vllm", quantization=kind), 1, card(16))


def test_parts_of_a_model_need_as_many_cards() -> None:
    halves = case("vllm_openai", "vllm", tensor_parallel="2")
    assert refusal(halves, 1, card(139)).endswith(
        "it needs 2 GPUs, but only 1 can be used: give --set vllm_openai.tensor_parallel=1"
    )
    check(halves, 1, card(16)._replace(cards=2))
    whole = case("vllm_openai", "vllm")
    assert "give --set vllm_openai.tensor_parallel=2" in refusal(
        whole, 1, card(16)._replace(cards=8)
    )


@pytest.mark.parametrize(
    ("wanted", "visible", "used"),
    [
        (case("flask_gunicorn"), [2, 0], [2]),
        (case("vllm_openai", "vllm", tensor_parallel="2"), [2, 0, 1], [2, 0]),
        (case("fastapi_vllm", "vllm"), [], []),
        (case("flask_gunicorn", "simulated"), [2, 0], []),
        (case("own", "external"), [0, 1], None),
        (case("flask_gunicorn"), None, None),
    ],
)
def test_engines_use_the_first_cards_that_they_see(
    wanted: Case, visible: list[int] | None, used: list[int] | None
) -> None:
    assert gpu_memory.used_gpus(wanted, visible) == used


@pytest.mark.parametrize(
    ("held", "expected", "found"),
    [
        ({0: None, 1: 5}, [0], [1]),  # the server chose another one
        ({0: 5, 1: 5}, None, [0, 1]),
        ({0: None, 1: None}, [0], [0]),  # in a container NVML knows other process ids
        ({0: 5, 1: None}, [0, 1], [0, 1]),  # one process is not shown
        ({}, [], []),
    ],
)
def test_gpus_with_the_server_s_memory_are_those_that_it_uses(
    held: dict[int, int | None], expected: list[int] | None, found: list[int], tmp_path: Path
) -> None:
    between = [{"index": index} for index in held]  # the memory is read once per second
    rows = [between, [{"index": n, "server_memory_bytes": m} for n, m in held.items()], between]
    samples = tmp_path / "telemetry.jsonl"
    samples.write_text("".join(json.dumps({"gpus": gpus}) + "\n" for gpus in rows))
    assert gpu_memory.observed_gpus(samples, expected) == found
    assert gpu_memory.observed_gpus(tmp_path / "none", expected) == expected


def test_gpus_that_nvml_does_not_know_are_unknown() -> None:
    assert gpu_memory.visible_gpus(None) == []
    assert gpu_memory.visible_gpus(card(80)._replace(indices=(2, 0))) == (2, 0)
    assert gpu_memory.visible_gpus(card(80)) is None


def test_cuda_counts_cards_as_nvml_does_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def order() -> str:
        return launch.server_environment("hf", models.Model("mine", "/mine", False), 1, {}, False)[
            "CUDA_DEVICE_ORDER"
        ]

    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert order() == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert order() == "FASTEST_FIRST"


def test_no_server_sees_a_gpu_if_the_cpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("SERVEOFF_DEVICE", "cpu")
    model = models.Model("mine", "/mine", False)
    assert launch.server_environment("hf", model, 1, {}, False)["CUDA_VISIBLE_DEVICES"] == ""


def test_a_gpu_of_unknown_memory_needs_a_model() -> None:
    with pytest.raises(UsageError, match=r"memory of the GPU \(a card\) is not known: give"):
        gpu_memory.default_preset(card(0))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """With two cards, of which the second is visible."""
    models.resolve_model("tiny", needs_weights=True)  # otherwise it prints that it generates it
    bench = Bench(tmp_path)
    (tmp_path / "nvml").mkdir()
    bench.environment |= install_torch(tmp_path / "torch", device("Fake B", uuid="b1-2")) | {
        "LD_LIBRARY_PATH": compile_driver(tmp_path / "nvml", TWO_CARDS),
        "CUDA_VISIBLE_DEVICES": "1",
    }
    return bench


COMMAND = (
    *("--servers", "flask_gunicorn"),
    *("--scenarios", "quick"),
    *("--model", "tiny"),
    *("--out", "not_to_be"),
)


def test_a_campaign_is_refused_before_anything_is_started(bench: Bench) -> None:
    bench.refuses(
        "flask_gunicorn with quick does not fit the GPU (Fake B): it needs 128 x (0.0 GiB",
        *COMMAND,
        "--workers",
        "128",
    )


def test_a_gpu_that_torch_cannot_use_is_refused(bench: Bench) -> None:
    bench.environment["FAKE_TORCH"] = json.dumps(
        {"cuda": None, "error": "Torch not compiled with CUDA enabled", "kind": "AssertionError"}
    )
    bench.refuses(
        "torch 2.99.0 cannot compute on this machine's GPU (Fake B): Torch not compiled with CUDA"
        " enabled: install torch for CUDA, as SERVEOFF_DEVICE=gpu nox -s bench does, or set"
        " SERVEOFF_DEVICE=cpu to measure the CPU",
        *COMMAND,
    )
