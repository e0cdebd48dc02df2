"""Computes the bytes and operations that a model needed in a case's window, from its shape and the
tokens that arrived: the numerators of MBU and MFU.

Only unavoidable work counts: weights read once per forward pass, keys and values read for each
generated token, two operations for each weight that multiplies a token, and attention. Activations,
padding, and the keys and values that a prompt reads of itself do not count.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from analysis.dataset import Json
from analysis.stats import NAN

if TYPE_CHECKING:
    from analysis.case import CaseData

# vLLM adds one observation to this histogram for each step that yields a token
PASSES = "vllm:iteration_tokens_total_count"
PREFIX_HITS = "vllm:prefix_cache_hits_total"  # tokens of prompts


class ModelWork(NamedTuple):
    """The window's tokens: `generated`; among them the `first` of each response; the `prompt`
    tokens of these responses; and the tokens attended to, each token itself included: `context` by
    the later tokens, `prompt_context` by the prompts' tokens.
    """

    generated: float
    first: float
    prompt: float
    context: float
    prompt_context: float


def model_shape(case: "CaseData") -> Json | None:
    """The model's shape if this case computed with it, else None: on a simulated engine, with
    quantised weights (whose bytes and operations differ), or after hits of a response cache.
    """
    shape, setup = (case.campaign.get("model") or {}).get("shape"), case.run.get("case") or {}
    cached = case.served("serveoff_cache_hits_total").max() > 0
    quantized = (setup.get("options") or {}).get("quantization", "none") not in ("none", "f16")
    return None if cached or quantized or setup.get("engine") == "simulated" else shape


def model_work(case: "CaseData") -> ModelWork:
    """Counts a token in the window in which it arrived, and a prompt with its first token. The k-th
    token of a response (k > 1) is computed from the one before it, which attends to the prompt and
    k - 1 tokens.
    """
    chunks = np.array([len(n) for n in case.requests["token_n"]], dtype="int64")
    times, n = case.tokens
    p = np.repeat(
        case.requests["prompt_tokens"].fillna(case.requests["prompt_tokens_asked"]).to_numpy(),
        chunks,
    )
    # a chunk's index in its response
    position = np.arange(len(n)) - np.repeat(np.cumsum(chunks) - chunks, chunks)
    so_far = np.cumsum(n) - n  # tokens before a chunk, of all responses
    before = so_far - np.repeat(so_far[position == 0], chunks[chunks > 0])
    opening, inside = position == 0, case.inside(times)
    context = n * p + n * before + n * (n - 1) / 2 - np.where(opening, p, 0)
    prompts = p[opening & inside]
    return ModelWork(
        n[inside].sum(),
        len(prompts),
        prompts.sum(),
        context[inside].sum(),
        (prompts * (prompts + 1) / 2).sum(),
    )


def weight_passes(case: "CaseData") -> tuple[float, str]:
    """(forward passes per second in the window, how that is known). vLLM counts them; Transformers'
    `generate` makes one for each token of each request. For other engines, an option `batching`, or
    without two scrapes of vLLM's counter, there are at least sum(1 / requests between their first
    and last token) over the chunks that arrived, since one pass yields at most one token for each
    of these requests.
    """
    counted = case.served(PASSES)
    counted = counted[case.inside(counted.index)]
    if len(counted) > 1:
        return float(np.ptp(counted) / np.ptp(counted.index)), "counted by vLLM"
    times, numbers = case.tokens
    inside = case.inside(times)
    measured = case.run.get("case") or {}
    batching = (measured.get("options") or {}).get("batching", "none")
    if measured.get("engine") == "hf" and batching == "none":
        return float(numbers[inside].sum()) / case.length, "one per token"
    streams = [t for t in case.requests["token_s"] if len(t)]
    begun, ended = np.sort([t[0] for t in streams]), np.sort([t[-1] for t in streams])
    at = times[inside]
    together = np.searchsorted(begun, at, "right") - np.searchsorted(ended, at, "left")
    return float((1 / together).sum()) / case.length, "at least"


def bytes_per_s(case: "CaseData") -> float:
    """Bytes per second: weights x forward passes, plus keys and values x tokens attended to; nan if
    the model's shape is unknown.
    """
    s = model_shape(case)
    if not s or not case.length > 0:
        return NAN
    # a pass reads only a few rows of a separate input embedding table
    weights = s["parameters"] - (0 if s["tied_embeddings"] else s["embedding_parameters"])
    cache = 2 * s["layers"] * s["kv_heads"] * s["head_dim"]
    return float(
        s["dtype_bytes"]
        * (weights * weight_passes(case)[0] + cache * model_work(case).context / case.length)
    )


def flops(case: "CaseData") -> float:
    """Operations per second: 2 for each weight that multiplies a token (a prompt needs the output
    head once), 4 x layers x heads x head_dim for each token attended to; nan if the model's shape
    is unknown, or if a prefix cache spared an unknown part of it.
    """
    s = model_shape(case)
    if not s or not case.length > 0 or case.served(PREFIX_HITS).max() > 0:
        return NAN
    w, head = model_work(case), s["embedding_parameters"]
    body = s["parameters"] - (1 if s["tied_embeddings"] else 2) * head
    multiplied = body * (w.prompt + w.generated - w.first) + head * w.generated
    attention = 2 * s["layers"] * s["heads"] * s["head_dim"] * (w.context + w.prompt_context)
    return float(2 * (multiplied + attention) / case.length)
