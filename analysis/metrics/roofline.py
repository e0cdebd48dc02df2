"""What a model had to move and to compute in a case's window, from its shape and the tokens that
arrived: the numerators of MBU and MFU.

Only what no implementation can avoid is counted: weights read once a forward pass, keys and values
read for each generated token, two operations for each weight that multiplies a token, attention.
Activations, padding, and what a prompt reads of itself are not.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from analysis.dataset import Json
from analysis.stats import NAN

if TYPE_CHECKING:
    from analysis.case import CaseData

# vLLM observes that histogram once for each step that brought a token
PASSES = "vllm:iteration_tokens_total_count"


class ModelWork(NamedTuple):
    """Of the window: `generated` tokens, those of them that are a prompt's `first`, `prompt` tokens
    of these prompts, and how many tokens the tokens looked back on, themselves included: `context`
    of later tokens, `prompt_context` of the prompts'.
    """

    generated: float
    first: float
    prompt: float
    context: float
    prompt_context: float


def model_shape(case: "CaseData") -> Json | None:
    """The model's shape if this case computed with it: not on a simulated engine, not with weights
    that were quantised, whose bytes and operations are others, and not where answers came out of a
    cache.
    """
    shape, setup = (case.campaign.get("model") or {}).get("shape"), case.run.get("case") or {}
    cached = case.served("serveoff_cache_hits_total").max() > 0
    quantized = (setup.get("options") or {}).get("quantization", "none") != "none"
    return None if cached or quantized or setup.get("engine") == "simulated" else shape


def model_work(case: "CaseData") -> ModelWork:
    """By when a token arrived; a prompt counts when its first token does. The k-th token of an
    answer (k > 1) is computed from the one before it, which looks back on the prompt and k - 1
    tokens.
    """
    chunks = np.array([len(n) for n in case.requests["token_n"]], dtype="int64")
    times, n = case.tokens
    p = np.repeat(
        case.requests["prompt_tokens"].fillna(case.requests["prompt_tokens_asked"]).to_numpy(),
        chunks,
    )
    # of a chunk in its answer
    position = np.arange(len(n)) - np.repeat(np.cumsum(chunks) - chunks, chunks)
    so_far = np.cumsum(n) - n  # tokens before a chunk, of all answers
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
    """(forward passes a second in the window, how that is known). vLLM counts them; Transformers'
    `generate` makes one for each token of each request. Else at least sum(1 / requests between
    their first and last token at that moment) over the chunks that arrived, since one pass brings
    each of those requests one token at most (engine hf_batched, or vLLM's counter was not seen
    twice).
    """
    counted = case.served(PASSES)
    counted = counted[case.inside(counted.index)]
    if len(counted) > 1:
        return float(np.ptp(counted) / np.ptp(counted.index)), "counted by vLLM"
    times, numbers = case.tokens
    inside = case.inside(times)
    if (case.run.get("case") or {}).get("engine") == "hf":
        return float(numbers[inside].sum()) / case.length, "one a token"
    streams = [t for t in case.requests["token_s"] if len(t)]
    begun, ended = np.sort([t[0] for t in streams]), np.sort([t[-1] for t in streams])
    at = times[inside]
    together = np.searchsorted(begun, at, "right") - np.searchsorted(ended, at, "left")
    return float((1 / together).sum()) / case.length, "at least"


def bytes_per_s(case: "CaseData") -> float:
    """Weights x forward passes, and keys and values x tokens looked back on; nan if the model's
    shape is not known.
    """
    s = model_shape(case)
    if not s or not case.length > 0:
        return NAN
    # of an input table a pass reads a few rows
    weights = s["parameters"] - (0 if s["tied_embeddings"] else s["embedding_parameters"])
    cache = 2 * s["layers"] * s["kv_heads"] * s["head_dim"]
    return float(
        s["dtype_bytes"]
        * (weights * weight_passes(case)[0] + cache * model_work(case).context / case.length)
    )


def flops(case: "CaseData") -> float:
    """Operations a second: 2 for each weight that multiplies a token (a prompt needs the output
    head once), 4 x layers x heads x head_dim for each token looked back on; nan if the model's
    shape is not known.
    """
    s = model_shape(case)
    if not s or not case.length > 0:
        return NAN
    w, head = model_work(case), s["embedding_parameters"]
    body = s["parameters"] - (1 if s["tied_embeddings"] else 2) * head
    multiplied = body * (w.prompt + w.generated - w.first) + head * w.generated
    attention = 2 * s["layers"] * s["heads"] * s["head_dim"] * (w.context + w.prompt_context)
    return float(2 * (multiplied + attention) / case.length)
