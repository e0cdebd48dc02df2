"""The GPU memory budget: sums by hand, and a campaign on the fake driver's cards that is refused
before it starts anything.
"""

from pathlib import Path

import pytest

from loadtests.campaign import gpu_memory
from loadtests.campaign.gpu_memory import GIB, Card
from loadtests.errors import UsageError
from loadtests.schema import Case
from servers.engines import vllm_settings
from servers.runtime import catalog, launch, models
from tests.helpers.campaign_process import Bench
from tests.helpers.fake_nvml import TWO_CARDS, compile_driver
from tests.helpers.python_program import output_of

SERVERS = catalog.list_servers()
# Llama 3.1 8B's config.json
LLAMA_8B = {
    "parameters": 8_030_261_248,
    "dtype_bytes": 2,
    "layers": 32,
    "kv_heads": 8,
    "head_dim": 128,
}
# 128 KiB of keys and values per token
COPY_GIB = (2 * 8_030_261_248 + 4096 * 131_072) / GIB + 0.6


def card(total_gib: float, free_gib: float | None = None) -> Card:
    return Card(
        "a card", int(total_gib * GIB), int((total_gib if free_gib is None else free_gib) * GIB)
    )


def case(server: str, engine: str = "hf", **options: str) -> Case:
    return Case(1, server, engine, "quick", 1, 4, None, 5.0, options)


@pytest.mark.parametrize(
    ("total_gib", "model"), [(139, "8b"), (24, "8b"), (16, "1b"), (4, "1b"), (1, "small")]
)
def test_the_largest_model_that_leaves_room(total_gib: float, model: str) -> None:
    assert gpu_memory.default_preset(card(total_gib)) == model


def test_without_a_gpu_nothing_changes() -> None:
    assert (
        gpu_memory.default_preset(None) == "small"
        and gpu_memory.default_workers(None, LLAMA_8B, 16) == 16
    )
    gpu_memory.check_memory([case("flask_gunicorn")], SERVERS, LLAMA_8B, 1000, None)


def test_sizes_are_those_of_the_published_models() -> None:
    assert gpu_memory.bytes_per_copy(LLAMA_8B) / GIB == pytest.approx(COPY_GIB)
    assert models.preset_bytes()["8b"] == 2 * LLAMA_8B["parameters"]
    assert gpu_memory.VLLM_SHARE == vllm_settings.GPU_SHARE
    assert list(models.preset_bytes()) == ["8b", "1b", "small", "tiny"]


@pytest.mark.parametrize(("free_gib", "count"), [(139, 4), (40, 2), (20, 1), (3, 1)])
def test_as_many_workers_as_fit(free_gib: float, count: int) -> None:
    assert gpu_memory.default_workers(card(139, free_gib), LLAMA_8B, 16) == count
    assert gpu_memory.default_workers(card(139), LLAMA_8B, 2) == 2, "no more than the cores"


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
    gpu_memory.check_memory([case("flask_gunicorn", workers="8")], SERVERS, LLAMA_8B, 16, card(139))
    sentence = (
        rf"flask_gunicorn does not fit the GPU \(a card\): it needs 16 x {COPY_GIB:.1f} GiB "
        rf"\(weights, keys and values of one context, and CUDA\) = {16 * COPY_GIB:.1f} GiB, "
        r"but only 139.0 GiB are free: give --workers 8"
    )
    with pytest.raises(UsageError, match=sentence):
        gpu_memory.check_memory(
            [case("fastapi_threadpool"), case("flask_gunicorn")], SERVERS, LLAMA_8B, 16, card(139)
        )
    with pytest.raises(
        UsageError,
        match=(
            r"fastapi_vllm .* 1 x 125.1 GiB \(90% of the card, which vLLM reserves\) .* 100.0 GiB"
            r" are free: free"
        ),
    ):
        gpu_memory.check_memory(
            [case("fastapi_vllm", "vllm")], SERVERS, LLAMA_8B, 1, card(139, 100)
        )
    with pytest.raises(UsageError, match="or give a smaller --model"):
        gpu_memory.check_memory([case("fastapi_vllm", "vllm")], SERVERS, LLAMA_8B, 1, card(16))
    gpu_memory.check_memory([case("flask_gunicorn", "simulated")], SERVERS, LLAMA_8B, 1000, card(1))


def test_parts_of_a_model_need_as_many_cards() -> None:
    halves = case("vllm_openai", "vllm", tensor_parallel="2")
    with pytest.raises(
        UsageError,
        match=(
            r"vllm_openai.tensor_parallel=2 needs 2 GPUs, but only 1 can be used: give a smaller"
            r" tensor_parallel"
        ),
    ):
        gpu_memory.check_memory([halves], SERVERS, LLAMA_8B, 1, card(139))
    gpu_memory.check_memory([halves], SERVERS, LLAMA_8B, 1, card(16)._replace(cards=2))


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("1", "Fake B, 1"),
        ("1,0", "Fake B, 2"),
        ("GPU-b", "Fake B, 1"),
        ("GPU-b1-2, 7, 0", "Fake B, 1"),
        ("-1", "None"),
        ("", "None"),
        ("MIG-a1-2", "None"),
        ("2", "None"),
    ],
)
def test_visible_cards_are_counted(visible: str, expected: str, tmp_path: Path) -> None:
    """As in CUDA: numbers or starts of UUIDs, up to the first entry that matches no card."""
    printed = output_of(
        "print_visible_card",
        LD_LIBRARY_PATH=compile_driver(tmp_path, TWO_CARDS),
        CUDA_VISIBLE_DEVICES=visible,
    )
    assert printed.strip() == expected


def test_cuda_counts_cards_as_nvml_does_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def order() -> str:
        return launch.server_environment("hf", models.Model("mine", "/mine", False), 1, {}, False)[
            "CUDA_DEVICE_ORDER"
        ]

    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert order() == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert order() == "FASTEST_FIRST"


def test_a_campaign_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    models.resolve_model("tiny", needs_weights=True)  # otherwise it prints that it generates it
    bench = Bench(tmp_path)
    (tmp_path / "nvml").mkdir()
    bench.environment |= {
        "LD_LIBRARY_PATH": compile_driver(tmp_path / "nvml", TWO_CARDS),
        "CUDA_VISIBLE_DEVICES": "1",
    }
    command = (
        "--servers",
        "flask_gunicorn",
        "--scenarios",
        "quick",
        "--model",
        "tiny",
        "--out",
        "not_to_be",
    )
    bench.check_refusal(
        bench.run(*command, "--workers", "128"),
        "flask_gunicorn does not fit the GPU (Fake B): it needs 128 x 0.6 GiB",
    )
