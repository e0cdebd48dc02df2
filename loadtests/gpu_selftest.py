"""Tests whether the GPUs of this machine can be measured: one line for each check, in less than
five minutes. `nox -s gpu` calls this.

Measures nothing. A check that depends on one that failed cannot be made, and gives that as its
reason.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from loadtests.cli import run_command
from loadtests.schema import GPU_FIELDS, JsonObject
from loadtests.telemetry import engine_gpus
from loadtests.telemetry.cores import share_cores
from loadtests.telemetry.gpu import Gpus
from loadtests.telemetry.processes import ProcessTree
from servers.contract.conformance import verify_server
from servers.contract.conformance_checks import plain_answers
from servers.contract.conformance_client import CheckFailed, ConformanceClient
from servers.contract.text_checks import stream_exact
from servers.runtime import catalog, cuda_devices, cuda_toolkit, launch, models
from servers.runtime.cuda_devices import EngineDevice, TorchReport
from servers.runtime.errors import LaunchError

GIB = 2**30
MODEL = "tiny"
READY_S = 150.0  # vLLM compiles at its first start
WATCHED_S = 3.0  # NVML's utilisation is a mean over up to a second
TOKENS = 200  # of each response meanwhile
EXIT_CODES = """\
exit codes:
  0    every check passed
  1    a check failed, or could not be made
  2    the command line is wrong
  130  Ctrl-C"""

# columns without which a report has no utilisation, power and tokens/J
NEEDED = ("utilization_percent", "power_w", "energy_j")

OK, FAILED, NOT_TESTED = "ok", "failed", "could not test"
NO_GPU = "no NVIDIA GPU was found"


class Check(NamedTuple):
    """A check: its name, its state (OK, FAILED or NOT_TESTED), and facts or the reason."""

    name: str
    state: str
    facts: str

    def __str__(self) -> str:
        return f"{self.state:14}  {self.name}: {self.facts}"


def make_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="python -m loadtests.gpu_selftest",
        description=(
            "Tests whether the GPUs of this machine can be measured: driver, CUDA, compilers,"
            " torch, the three servers of the default campaign with a tiny model, and telemetry."
        ),
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def main() -> int:
    make_parser().parse_args()
    return run_command(run)


def run() -> int:
    """Makes all checks and prints each as it ends. Returns the exit code."""
    began = time.monotonic()
    states = []
    for check in list_checks():
        show(str(check))
        states.append(check.state)
    spent_s = time.monotonic() - began
    show(f"\n{len(states)} checks in {spent_s:.0f} s: {describe_states(states)}")
    return 0 if set(states) == {OK} else 1


def show(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` has closed the pipe: the exit code still counts
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def describe_states(states: Sequence[str]) -> str:
    """The result in words, and what to run next."""
    counts = [
        f"{states.count(state)} {words}"
        for state, words in ((FAILED, "failed"), (NOT_TESTED, "could not be made"))
        if state in states
    ]
    if not counts:
        return "all passed\nNext: nox -s bench"
    if FAILED in states:
        following = "follow what the failed checks state, then nox -s gpu"
    else:
        following = "nox -s gpu where an NVIDIA GPU can be used; nox -s bench also runs without one"
    return f"{' and '.join(counts)}\nNext: {following}"


def list_checks() -> Iterator[Check]:
    gpus = Gpus()
    card, driver = check_driver(gpus)
    yield driver
    path = catalog.search_path()
    yield check_c_compiler(path)
    yield check_cuda_toolkit(path)
    report = cuda_devices.ask_torch()
    yield (torch := check_torch(card, report))
    yield from check_kernels(report, torch)
    yield (vllm := check_vllm(card, report, torch))
    model = models.resolve_model(MODEL, needs_weights=torch.state == OK)
    servers = [catalog.find_server(name) for name in catalog.CORE.split(",")]
    for server in servers:
        # the last one is vLLM's, which has the most processes
        watched = gpus if server is servers[-1] else None
        needed = vllm if server.engines[0] == "vllm" else torch
        if needed.state == OK:
            yield from check_server(server, server.engines[0], model, watched)
            continue
        failed = next((each for each in (driver, torch, vllm) if each.state == FAILED), None)
        why = f"{failed.name} did not pass" if failed else driver.facts
        for what in ("start", "answers", "device"):
            yield Check(f"{what} of {server.name}", NOT_TESTED, why)
        if watched:
            yield Check("telemetry", NOT_TESTED, why)


def check_driver(gpus: Gpus) -> tuple[engine_gpus.Card | None, Check]:
    """Returns the GPU that engines will use, and the check."""
    try:
        card = engine_gpus.find_card()
    except LaunchError as error:
        return None, Check("driver", FAILED, str(error))
    if card is None:
        note = cuda_toolkit.detect_machine().note
        by = "SERVEOFF_DEVICE=cpu"
        if os.environ.get("SERVEOFF_DEVICE") != "cpu":
            by = f"{engine_gpus.VISIBLE}={os.environ.get(engine_gpus.VISIBLE)}"
        facts = f"{by} hides the GPU: unset it" if gpus.count else NO_GPU
        return None, Check("driver", NOT_TESTED, f"{facts}; {note}".rstrip("; "))
    if not gpus.count:
        facts = f"torch computes on {card.name}, but NVML does not show it: no telemetry of it"
        return card, Check("driver", FAILED, facts)
    cards = gpus.describe()
    cuda = gpus.cuda_driver()
    supports = f"supports CUDA {cuda[0]}.{cuda[1]}" if cuda else "does not report its CUDA version"
    named = ", ".join(
        str(each["name"])
        + (f" ({each['memory_bytes'] / GIB:.0f} GiB)" if each["memory_bytes"] else "")
        + (" in MIG mode" if each["mig"] else "")
        for each in cards
    )
    return card, Check("driver", OK, f"{cards[0]['driver']} {supports}; it shows {named}")


def check_c_compiler(path: str) -> Check:
    """Triton needs it, which vLLM and torch.compile use on a GPU."""
    if why := cuda_toolkit.why_no_c_compiler(path):
        return Check(
            "C compiler",
            FAILED,
            f"{why}; on a GPU vLLM needs both (Debian: apt install gcc python3-dev)",
        )
    return Check("C compiler", OK, "it compiles with Python.h")


def check_cuda_toolkit(path: str) -> Check:
    """Only FlashInfer's sampler needs it, without which vLLM has another one."""
    runtime = cuda_toolkit.torch_cuda()
    if runtime is None:
        return Check("CUDA toolkit", NOT_TESTED, "there is no torch with CUDA that it would fit")
    if why := cuda_toolkit.why_no_cuda_compiler(runtime, path):
        return Check("CUDA toolkit", OK, f"{why}: vLLM starts with a sampler that needs none")
    return Check("CUDA toolkit", OK, f"it compiles for torch's CUDA {runtime}")


