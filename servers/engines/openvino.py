"""OpenVINO GenAI's continuous batching pipeline on a CPU, in a thread of this process: a paged KV
cache, weights from GGUF.
"""

import asyncio
import itertools
import json
import os
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer

from servers.contract.api import ContractError, JsonObject, Outcome, Request
from servers.engines import Generation, Job, Settings, accept_request, encode_prompt

# As with vLLM on a CPU; the others wait here. With dynamic_split_fuse, the pipeline itself runs
# more than its max_num_seqs at once, and it does not report how long a request waited.
MAX_SEQUENCES = 64
CACHE_BYTES = 1 << 30
BLOCK_TOKENS = 32  # OpenVINO's, on a CPU
TURN_S = 0.02  # at most, for the event loop after a step
VALUE_BYTES = 2  # of a key's or value's number
Put = Callable[[int | BaseException | None], Any]  # a token, a failure, or the end


class _Request:
    """A request of the pipeline. Only the thread touches `handle` and sets `admitted`."""

    def __init__(self, job: Job, config: Any, put: Put):
        self.job, self.config, self.put = job, config, put
        self.gone = False
        self.blocks = -(-(job.prompt_tokens + job.max_tokens) // BLOCK_TOKENS)
        self.handle: Any = None
        self.admitted = 0.0


class OpenvinoEngine:
    def __init__(self, settings: Settings):
        self.model = settings.model
        self.tokenizer = AutoTokenizer.from_pretrained(settings.path)
        folder = Path(settings.path)
        shape = json.loads((folder / "config.json").read_text())
        # Each request reserves its blocks: when none is free, the pipeline crashes at times
        # (https://github.com/openvinotoolkit/model_server/issues/4428), and it ends all requests
        # when one can never fit.
        self.blocks = max(1, CACHE_BYTES // (_bytes_per_token(shape) * BLOCK_TOKENS))
        self.context: int = min(shape["max_position_embeddings"], self.blocks * BLOCK_TOKENS)
        self.eos = find_end_tokens(folder)
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = self.blocks
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
        self.loop: asyncio.AbstractEventLoop | None = None
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="openvino", daemon=True)
        self.thread.start()

    def prepare(self, request: Request) -> Job:
        ids = encode_prompt(self.tokenizer, request)
        return accept_request(request, ids, len(ids), self.model, self.context)

    async def stream(self, job: Job) -> AsyncIterator[str | Outcome]:
        self.loop = loop = asyncio.get_running_loop()
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
                    if self.closed:
                        raise _stopping()
                    self.new.append(asked)
                    self.changed.notify()
                while not run.stopped and (item := await items.get()) is not None:
                    if isinstance(item, BaseException):
                        raise item
                    run.waited_s = asked.admitted - run.began
                    ended = item in self.eos and not job.request.ignore_eos
                    piece = text.step(self.tokenizer.backend_tokenizer, item) or ""
                    if ready := run.token(piece):
                        yield ready
                if held := run.release_held():
                    yield held
            # the pipeline may know one more end token, from the file of the weights
            yield run.outcome(ended or run.tokens < job.max_tokens)
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
            # each request has a generator of its own, by default with the same seed
            seed = secrets.randbits(64) if request.seed is None else request.seed
            config.rng_seed = seed % 2**64
        return config

    def _run(self) -> None:
        running: list[_Request] = []
        while True:
            with self.changed:
                while not (self.new or running or self.closed):
                    self.changed.wait()
                if self.closed:
                    for asked in (*running, *self.new):
                        asked.put(_stopping())
                    return
                new = self._take(running)
            running += [asked for asked in new if self._admit(asked)]
            try:
                running = self._step(running)
                self._let_loop_run()
            except Exception as error:  # the next requests may succeed
                for asked in running:
                    asked.put(error)
                    asked.handle.stop()
                running = []

    def _take(self, running: list[_Request]) -> list[_Request]:
        """Return the requests that fit beside the running ones now, in order of arrival; the others
        stay in `new`.
        """
        taken: list[_Request] = []
        waiting = [asked for asked in self.new if not asked.gone]
        free = self.blocks - sum(asked.blocks for asked in running)
        while waiting and len(running) + len(taken) < MAX_SEQUENCES and waiting[0].blocks <= free:
            taken.append(waiting.pop(0))
            free -= taken[-1].blocks
        self.new = waiting
        return taken

    def _admit(self, asked: _Request) -> bool:
        asked.admitted = time.perf_counter()
        ids = ov.Tensor(np.array([asked.job.prompt], np.int64))
        try:
            asked.handle = self.pipeline.add_request(next(self.ids), ids, asked.config)
        except Exception as error:  # of this request only
            asked.put(error)
        return asked.handle is not None

    def _let_loop_run(self) -> None:
        """Wait until the event loop has passed the new tokens on. A step of the pipeline holds
        Python's lock from its start to its end: otherwise tokens and new requests often wait for
        several steps.
        """
        loop = self.loop
        if loop:
            passed_on = threading.Event()
            # in its first round the loop wakes the streams, in its second they send
            loop.call_soon_threadsafe(lambda: loop.call_soon(loop.call_soon, passed_on.set))
            passed_on.wait(TURN_S)

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


def find_end_tokens(folder: Path) -> set[int]:
    """Return the ids of the tokens that end a response, from the file that Transformers prefers;
    often one, sometimes several or none.
    """
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        found = json.loads(file.read_text()).get("eos_token_id") if file.exists() else None
        if found is not None:
            return set(found) if isinstance(found, list) else {found}
    return set()


def _bytes_per_token(shape: JsonObject) -> int:
    """Return the size of a token's keys and values in all layers."""
    heads = shape["num_attention_heads"]
    width = shape.get("head_dim") or shape["hidden_size"] // heads
    kept = shape.get("num_key_value_heads") or heads
    return int(2 * shape["num_hidden_layers"] * kept * width * VALUE_BYTES)


def _stopping() -> ContractError:
    return ContractError(503, "the server is stopping: send the request to another")
