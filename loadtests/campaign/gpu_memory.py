"""The memory budget of a GPU: picks the default model and number of worker processes, and rejects
cases that cannot fit. It adds up the weights and CUDA's context of each process, and the keys and
values of all requests that the server computes at once.

It budgets a single card: the engines use the first card that they see, and vLLM with
`tensor_parallel` fills several cards equally. Without a GPU it accepts every case.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from loadtests import schema
from loadtests.campaign.targets import Targets
from loadtests.errors import UsageError
from loadtests.schema import Case, JsonObject
from loadtests.telemetry import engine_gpus
from loadtests.telemetry.engine_gpus import GIB, Card
from loadtests.workload.prompts import longest_request
from loadtests.workload.scenario import Tables
from servers.runtime import catalog, engine_specs, models

# per process: CUDA's context, its libraries and their workspace; about what nvidia-smi shows for a
# process without a model
CUDA_BYTES = 0.6 * GIB
# Nothing bounds the requests in flight of an open loop: a server with more does not keep up.
MOST_IN_FLIGHT = 64
# bytes per weight of a quantised model, whose embeddings keep 2
QUANTIZED_BYTES = {"fp8": 1, "gptq": 0.5, "awq": 0.5}
# processes take turns on a card: more of them hold more copies of the model but compute no faster
MOST_WORKERS = 4


class Demand(NamedTuple):
    """The cases of one target, and its servers and their scenarios by name. `searching`: a search
    for capacity may raise the users of a case.
    """

    cases: Sequence[Case]
    servers: Mapping[str, catalog.ServerSpec]
    scenarios: Tables
    searching: bool = False


def list_demands(
    targets: Targets, cases: Sequence[Case], scenarios: Tables, searching: bool
) -> list[Demand]:
    """One demand for each target, without the cases that compute nothing."""
    computing = [case for case in cases if case.engine != "simulated"]
    return [
        Demand(
            computing,
            {case.server: target.find_server(case.server) for case in computing},
            scenarios,
            searching,
        )
        for target in targets.values()
    ]


def list_ready(demands: Sequence[Demand]) -> list[Case]:
    """The cases whose engine is Serveoff's and installed: they will compute on this machine."""
    return [
        case
        for demand in demands
        for case in demand.cases
        if case.engine in engine_specs.ENGINES
        and not demand.servers[case.server].missing(case.engine, case.options)
    ]


def try_card(card: Card | None, demands: Sequence[Demand]) -> Card | None:
    """Lets torch compute on the card. Returns it with its memory; None if no case computes on it.
    Raises LaunchError.
    """
    ready = list_ready(demands)
    vllm = list(dict.fromkeys(case.server for case in ready if case.engine == "vllm"))
    if card is None:
        engine_gpus.check_cpu(vllm)
    if card is None or not ready:
        return None
    return engine_gpus.try_card(card, vllm)


def announce(card: Card | None) -> None:
    if card is not None:
        print(engine_gpus.describe(card), flush=True)


def planned_card(card: Card | None, demands: Sequence[Demand]) -> Card | None:
    """The card of a plan, which may be made before the installation: torch is only asked for a
    memory that NVML does not give.
    """
    if card is None or not any(demand.cases for demand in demands):
        return None
    return card if card.total_bytes else try_card(card, demands) or card


def expected_device(card: Card | None, demands: Sequence[Demand]) -> JsonObject | None:
    """campaign.json's "engine_device"."""
    return engine_gpus.expected_device(card) if list_ready(demands) else None


class Need(NamedTuple):
    """GPU memory of a case on each of its cards: `processes` with weights, and `requests` at once,
    whose keys and values hold `tokens` each. All sizes in bytes.
    """

    processes: int
    weights: float
    requests: int
    tokens: int
    cache: float

    @property
    def total(self) -> float:
        return self.processes * (self.weights + CUDA_BYTES) + self.requests * self.cache

    def __str__(self) -> str:
        return (
            f"{self.processes} x ({self.weights / GIB:.1f} GiB of weights + {CUDA_BYTES / GIB:.1f}"
            f" GiB for CUDA) + {self.requests} request{'s' * (self.requests != 1)} x"
            f" {self.cache / GIB:.2f} GiB of keys and values ({self.tokens:,} tokens) ="
            f" {self.total / GIB:.1f} GiB"
        )