def check_torch(card: engine_gpus.Card | None, report: TorchReport) -> Check:
    """Lets torch use the card as a campaign does, and passes if it can."""
    if card is None:
        found = f"torch {report.torch} is here" if report.torch else "torch is not installed"
        return Check("torch", NOT_TESTED, f"{found}, and no GPU to compute on")
    try:
        tried = engine_gpus.try_card(card._replace(report=report), vllm=())
    except LaunchError as error:
        return Check("torch", FAILED, str(error))
    return Check("torch", OK, engine_gpus.describe(tried))


def check_kernels(report: TorchReport, torch: Check) -> Iterator[Check]:
    """One check for each GPU that torch sees, and one for the reason why it stopped."""
    for device in report.devices:
        yield Check(
            f"kernel on GPU {device.index}",
            OK,
            f"{device.name}, {device.free_bytes / GIB:.1f} of {device.total_bytes / GIB:.1f} GiB"
            " free",
        )
    if torch.state != OK:
        yield Check("kernel", NOT_TESTED, "torch cannot use a GPU")
    elif report.reason:
        yield Check("kernel", FAILED, f"not on every GPU; torch reports: {report.reason}")


def check_vllm(card: engine_gpus.Card | None, report: TorchReport, torch: Check) -> Check:
    """Asks whether the installed vLLM is made for this GPU, before it is started."""
    if card is None or torch.state != OK:
        return Check("vLLM", NOT_TESTED, "torch cannot use a GPU")
    try:
        engine_gpus.try_card(card._replace(report=report), ["fastapi_vllm"])
    except LaunchError as error:
        return Check("vLLM", FAILED, str(error))
    return Check("vLLM", OK, "it is built for GPUs, and for this kind")


