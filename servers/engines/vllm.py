"""vLLM's `AsyncLLM` in this process: continuous batching, paged KV cache; its scheduler and model run in a process of their own."""

import os
import uuid
from collections.abc import AsyncIterator

# Before vLLM is imported. One thread a core of the server's share: on a CPU vLLM would bind itself to cores of its own choice.
os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SERVEOFF_THREADS", "1"))
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; enough for 64 sequences of 2,048 tokens of the small model
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import torch
from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from servers.contract import ContractError, Outcome, Request
from servers.engines import Job, Run, Settings, accept, token_ids


class AsyncEngine:
    def __init__(self, settings: Settings):
        on_gpu = torch.cuda.is_available()
        self.model = settings.model
        self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs(
            model=settings.path, served_model_name=settings.model, dtype="bfloat16",
            enable_prefix_caching=False,  # most measured prompts are unique: stated, not hidden
            # On a CPU, compiling takes a minute and needs a C++ compiler, for about a fifth more speed.
            enforce_eager=not on_gpu,
            # Of the device's memory; on a CPU vLLM refuses to start unless that share is free right now.
            gpu_memory_utilization=0.9 if on_gpu else 0.2,
            **({} if on_gpu else {"max_num_seqs": 64})))
        self.tokenizer = self.engine.get_tokenizer()
        self.context: int = self.engine.model_config.max_model_len

    def prepare(self, request: Request) -> Job:
        ids = token_ids(self.tokenizer, request)
        return accept(request, ids, len(ids), self.model, self.context)

    async def stream(self, job: Job) -> AsyncIterator[str | Outcome]:
        request = job.request
        sampling = SamplingParams(temperature=request.temperature, top_p=request.top_p, seed=request.seed, stop=request.stops,
                                  max_tokens=job.max_tokens, ignore_eos=request.ignore_eos, output_kind=RequestOutputKind.DELTA)
        with Run(job) as run:
            run.stops = []  # vLLM does stop strings itself
            async for output in self.engine.generate({"prompt_token_ids": job.prompt}, sampling, uuid.uuid4().hex):
                piece = output.outputs[0]
                if text := run.token(piece.text, len(piece.token_ids)):
                    yield text
        if piece.finish_reason not in ("stop", "length"):
            raise ContractError(503, f"the engine ended the request: {piece.finish_reason}")
        yield run.outcome(ended=piece.finish_reason == "stop")

    def close(self) -> None:
        self.engine.shutdown()
