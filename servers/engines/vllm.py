"""vLLM's `AsyncLLM` in this process: continuous batching and a paged KV cache. Its scheduler and
model run in another process.
"""

import os
import uuid
from collections.abc import AsyncIterator

from servers.engines.vllm_settings import ENVIRONMENT, engine_arguments

os.environ.update(ENVIRONMENT | os.environ)

from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM

from servers.contract.api import ContractError, Outcome, Request
from servers.engines import Generation, Job, Settings, accept_request, encode_prompt
from servers.runtime.cuda_devices import EngineDevice, log_device


class VllmEngine:
    def __init__(self, settings: Settings):
        self.model = settings.model
        # The usage context also decides how many tokens and sequences make a batch.
        self.engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(**engine_arguments(settings)),
            usage_context=UsageContext.OPENAI_API_SERVER,
        )
        self.tokenizer = self.engine.get_tokenizer()
        self.context: int = self.engine.model_config.max_model_len
        self.device_logged = False

    def prepare(self, request: Request) -> Job:
        ids = encode_prompt(self.tokenizer, request)
        return accept_request(request, ids, len(ids), self.model, self.context)

    async def stream(self, job: Job) -> AsyncIterator[str | Outcome]:
        if not self.device_logged:  # here, because only the event loop can ask the workers
            self.device_logged = True
            for device in await self.engine.collective_rpc("describe_weights"):
                log_device(EngineDevice(**device))
        request = job.request
        sampling = SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop=request.stops,
            max_tokens=job.max_tokens,
            ignore_eos=request.ignore_eos,
            output_kind=RequestOutputKind.DELTA,
        )
        with Generation(job) as run:
            run.stops = []  # vLLM handles stop strings itself
            async for output in self.engine.generate(
                {"prompt_token_ids": job.prompt}, sampling, uuid.uuid4().hex
            ):
                piece, times = output.outputs[0], output.metrics
                if text := run.token(piece.text, len(piece.token_ids)):
                    yield text
            # by the scheduler's own clock: its waiting time is queue time, not prompt time
            if times:
                run.waited_s = times.scheduled_ts - times.queued_ts
        if piece.finish_reason not in ("stop", "length"):
            raise ContractError(503, f"the engine ended the request: {piece.finish_reason}")
        yield run.outcome(ended=piece.finish_reason == "stop")

    def close(self) -> None:
        self.engine.shutdown()
