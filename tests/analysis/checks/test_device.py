"""A case whose engine computed elsewhere than on the device that the campaign found is invalid."""

from typing import Any

import pytest

from analysis.checks.device import check_device

Device = dict[str, Any]


def gpu(name: str = "Fake A", uuid: str | None = "a1") -> Device:
    return {"type": "cuda", "name": name, "uuid": uuid, "dtype": "bfloat16", "source": "engine"}


CPU = {"type": "cpu", "name": None, "uuid": None, "dtype": "bfloat16", "source": "engine"}
# as vLLM's own server, which only knows that it was started for a GPU
STARTED = gpu() | {"name": None, "uuid": None, "source": "start"}
ONE = {"type": "cuda", "dtype": "bfloat16", "devices": [gpu()]}
TWO = ONE | {"devices": [gpu(), gpu(uuid="a2")]}
ON_CPU = {"type": "cpu", "dtype": "bfloat16", "devices": []}


@pytest.mark.parametrize(
    ("expected", "found", "detail"),
    [
        (ONE, [CPU], "it computed on the CPU, not on Fake A"),
        (ONE, [gpu(), CPU], "it computed on the CPU, not on Fake A"),
        (ONE, [gpu("Fake B", "b1")], "it computed on Fake B, not on Fake A"),
        (ONE, [gpu(uuid="a2")], "it computed on Fake A a2, not on Fake A a1"),
        (TWO, [gpu(uuid="a2")], "it computed on Fake A a2, not on Fake A a1"),
        (ON_CPU, [gpu()], "it computed on Fake A, not on the CPU"),
        (ON_CPU, [STARTED], "it computed on cuda, not on the CPU"),
    ],
)
def test_another_device_is_invalid(
    expected: Device, found: list[Device], detail: str, observe: Any
) -> None:
    case = observe(engine="hf", data={"engine_device": expected}, devices=found)
    check = check_device(case)
    assert (check.ok, check.severity, check.detail) == (False, "invalid", detail)


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        (ONE, [gpu()]),
        (ONE, [STARTED]),
        (ONE, [gpu(uuid=None)]),
        (TWO, [gpu(uuid="a2"), gpu()]),
        (ON_CPU, [CPU]),
    ],
)
def test_the_expected_device_passes(expected: Device, found: list[Device], observe: Any) -> None:
    assert check_device(observe(engine="hf", data={"engine_device": expected}, devices=found)).ok


def test_an_unknown_device_is_no_mismatch(observe: Any) -> None:
    check = check_device(observe(engine="hf", data={"engine_device": ONE}, devices=None))
    assert (check.ok, check.detail) == (None, "the engine did not report its device")
    assert check_device(observe(engine="hf", devices=[CPU])) is None, "an older campaign"
    simulated = observe(engine="simulated", data={"engine_device": ONE}, devices=None)
    assert check_device(simulated) is None
