"""Transformers' own continuous batching: requests join and leave the batch at each step, over a
paged KV cache. Its manager schedules and computes in a thread of this process.

One manager samples in one way: one chooses the likeliest token, and another, made at its first
request, draws. Each has its own batch and cache, and both compute with the same weights.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from functools import cached_property
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from servers.contract.api import ContractError, Outcome, Request
from servers.engines import Generation, Job, Settings
from servers.engines.hf import Transformers

PAGE_TOKENS = 256  # Transformers' default
# As much as vLLM gets on a CPU (servers/engines/vllm_settings.py). By itself, Transformers would
# take nine tenths of the machine's memory.
CPU_CACHE_BYTES = 1 << 30
CPU_REQUESTS = 64
CPU_CACHE_TOKENS = 2048 * CPU_REQUESTS
# of one step; its attention mask, written at the start, has this number x the cache's tokens
CPU_BATCH_TOKENS = 512
# of the GPU's memory beside the weights; the rest is for the requests that draw
GPU_CACHE_SHARE = 0.8
STOP_S = 5.0
NO_EOS = -1  # to Transformers, None means that of the manager


class HfContinuousEngine(Transformers):
    def __init__(self, settings: Settings):
        super().__init__(settings)
        greedy = GenerationConfig(do_sample=False, eos_token_id=NO_EOS)
        try:
            self.greedy = self._create_manager(greedy)
            self.greedy.warmup()  # captures CUDA graphs where it uses them, and makes the cache
        except (AttributeError, ValueError, MemoryError) as error:
            raise SystemExit(
                f"Transformers' continuous batching cannot run this model here: {error}: use"
                " another engine, such as hf or hf_batched"
            ) from None
        # A longer request would wait forever for blocks, and Transformers then stops for all.
        room = self.greedy.batch_processor.cache.num_blocks * PAGE_TOKENS
        self.context = min(self.context, room)
        self.greedy.start()

    @cached_property
    def drawing(self) -> Any:
        # Only what differs from the neutral value gets a processor, which each request then sets.
        sampling = {"temperature": 0.5, "top_p": 0.5, "top_k": 0}
        manager = self._create_manager(
            GenerationConfig(do_sample=True, eos_token_id=NO_EOS, **sampling)
        )
        manager.start()
        return manager

    def _create_manager(self, generation: GenerationConfig) -> Any:
        tokens = min(CPU_CACHE_TOKENS, CPU_CACHE_BYTES // self._bytes_per_token())
        on_cpu = {
            "num_blocks": max(1, tokens // PAGE_TOKENS),
            "max_requests_per_batch": CPU_REQUESTS,
            "max_batch_tokens": CPU_BATCH_TOKENS,
        }
        config = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            allow_block_sharing=False,  # most measured prompts are unique
            per_request_processors=True,
            **(on_cpu if self.device == "cpu" else {"max_memory_percent": GPU_CACHE_SHARE}),
        )
        return self.network.init_continuous_batching(generation, config)

    def _bytes_per_token(self) -> int:
        """Return the size of a token's keys and values in all layers."""
        config = self.network.config
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        kept = getattr(config, "num_key_value_heads", None) or heads
        return int(2 * config.num_hidden_layers * kept * width * self.network.dtype.itemsize)

    def prepare(self, request: Request) -> Job:
        if request.temperature > 0 and request.seed is not None:
            raise ContractError(
                400,
                "seed: this engine draws the tokens of all requests from one generator, so a seed"
                " cannot repeat a response: leave it out, or use temperature 0",
                "seed",
                "unsupported",
            )
        return super().prepare(request)

    async def stream(self, job: Job) -> AsyncIterator[str | Outcome]:
        request, name = job.request, uuid.uuid4().hex
        draws = request.temperature > 0
        manager = self.drawing if draws else self.greedy
        sampling = {"temperature": request.temperature, "top_p": request.top_p} if draws else {}
        outputs: asyncio.Queue[Any] = asyncio.Queue()
        read, ended, finished = self.reader(job), False, False
        with Generation(job) as run:
            manager.register_result_handler(name, outputs.put_nowait)
            try:
                if not manager.add_request(
                    job.prompt,
                    name,
                    job.max_tokens,
                    streaming=True,
                    eos_token_id=NO_EOS if request.ignore_eos else self.eos,
                    **sampling,
                ):
                    raise RuntimeError(f"Transformers' manager: {_reason(manager)}")
                while not (finished or run.stopped):
                    output = await outputs.get()
                    finished = output.is_finished()
                    if output.error:
                        raise RuntimeError(output.error)
                    run.waited_s = output.lifespan[0] - output.created_time
                    for token in output.generated_tokens[run.tokens :]:
                        text, ended = read(token)
                        if ready := run.token(text):
                            yield ready
                        if run.stopped:
                            break
            finally:
                if not finished:
                    _cancel(manager, name)
            if held := run.release_held():
                yield held
        yield run.outcome(ended)

    def close(self) -> None:
        managers = [self.greedy, *([self.drawing] if "drawing" in self.__dict__ else [])]
        for manager in managers:
            manager.stop(timeout=STOP_S, hard_stop=True)


def _reason(manager: Any) -> str:
    return str(manager.background_thread_status.fatal_error or "it is stopping")


def _cancel(manager: Any, name: str) -> None:
    """Stop a request, and drop its outputs: those without a handler would gather in a queue."""
    manager.cancel_request(name)
    manager.output_router.result_handlers.pop(name, None)
    while manager.get_result(timeout=0):
        pass
