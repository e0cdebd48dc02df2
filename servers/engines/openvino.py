"""OpenVINO GenAI's continuous batching pipeline on a CPU, in a thread of this process: a paged KV
cache, weights from GGUF.
"""

import asyncio
import itertools
import json
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer

from servers.contract.api import ContractError, Outcome, Request
from servers.engines import Generation, Job, Settings, accept_request, encode_prompt

MAX_SEQUENCES = 64  # as with vLLM on a CPU; the others wait
CACHE_GIB = 1
Put = Callable[[int | BaseException | None], Any]  # a token, a failure, or the end


class _Request:
    """A request of the pipeline. Only the thread touches `handle`."""

    def __init__(self, job: Job, config: Any, put: Put):
        self.job, self.config, self.put = job, config, put
        self.gone = False
        self.handle: Any = None


class OpenvinoEngine:
    def __init__(self, settings: Settings):
        self.model = settings.model
        self.tokenizer = AutoTokenizer.from_pretrained(settings.path)
        shape = json.loads((Path(settings.path) / "config.json").read_text())
        self.context: int = shape["max_position_embeddings"]
        eos = shape.get("eos_token_id")
        found = eos if isinstance(eos, list) else [eos]
        self.eos = {token for token in found if token is not None}
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GIB
        scheduler.max_num_seqs = MAX_SEQUENCES
        scheduler.max_num_batched_tokens = 2048
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = False  # most measured prompts are unique
        self.pipeline = genai.ContinuousBatchingPipeline(
            os.environ["SERVEOFF_CONVERTED"],
            scheduler,
            "CPU",
            {"INFERENCE_NUM_THREADS": settings.threads, "ENABLE_CPU_PINNING": False},
        )
        self.ids = itertools.count()
        self.new: list[_Request] = []
        self.closed = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="openvino", daemon=True)
        self.thread.start()

    def prepare(self, request: Request) -> Job:
        if request.temperature > 0 and request.seed is not None:
            raise ContractError(
                400,
                "seed: all requests draw from one generator here; leave it out, or set temperature"
                " to 0",
                "seed",
                "seed_not_supported",
            )
        ids = encode_prompt(self.tokenizer, request)
        return accept_request(request, ids, len(ids), self.model, self.context)

    async def stream(self, job: Job) -> AsyncIterator[str | Outcome]:
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[int | BaseException | None] = asyncio.Queue()
        asked = _Request(
            job,
            self._configure(job),
            lambda item: loop.call_soon_threadsafe(items.put_nowait, item),
        )
        # the first piece depends on the tokens before it
        text = DecodeStream(ids=job.prompt[-8:], skip_special_tokens=True)
        ended = False
        try:
            with Generation(job) as run:
                with self.changed:
                    self.new.append(asked)
                    self.changed.notify()
                while not run.stopped and (item := await items.get()) is not None:
                    if isinstance(item, BaseException):
                        raise item
                    ended = item in self.eos and not job.request.ignore_eos
                    piece = text.step(self.tokenizer.backend_tokenizer, item) or ""
                    if ready := run.token(piece):
                        yield ready
                if held := run.release_held():
                    yield held
            yield run.outcome(ended)
        finally:
            asked.gone = True

    def _configure(self, job: Job) -> Any:
        request, config = job.request, genai.GenerationConfig()
        config.max_new_tokens = job.max_tokens
        config.ignore_eos = request.ignore_eos
        if not request.ignore_eos:
            config.stop_token_ids = self.eos
        if request.temperature > 0:
            config.do_sample = True
            config.temperature, config.top_p = request.temperature, request.top_p
        return config

    def _run(self) -> None:
        running: list[_Request] = []
        while True:
            with self.changed:
                while not (self.new or running or self.closed):
                    self.changed.wait()
                if self.closed:
                    for asked in (*running, *self.new):
                        asked.put(RuntimeError("the server is stopping"))
                    return
                new, self.new = self.new, []
            try:
                for asked in new:
                    running.append(asked)
                    ids = ov.Tensor(np.array([asked.job.prompt], np.int64))
                    asked.handle = self.pipeline.add_request(next(self.ids), ids, asked.config)
                running = self._step(running)
            except Exception as error:  # the next requests may succeed
                for asked in running:
                    asked.put(error)
                    if asked.handle:
                        asked.handle.stop()
                running = []

    def _step(self, running: list[_Request]) -> list[_Request]:
        """Compute one token of each request; return the requests that go on."""
        for asked in running:
            if asked.gone:
                asked.handle.stop()
        if self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        rest = []
        for asked in running:
            while asked.handle.can_read():
                for output in asked.handle.read().values():
                    for token in output.generated_ids:
                        asked.put(int(token))
            status = asked.handle.get_status()
            if status == genai.GenerationStatus.RUNNING:
                rest.append(asked)
            elif status == genai.GenerationStatus.FINISHED or asked.gone:
                asked.put(None)
            else:
                asked.put(RuntimeError(f"OpenVINO GenAI ended the request: {status.name}"))
        return rest

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()
