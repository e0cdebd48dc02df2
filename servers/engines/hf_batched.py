"""Transformers' `generate` for a whole batch: prompts padded on the left, and one call that ends
with its last row.

`generate` accepts a streamer for one sequence only, but a stopping criterion sees each step of all
sequences.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from servers.engines import Job
from servers.engines.batching import KV_POSITIONS, KV_USEFUL, BatchRow
from servers.engines.hf import Transformers


class _Steps(StoppingCriteria):  # type: ignore[misc]
    """Hands each row its token after each step, and returns which rows are done."""

    def __init__(self, engine: Transformers, rows: Sequence[BatchRow]):
        self.readers = [(row, engine.reader(row.job)) for row in rows]

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        KV_POSITIONS.inc(input_ids.numel())
        KV_USEFUL.inc(
            sum(len(row.job.prompt) + row.run.tokens + 1 for row, _ in self.readers if not row.done)
        )
        for (row, read), token in zip(self.readers, input_ids[:, -1].tolist(), strict=True):
            if not row.done:
                row.token(*read(token))
        return torch.tensor([row.done for row, _ in self.readers], device=input_ids.device)


class HfBatchEngine(Transformers):
    max_batch = math.inf  # only memory limits it; the queue in front sets the size

    def kind(self, job: Job) -> Hashable:
        """Return a key of requests that can share a batch: one call samples in one way. A sampled
        request with a seed runs alone, because its tokens would depend on the other rows.
        """
        request = job.request
        if request.temperature == 0:
            return "greedy"
        return (request.temperature, request.top_p) if request.seed is None else id(job)

    def generate_batch(self, rows: Sequence[BatchRow]) -> None:
        prompts = [torch.tensor(row.job.prompt) for row in rows]
        # pads with token 0: any token will do, since it is masked
        ids, mask = (
            pad_sequence(part, batch_first=True, padding_side="left").to(self.device)
            for part in (prompts, [torch.ones_like(prompt) for prompt in prompts])
        )
        # each row knows its own end
        config = self.configure(
            rows[0].job.request, max(row.job.max_tokens for row in rows), eos=None
        )
        with torch.inference_mode():
            self.network.generate(
                ids,
                attention_mask=mask,
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([_Steps(self, rows)]),
            )