class Budget(NamedTuple):
    """Judges cases of one demand with one model on one card."""

    demand: Demand
    model: models.Model
    card: Card

    def need(self, case: Case, workers: int) -> Need:
        """What a case needs with that many worker processes. vLLM queues requests until their keys
        and values fit, so it needs room for one, of `max_model_len` if that was chosen.
        """
        shape, server = self.model.shape, self.demand.servers[case.server]
        tokens = sum(longest_request(self.demand.scenarios[case.scenario]))
        parts = tensor_parallel(case)
        processes = server.copies(case.engine, case.options, workers)
        if case.engine == "vllm":
            requests = 1
            length = case.options.get("max_model_len", "auto")
            tokens = tokens if length == "auto" else int(length)
        else:
            in_flight = self._requests_in_flight(case)
            requests = min(
                processes * server.requests_at_once(case.engine, case.options), in_flight
            )
        if shape is None:
            return Need(processes, 0, requests, tokens, 0)
        each = QUANTIZED_BYTES.get(case.options.get("quantization", ""), shape["dtype_bytes"])
        per_token = 2 * shape["layers"] * shape["kv_heads"] * shape["head_dim"]
        return Need(
            processes,
            shape["parameters"] * each / parts,
            requests,
            tokens,
            tokens * per_token * shape["dtype_bytes"] / parts,
        )

    def _requests_in_flight(self, case: Case) -> int:
        if case.users is None:
            cap = self.demand.scenarios[case.scenario].get("max_in_flight", MOST_IN_FLIGHT)
            return int(min(cap, MOST_IN_FLIGHT))
        return max(case.users, MOST_IN_FLIGHT) if self.demand.searching else case.users

    def shortage(self, case: Case, workers: int, spare: float = 0) -> str:
        """Why a case does not fit, with the sum; empty if it fits. `spare`: bytes that vLLM's share
        must leave free. It measures the free memory after CUDA's start, which took some.
        """
        need = self.need(case, workers)
        if (parts := tensor_parallel(case)) > self.card.cards:
            return f"it needs {parts} GPUs, but only {self.card.cards} can be used"
        free, total = smallest_card(self.card, parts)
        there = f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free"
        if case.engine != "vllm":
            return f"it needs {need}, but only {there}" if need.total > free else ""
        share = float(vllm_share(case))
        taken = need.processes * share * total
        words = f"{share:.0%} of the card ({taken / GIB:.1f} GiB)"
        if taken + spare > free:
            return f"vLLM takes {words}, but only {there}"
        if need.total > taken:
            return f"it needs {need}, but vLLM takes only {words}"
        return ""

    def remedy(self, case: Case, workers: int) -> str:
        """What lets the case fit: each change was tried on the sum."""
        free, total = smallest_card(self.card, tensor_parallel(case))
        in_use = total - free
        emptied = self._replace(card=Card(self.card.name, total, total, self.card.cards))
        found = []
        if in_use > GIB and not emptied.shortage(case, workers):
            found = [f"free GPU memory, of which {in_use / GIB:.1f} GiB are in use"]
        tried = [*variations(case, self.demand.servers[case.server], workers)]
        if workers > 1:
            few = variations(case, self.demand.servers[case.server], 1)
            tried += [(f"--workers 1 {text}", changed, count) for text, changed, count in few]
        found += [
            f"give {text}"
            for text, changed, count in tried
            if not self.shortage(changed, count, CUDA_BYTES)
        ][:1]
        return ", or ".join(found) or "give a smaller --model"


def smallest_card(card: Card, parts: int) -> tuple[int, int]:
    """The free and the total memory, in bytes, of that one of the first `parts` cards that has the
    least free: each holds an equal part of the model.
    """
    others = card.report.devices[1:parts] if card.report else ()
    sizes = [(card.free_bytes, card.total_bytes)]
    return min(sizes + [(other.free_bytes, other.total_bytes) for other in others])


def tensor_parallel(case: Case) -> int:
    """How many cards share the model."""
    return int(case.options.get("tensor_parallel", 1))


def vllm_share(case: Case) -> str:
    option = engine_specs.ENGINES["vllm"].options["gpu_memory_utilization"]
    return case.options.get("gpu_memory_utilization", option.default)


