"""Hugging Face Transformers' own `generate`: blocking, one request per call, in the calling
thread.
"""

from collections.abc import Callable
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from servers.contract.api import Outcome, Request
from servers.engines import Generation, Job, Settings, accept_request, encode_prompt
from servers.runtime.cuda_devices import describe_weights, engine_dtype, log_device


class _Stopped(Exception):
    """Raised to leave `generate`, which does not know the text, after a stop string."""


class _Streamer(BaseStreamer):  # type: ignore[misc]
    """Calls `on_id` for each token. TextIteratorStreamer holds text back to word boundaries, which
    would distort the times.
    """

    def __init__(self, on_id: Callable[[int], None]):
        self.on_id = on_id
        self.prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_seen:
            self.on_id(int(value[0]))
        self.prompt_seen = True

    def end(self) -> None:
        pass


class Transformers:
    """Loads the network and its tokenizer for the engines that use Transformers."""

    def __init__(self, settings: Settings):
        torch.set_num_threads(settings.threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = settings.model
        self.tokenizer = AutoTokenizer.from_pretrained(settings.path)
        self.network = (
            AutoModelForCausalLM.from_pretrained(
                settings.path, dtype=getattr(torch, engine_dtype())
            )
            .to(self.device)
            .eval()
        )
        log_device(describe_weights(self.network.device, self.network.dtype))
        self.context: int = self.network.config.max_position_embeddings
        own = self.network.generation_config
        self.pad, self.eos = own.pad_token_id, own.eos_token_id
        # `generate` takes whatever a request leaves open from here: even the None of ignore_eos,
        # and the model's own sampling defaults, such as a repetition penalty. No other engine uses
        # those, so responses would differ.
        self.network.generation_config = GenerationConfig()

    def prepare(self, request: Request) -> Job:
        ids = encode_prompt(self.tokenizer, request)
        return accept_request(request, ids, len(ids), self.model, self.context)

    def reader(self, job: Job) -> Callable[[int], tuple[str, bool]]:
        """Return a function to call with each token of the response, in order. It returns the
        token's text, and whether the model ends the response with it.
        """
        eos_ids = (
            set()
            if job.request.ignore_eos
            else set(self.eos if isinstance(self.eos, list) else [self.eos])
        )
        # the first piece depends on the tokens before it
        text = DecodeStream(ids=job.prompt[-8:], skip_special_tokens=True)
        return lambda token: (
            text.step(self.tokenizer.backend_tokenizer, token) or "",
            token in eos_ids,
        )

    def configure(
        self, request: Request, max_tokens: int, eos: int | list[int] | None
    ) -> GenerationConfig:
        """Return how `generate` samples for this request; seed torch if it has a seed."""
        sampling: dict[str, Any] = {"do_sample": False}
        if request.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": request.temperature,
                "top_p": request.top_p,
                "top_k": 0,
            }
            if request.seed is not None:
                # the process has one generator: exact only with one request at a time
                torch.manual_seed(request.seed)
        return GenerationConfig(
            max_new_tokens=max_tokens, eos_token_id=eos, pad_token_id=self.pad, **sampling
        )

    def close(self) -> None:
        pass


class HfEngine(Transformers):
    def generate(self, job: Job, on_token: Callable[[str], Any]) -> Outcome:
        read, ended = self.reader(job), False

        def on_id(token: int) -> None:
            nonlocal ended
            text, ended = read(token)
            if ready := run.token(text):
                on_token(ready)
            if run.stopped:
                raise _Stopped

        config = self.configure(
            job.request, job.max_tokens, None if job.request.ignore_eos else self.eos
        )
        with Generation(job) as run, torch.inference_mode():
            ids = torch.tensor([job.prompt], device=self.device)
            try:
                self.network.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=config,
                    streamer=_Streamer(on_id),
                )
            except _Stopped:
                pass
            if held := run.release_held():
                on_token(held)
        return run.outcome(ended)
