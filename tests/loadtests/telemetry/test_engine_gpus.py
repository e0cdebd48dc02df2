"""Which GPU the engines use: NVML's view of CUDA_VISIBLE_DEVICES on a fake driver, and what a fake
torch reports about it.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fake_nvml import ONE_CARD, TWO_CARDS, compile_driver, compile_empty_library
from tests.helpers.fake_torch import GIB, device, install_torch
from tests.helpers.python_program import output_of

Found = dict[str, Any]
B = device("Fake B", uuid="b1-2")
PART = device("Fake A MIG 1g.10gb", uuid="a1-2-3", total=10 * GIB, free=9 * GIB)
VLLM = {"vllm": "fastapi_vllm vllm_openai"}
ON_CPU = "set SERVEOFF_DEVICE=cpu to measure the CPU"


def torch(*devices: Found, **script: Any) -> str:
    return json.dumps({"cuda": "13.0", "devices": devices} | script)


def install_vllm(folder: Path, version: str = "0.22.1") -> None:
    """Install a vLLM that reads only numbers in CUDA_VISIBLE_DEVICES."""
    (folder / f"vllm-{version}.dist-info").mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
    (folder / f"vllm-{version}.dist-info" / "METADATA").write_text(text)
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").touch()
    (folder / "vllm" / "platforms.py").write_text(
        "import os\nclass current_platform:\n"
        "    get_device_capability = lambda: int(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    )


def try_cards(folder: Path, source: Path, *wanted: dict[str, str], **options: bool) -> list[Found]:
    """What the campaign finds in each environment, in one process."""
    environment = install_torch(folder / "torch", B) | {
        "LD_LIBRARY_PATH": compile_driver(folder, source, **options)
    }
    printed = output_of("print_engine_gpus", json.dumps(wanted), **environment)
    return list(json.loads(printed))


def test_torch_s_reason_and_a_remedy_that_follows_from_it(tmp_path: Path) -> None:
    reasons = {
        "Torch not compiled with CUDA enabled": (
            {"cuda": None, "kind": "AssertionError"},
            f"install torch for CUDA, as SERVEOFF_DEVICE=gpu nox -s bench does, or {ON_CPU}",
        ),
        "Error 802: system not yet initialized": (
            {},
            "start the driver's daemons (nvidia-fabricmanager on a machine with NVSwitch), or"
            f" {ON_CPU}",
        ),
        "The NVIDIA driver on your system is too old (found version 12040)": (
            {"driver": "12040"},
            "this torch needs a driver for CUDA 13.0, and the installed one is for CUDA 12.4:"
            f" update the driver, or {ON_CPU}",
        ),
        "CUDA error: no kernel image is available for execution on the device": ({}, ON_CPU),
    }
    before = "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions? "
    wanted = []
    for reason, (script, _) in reasons.items():
        text = before * ("Error" in reason) + reason + ". Please look at\nanother line"
        driver = {"CUDA_DRIVER": script.pop("driver")} if "driver" in script else {}
        wanted.append({"CUDA_VISIBLE_DEVICES": "1"} | driver)
        wanted[-1]["FAKE_TORCH"] = torch(error=text, **script)
    found = try_cards(tmp_path, TWO_CARDS, *wanted)
    assert [each["refused"] for each in found] == [
        f"torch 2.99.0 cannot compute on this machine's GPU (Fake B): {reason}: {remedy}"
        for reason, (_, remedy) in reasons.items()
    ]


def test_a_torch_that_gives_no_answer_is_refused(tmp_path: Path) -> None:
    [found] = try_cards(
        tmp_path, TWO_CARDS, {"CUDA_VISIBLE_DEVICES": "1", "FAKE_TORCH": "not JSON"}
    )
    assert found["refused"].startswith(
        "torch could not be asked about this machine's GPU (Fake B): "
    )
    assert found["refused"].endswith(f"; repair it, or {ON_CPU}")


def test_a_card_that_computes_is_described(tmp_path: Path) -> None:
    [found] = try_cards(tmp_path, TWO_CARDS, {"CUDA_VISIBLE_DEVICES": "1"})
    assert found["card"] == found["tried"] == ["Fake B", 80 * GIB, 60 * GIB, 1]
    assert found["described"] == (
        "the engines compute on Fake B (GPU 1): 60.0 of 80.0 GiB free, compute capability 9.0,"
        " bfloat16, torch 2.99.0 for CUDA 13.0"
    )
    assert found["expected"] == {
        "type": "cuda",
        "dtype": "bfloat16",
        "devices": [
            {
                "index": 0,
                "name": "Fake B",
                "uuid": "b1-2",
                "capability": [9, 0],
                "total_bytes": 80 * GIB,
            }
        ],
        "torch": "2.99.0",
        "torch_cuda": "13.0",
    }


def test_entries_of_cuda_visible_devices(tmp_path: Path) -> None:
    """As in CUDA: numbers or starts of UUIDs, up to the first entry that matches no card."""
    two = torch(B, device("Fake A", uuid="a1-2"))
    one = torch(B)
    cards = {"1": (one, [1]), "1,0": (two, [1, 0]), "GPU-b": (one, [1])}
    cards["GPU-b1-2, 7, 0"] = (one, [1])
    unknown = ("2", "MIG-unknown", "GPU-typo", "7,0")
    found = try_cards(
        tmp_path,
        TWO_CARDS,
        *({"CUDA_VISIBLE_DEVICES": n, "FAKE_TORCH": script} for n, (script, _) in cards.items()),
        *({"CUDA_VISIBLE_DEVICES": name} for name in ("", "-1", "NoDevFiles")),
        {"SERVEOFF_DEVICE": "cpu"},
        *({"CUDA_VISIBLE_DEVICES": name} for name in unknown),
    )
    assert [each["indices"] for each in found[:4]] == [indices for _, indices in cards.values()]
    assert [each["card"][0] for each in found[:4]] == ["Fake B"] * 4
    hidden = {"card": None, "expected": {"type": "cpu", "dtype": "bfloat16", "devices": []}}
    assert found[4:8] == [hidden] * 4
    assert [each["refused"] for each in found[8:]] == [
        f"CUDA_VISIBLE_DEVICES={name} names no GPU of this machine (0: Fake A, 1: Fake B): give one"
        f" of these numbers, or {ON_CPU}"
        for name in unknown
    ]


def test_uuids_become_numbers_for_vllm(tmp_path: Path) -> None:
    on_b = {"CUDA_VISIBLE_DEVICES": "GPU-b", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    install_vllm(tmp_path / "torch")
    with_vllm, without, part, volta, hidden = try_cards(
        tmp_path,
        TWO_CARDS,
        on_b | VLLM,
        on_b,
        {"CUDA_VISIBLE_DEVICES": "MIG-a1-2-3", "FAKE_TORCH": torch(PART)} | VLLM,
        on_b | VLLM | {"FAKE_TORCH": torch(B | {"major": 7})},
        {"CUDA_VISIBLE_DEVICES": ""} | VLLM,
    )
    assert with_vllm["environment"] == {
        "CUDA_VISIBLE_DEVICES": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "SERVEOFF_DTYPE": "bfloat16",
    }
    assert without["environment"]["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    assert part["refused"] == (
        "the installed vLLM cannot read CUDA_VISIBLE_DEVICES=MIG-a1-2-3: leave out fastapi_vllm,"
        " vllm_openai, or start a container that sees only this part of the GPU, with"
        " CUDA_VISIBLE_DEVICES unset"
    )
    assert volta["refused"] == (
        "vLLM needs a GPU of compute capability 7.5, and the Fake B has 7.0: leave out"
        " fastapi_vllm, vllm_openai"
    )
    assert hidden["refused"] == (
        "this machine's GPU is hidden, and the installed vLLM computes on GPUs only: leave out"
        " fastapi_vllm, vllm_openai, or install vLLM for CPUs, as SERVEOFF_DEVICE=cpu nox -s bench"
        " does"
    )


def test_a_vllm_for_cpus_is_refused_beside_a_gpu(tmp_path: Path) -> None:
    install_vllm(tmp_path / "torch", "0.32.0+cpu")
    on_gpu, on_cpu = try_cards(tmp_path, TWO_CARDS, VLLM, VLLM | {"CUDA_VISIBLE_DEVICES": ""})
    assert on_gpu["refused"] == (
        "the installed vLLM is a build for CPUs, and this machine has a GPU (Fake A): install vLLM"
        " for CUDA, as SERVEOFF_DEVICE=gpu nox -s bench does, leave out fastapi_vllm, vllm_openai,"
        f" or {ON_CPU}"
    )
    assert on_cpu["card"] is None


def test_a_part_of_a_card_has_torch_s_memory(tmp_path: Path) -> None:
    """In MIG mode NVML describes the whole card, by any name that CUDA accepts for the part."""
    names = ("MIG-a1-2-3", "0", "MIG-GPU-a1-2/1/0")
    found = try_cards(
        tmp_path,
        TWO_CARDS,
        *({"CUDA_VISIBLE_DEVICES": name, "FAKE_TORCH": torch(PART)} for name in names),
    )
    for each in found:
        assert each["card"] == ["Fake A", 0, 0, 1]
        assert each["tried"] == ["Fake A MIG 1g.10gb", 10 * GIB, 9 * GIB, 1]
        assert each["indices"] == [0]


def test_memory_that_nvml_does_not_give_comes_from_torch(tmp_path: Path) -> None:
    """Where GPU and CPU share their memory."""
    [found] = try_cards(
        tmp_path, ONE_CARD, {"FAKE_TORCH": torch(device("Fake GB10", total=120 * GIB))}, old=True
    )
    assert found["card"] == ["Fake 300", 0, 0, 1]
    assert found["tried"] == ["Fake GB10", 120 * GIB, 60 * GIB, 1]


def test_the_type_of_numbers_follows_from_the_capability(tmp_path: Path) -> None:
    def of(major: int, minor: int, **more: str) -> dict[str, str]:
        card = device("Fake B", uuid="b1-2", major=major, minor=minor)
        return {"CUDA_VISIBLE_DEVICES": "1", "FAKE_TORCH": torch(card)} | more

    turing, own, volta, wrong = try_cards(
        tmp_path,
        TWO_CARDS,
        of(7, 5),
        of(7, 5, SERVEOFF_DTYPE="bfloat16"),
        of(7, 0),
        of(9, 0, SERVEOFF_DTYPE="float8"),
    )
    assert turing["environment"]["SERVEOFF_DTYPE"] == turing["expected"]["dtype"] == "float16"
    assert own["expected"]["dtype"] == "bfloat16"
    assert volta["expected"]["dtype"] == "float16", "Transformers computes on it"
    assert wrong["refused"] == (
        "SERVEOFF_DTYPE is 'float8': set it to bfloat16 or float16, or unset it"
    )


def test_a_driver_that_does_not_start_is_not_a_machine_without_a_gpu(tmp_path: Path) -> None:
    updated, broken = {"NVML_FAILS": "18"}, {"NVML_FAILS": "999"}
    first, second, hidden = try_cards(
        tmp_path, TWO_CARDS, updated, broken, broken | {"CUDA_VISIBLE_DEVICES": ""}
    )
    for found, remedy in ((first, "restart the machine"), (second, "repair the NVIDIA driver")):
        assert found["refused"].startswith("NVML does not start (")
        assert found["refused"].endswith(f": {remedy}, or {ON_CPU}")
    assert hidden["card"] is None


def test_another_order_of_the_cards_shows_in_torch_s_uuid(tmp_path: Path) -> None:
    order = {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    [found] = try_cards(tmp_path, TWO_CARDS, order)
    assert (found["tried"][0], found["indices"]) == ("Fake B", [1])


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has an NVIDIA GPU")
def test_cuda_without_nvml_is_found_by_torch(tmp_path: Path) -> None:
    """As on some boards, and in containers that lack the driver's utilities."""
    compile_empty_library(tmp_path / "libcuda.so.1")
    environment = install_torch(tmp_path / "torch", device("Fake Orin", total=64 * GIB))
    environment["LD_LIBRARY_PATH"] = str(tmp_path)
    wanted = json.dumps([{}, {"FAKE_TORCH": torch(error="No CUDA GPUs are available")}])
    found, none = json.loads(output_of("print_engine_gpus", wanted, **environment))
    assert found["card"] == found["tried"] == ["Fake Orin", 64 * GIB, 60 * GIB, 1]
    assert found["described"].startswith("the engines compute on Fake Orin: 60.0 of 64.0 GiB free,")
    assert none["card"] is None