def check_server(
    server: catalog.ServerSpec, engine: str, model: models.Model, watched: Gpus | None
) -> Iterator[Check]:
    """Starts a server, and checks its responses and the device of its engine; with `watched`, also
    the telemetry of these GPUs while it generates.
    """
    start = f"start of {server.name}"
    if missing := server.missing(engine):
        yield Check(start, FAILED, f"{', '.join(missing)} is not installed: nox -s gpu installs it")
        return
    share = launch.CoreShare(threads=share_cores()["threads"])
    with tempfile.TemporaryDirectory(prefix="serveoff-gpu-") as folder:
        try:
            with launch.run_server(
                server, engine, model, share, Path(folder, "server.log"), ready_timeout_s=READY_S
            ) as up:
                yield Check(
                    start, OK, f"{engine} with the model {model.name} after {up.startup_s:.0f} s"
                )
                yield check_answers(server.name, up.base_url, model)
                yield check_device(server.name, cuda_devices.read_devices(Path(folder)))
                if watched:
                    yield watch_gpus(watched, up, model)
        except LaunchError as error:
            yield Check(start, FAILED, str(error))
            if watched:
                yield Check("telemetry", NOT_TESTED, f"{server.name} did not start")


def check_answers(name: str, url: str, model: models.Model) -> Check:
    """Compares a few responses, whole and streamed, with the known ones."""
    results = verify_server(
        url, model=model.name, planted=model.planted, checks=(plain_answers, stream_exact)
    )
    wrong = [each.detail for each in results if not each.ok]
    facts = "; ".join(wrong or [each.detail for each in results])
    return Check(f"answers of {name}", FAILED if wrong else OK, facts)


def check_device(name: str, devices: Collection[EngineDevice]) -> Check:
    what = f"device of {name}"
    if not devices:
        return Check(what, FAILED, "the engine has not reported where it computed")
    named = ", ".join(
        dict.fromkeys(f"{each.name or each.type} with {each.dtype}" for each in devices)
    )
    if any(each.type != "cuda" for each in devices):
        return Check(what, FAILED, f"{named}, not the GPU")
    return Check(what, OK, named)


def watch_gpus(gpus: Gpus, up: launch.RunningServer, model: models.Model) -> Check:
    """Reads NVML as a campaign does, while the server generates."""
    if not gpus.count:
        return Check("telemetry", FAILED, "NVML shows no GPU: a campaign has no numbers of it")
    client = ConformanceClient(up.base_url, model.name, model.planted)
    over = threading.Event()
    failures: list[str] = []

    def generate() -> None:
        try:
            while not over.is_set():
                client.complete(client.prompt(), TOKENS)
        except (CheckFailed, OSError) as error:
            failures.append(str(error))

    tree = ProcessTree(*up.pids)
    tree.find_processes()
    generating = threading.Thread(target=generate, daemon=True)
    generating.start()
    samples: list[list[JsonObject]] = []
    ends = time.monotonic() + WATCHED_S
    while time.monotonic() < ends:
        time.sleep(0.2)
        slow = gpus.sample_slow(frozenset(tree.members))
        samples.append([card | more for card, more in zip(gpus.sample(), slow, strict=True)])
    over.set()
    generating.join()
    if failures:
        return Check("telemetry", NOT_TESTED, f"a response failed meanwhile: {failures[0]}")
    return check_telemetry(samples, any(card["mig"] for card in gpus.describe()))


def check_telemetry(samples: Iterable[Iterable[Mapping[str, Any]]], mig: bool = False) -> Check:
    """`samples`: rows of GPU_FIELDS of each card. A column is missing if no card ever had it; some
    cards have not all of them, and in MIG mode NVML knows no utilisation.
    """
    rows = [card for sample in samples for card in sample]
    known = {name for row in rows for name, value in row.items() if value is not None}
    missing = [name for name in GPU_FIELDS if name not in known]
    facts = f"{len(known) - 1} of {len(GPU_FIELDS) - 1} columns have values"
    for name, unit in (("utilization_percent", "%"), ("power_w", " W")):
        if name in known:
            most = max(row[name] for row in rows if row[name] is not None)
            facts += f", {name} at most {most:.0f}{unit}"
    if missing:
        facts += f"; the driver gives no {', '.join(missing)}"
    if "server_memory_bytes" in missing:
        facts += " (in a container NVML has the host's process ids)"
    needed = [name for name in NEEDED if not (mig and name == "utilization_percent")]
    return Check("telemetry", FAILED if set(needed) & set(missing) else OK, facts)


if __name__ == "__main__":
    sys.exit(main())