def variations(
    case: Case, server: catalog.ServerSpec, workers: int
) -> Iterator[tuple[str, Case, int]]:
    """Yields (options of the command, the case with them, worker processes) that may need less
    memory: the nearest first.
    """

    def with_option(name: str, value: str) -> tuple[str, Case, int]:
        text = f"--set {case.server}.{name}={value}"
        return text, replace(case, options={**case.options, name: value}), workers

    if own := case.options.get("workers"):
        yield from (with_option("workers", str(n)) for n in range(int(own) - 1, 0, -1))
    else:
        yield from ((f"--workers {n}", case, n) for n in range(workers - 1, 0, -1))
    if case.engine == "vllm":
        yield with_option("max_model_len", "auto")
        for percent in range(int(100 * float(vllm_share(case))) - 1, 0, -1):
            yield with_option("gpu_memory_utilization", f"{percent / 100:.2f}")
    for name, values in server.options.items():
        numbers = sorted((int(value) for value in values if value.isdigit()), reverse=True)
        # the fewest cards on which the model fits, but the most of everything else
        numbers = numbers[::-1] if name == "tensor_parallel" else numbers
        yield from (with_option(name, str(n)) for n in numbers)
    if case.engine != "vllm" and case.users:
        yield from (
            (f"--users {n}", replace(case, users=n), workers) for n in range(case.users, 0, -1)
        )


def visible_gpus(card: Card | None) -> Sequence[int] | None:
    """NVML's indices of the GPUs that engines see, in CUDA's order; None if NVML has none of
    them.
    """
    return card.indices or None if card else []


def used_gpus(case: Case, visible: Sequence[int] | None) -> list[int] | None:
    """The GPUs among the `visible` that a case's engine takes; None if unknown."""
    if case.engine == "simulated":
        return []
    if visible is None or case.engine not in engine_specs.ENGINES:
        return None
    return list(visible[: tensor_parallel(case)])


def observed_gpus(samples: Path, expected: list[int] | None) -> list[int] | None:
    """The GPUs on which telemetry saw memory of the server's processes: a server may choose others
    than the expected ones. NVML may not show every process, so fewer GPUs than expected prove
    nothing.
    """
    rows = schema.iterate_lines(samples) if samples.exists() else ()
    seen = {gpu["index"] for row in rows for gpu in row["gpus"] if gpu.get("server_memory_bytes")}
    return sorted(seen) if len(seen) >= max(1, len(expected or ())) else expected


def default_preset(card: Card | None, demands: Sequence[Demand] = ()) -> str:
    """The largest generated model that leaves a fifth of the card free for keys, values and
    activations, and with which all cases fit that fit with the smallest; "small" without a card.
    """
    if card is None:
        return "small"
    if not card.total_bytes:
        raise UsageError(f"the memory of the GPU ({card.name}) is not known: give --model")
    known = list(models.preset_models().items())

    def is_possible(model: models.Model) -> bool:
        shape = model.shape or {}
        return shape["parameters"] * shape["dtype_bytes"] <= 0.8 * card.total_bytes and not any(
            Budget(demand, model, card).shortage(case, 1)
            for demand in demands
            for case in demand.cases
            if not Budget(demand, known[-1][1], card).shortage(case, 1)
        )

    return next((name for name, model in known if is_possible(model)), known[-1][0])


def default_workers(
    card: Card | None, demands: Sequence[Demand], model: models.Model, cores: int
) -> int:
    """The default number of worker processes: one per core, and on a GPU at most MOST_WORKERS and
    no more than fit its memory in any case.
    """
    if card is None:
        return cores

    def fit(count: int) -> bool:
        return not any(
            Budget(demand, model, card).shortage(case, count)
            for demand in demands
            for case in demand.cases
        )

    return next((n for n in range(min(cores, MOST_WORKERS), 1, -1) if fit(n)), 1)


def check_memory(
    demands: Sequence[Demand], model: models.Model, count: int, card: Card | None
) -> None:
    """Raises UsageError for the first case that does not fit. `count`: worker processes."""
    if card is None:
        return
    for case in (case for demand in demands for case in demand.cases):
        if "kv_cache_gib" in case.options:
            raise UsageError(
                f"{case.server}.kv_cache_gib has no effect on a GPU: leave it out, or give"
                f" --set {case.server}.gpu_memory_utilization=SHARE"
            )
    if model.shape is None:  # before its download
        return
    for demand in demands:
        budget = Budget(demand, model, card)
        for case in demand.cases:
            if why := budget.shortage(case, count):
                raise UsageError(
                    f"{case.label} with {case.scenario} does not fit the GPU ({card.name}): {why}:"
                    f" {budget.remedy(case, count)}"
                )
