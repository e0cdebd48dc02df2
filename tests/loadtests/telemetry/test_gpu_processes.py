"""The memory of a server's processes on a GPU, with an old driver and in a container."""

from pathlib import Path

import pytest

from loadtests.telemetry import gpu
from tests.helpers.fake_nvml import ONE_CARD, TWO_CARDS, compile_driver
from tests.helpers.python_program import output_of


def print_memory(driver: str, *arguments: str) -> list[str]:
    return output_of(
        "print_server_memory", *arguments, LD_LIBRARY_PATH=driver, SERVER_PID="4242"
    ).splitlines()


def test_a_driver_without_a_function_costs_that_value_only(tmp_path: Path) -> None:
    """nvidia-ml-py then raises an error that is no NVMLError."""
    assert print_memory(compile_driver(tmp_path, ONE_CARD, old=True)) == [
        "GPU 0: the driver is too old for it (server_memory_bytes): null where this happens",
        "[null]",
    ]


@pytest.mark.skipif(
    not gpu.sees_host_processes(), reason="this is a container with process ids of its own"
)
def test_the_host_s_process_ids_are_ours_outside_of_containers(tmp_path: Path) -> None:
    [*_, memory] = print_memory(compile_driver(tmp_path, TWO_CARDS))
    assert memory == f"[{5 << 30}, null]"


def test_in_a_container_the_host_s_process_ids_mean_nothing(tmp_path: Path) -> None:
    """One of them may happen to equal an id of the server."""
    assert print_memory(compile_driver(tmp_path, TWO_CARDS), "container") == [
        "in this container NVML's process ids are the host's: server_memory_bytes is null",
        "[null, null]",
    ]
