"""Checks of the number of tokens in a response, by the server's usage, by our own count, and as
requested; and in a prompt, by usage and as made.

Metrics go by usage. Only a known-answer model's words can be counted exactly. For other models only
chunks with text can be counted, and a chunk may hold several tokens.
"""

import numpy as np
import pandas as pd

from analysis.case import CaseData, credible_usage
from analysis.checks.verdict import Check, format_share, is_strict
from analysis.metrics.requests import sum_arrays

MOST_OFF, FEW = 0.03, 0.01  # of a prompt's tokens, and of the prompts
MOST_APART = 0.01  # difference between the metrics' tokens and usage, as a share of all tokens


def check_token_counts(case: CaseData) -> Check:
    """Usage, our own count and the metrics' tokens agree. On our own servers with a known-answer
    model, each complete response must have exactly the requested tokens by all of them; without any
    usage, our count stands in. Elsewhere usage must be credible, the metrics must be within 1% of
    it, and there must not be more chunks than tokens.
    """
    done = _completed(case)
    if is_strict(case):
        return _check_exact_counts(done)
    name, of = "token counts", f"of {len(done):,} responses"
    usage, counted = credible_usage(done), sum_arrays(done["token_n"])
    if done["tokens"].isna().all():
        remedy = "see the check usage"
        return Check(name, None, "invalid", "the server gives no usage", remedy)
    apart = float(usage.sum()), float(counted[usage.notna().to_numpy()].sum())
    if abs(apart[1] - apart[0]) > MOST_APART * apart[0]:
        detail = f"usage has {apart[0]:,.0f} tokens, but the metrics count {apart[1]:,.0f}"
        return Check(name, False, "invalid", detail, "run the campaign again to count by usage")
    absurd = done[done["tokens"].notna() & usage.isna()]
    if len(absurd):
        row = absurd.iloc[0]
        detail = (
            f"usage cannot be right in {len(absurd):,} {of}, such as {row['tokens']:,.0f} tokens"
            f" for {row['max_tokens']:,.0f} requested and {row['tokens_counted']:,.0f} chunks"
            " received: these responses have no TPOT, and their chunks, which may hold several"
            " tokens, count as tokens"
        )
        return Check(name, False, "warning", detail, "check how the server counts its usage")
    more = done[done["tokens_counted"] > usage]
    detail = f"{usage.sum():,.0f} tokens by usage in {done['tokens_counted'].sum():,.0f} chunks"
    if len(more):
        row = more.iloc[0]
        detail = (
            f"{len(more):,} {of} have more chunks with text than tokens, such as"
            f" {row['tokens_counted']:,.0f} chunks for {row['tokens']:,.0f} tokens: either tokens"
            " are split or usage is too low; the metrics go by usage"
        )
    return Check(
        name,
        not len(more),
        "warning",
        detail,
        "compare usage with the model's tokenizer, or measure without a proxy that splits chunks",
    )


def check_usage(case: CaseData) -> Check | None:
    """Every complete response has usage, on endpoints that need not have exact counts."""
    if is_strict(case):
        return None
    done = _completed(case)
    remedy = "configure the server to report usage in streams (stream_options.include_usage)"
    if done.empty:
        return Check("usage", None, "warning", "no complete response", remedy)
    missing = int(done["tokens"].isna().sum())
    detail = "in every response"
    if missing:
        detail = (
            f"missing in {missing:,} of {len(done):,} responses: their chunks count as tokens but"
            " may hold several, so throughput may be too low and TPOT too high"
        )
    return Check("usage", not missing, "warning", detail, remedy)


def check_lengths(case: CaseData) -> Check | None:
    """Responses have as many tokens as requested, on endpoints that need not have exact counts.
    More tokens are a warning. Fewer are a note, since not every server can ignore the end-of-text
    token.
    """
    if is_strict(case):
        return None
    done, name = _completed(case), "response lengths"
    tokens = credible_usage(done)
    known, asked = tokens.notna(), done["max_tokens"]
    if not known.any():
        remedy = "see the check usage"
        return Check(name, None, "note", "no usage to compare with the requested tokens", remedy)
    longer, shorter = int((tokens > asked).sum()), int((tokens < asked).sum())
    means = f"mean {tokens.mean():,.1f} of {asked[known].mean():,.1f} tokens"
    if longer:
        detail = f"{format_share(longer / known.sum())} had more tokens than requested ({means})"
        return Check(
            name,
            False,
            "warning",
            f"{detail}: more work than the scenario defines",
            "configure the server to honour max_tokens",
        )
    detail = "as requested"
    if shorter:
        detail = f"{format_share(shorter / known.sum())} ended early ({means})"
    return Check(
        name,
        not shorter,
        "note",
        detail,
        "compare only with servers whose responses have these lengths",
    )


def check_prompt_lengths(case: CaseData) -> Check | None:
    """Prompts have as many tokens by the server's usage as the load generator made, on endpoints
    that need not have exact counts: a server that truncates prompts works less than others, and one
    that adds to them more.

    A prompt may be off by 3% and 2 tokens. If words have different numbers of tokens, the sum over
    a prompt wanders by their spread, which for most tokenizers is below one token a word: four
    standard deviations are then allowed.
    """
    if is_strict(case):
        return None
    done, name = _completed(case), "prompt lengths"
    lengths = case.run.get("prompt_lengths") or {}
    known = done[done["prompt_tokens"].gt(0)]
    if known.empty:
        remedy = "see the check usage"
        return Check(name, None, "note", "the server does not count the tokens of prompts", remedy)
    real = f"mean {known['prompt_tokens'].mean():,.1f} tokens by usage"
    known = known[known["prompt_tokens_asked"].notna()]
    if known.empty or lengths.get("source") == "assumed":
        remedy = "give --tokenizer, so that Serveoff knows the tokens of the prompts"
        return Check(name, None, "note", f"{real}; the expected number is not known", remedy)
    asked = known["prompt_tokens_asked"].astype(float)
    off = known["prompt_tokens"].astype(float) - asked
    spread = 0.0 if float(lengths.get("per_word") or 1.0).is_integer() else 4.0
    allowed = MOST_OFF * asked + np.maximum(2.0, spread * np.sqrt(asked))
    detail = f"mean {asked.mean():,.1f} tokens sent, {known['prompt_tokens'].mean():,.1f} by usage"
    for wrong, what, remedy in (
        (off < -allowed, "fewer", "raise the server's limit on prompts, or find what cuts them"),
        (off > allowed, "more", "find what adds to prompts, such as a system message of a proxy"),
    ):
        if wrong.mean() > FEW:
            row = known[wrong].sort_values("prompt_tokens_asked").iloc[-1]
            detail = (
                f"{format_share(float(wrong.mean()))} of the prompts have {what} tokens by usage"
                f" than were sent, such as {row['prompt_tokens']:,.0f} of"
                f" {row['prompt_tokens_asked']:,.0f} ({detail})"
            )
            return Check(name, False, "warning", detail, remedy)
    return Check(name, True, "warning", detail, "compare usage with the model's tokenizer")


def _completed(case: CaseData) -> pd.DataFrame:
    return case.rows[~case.rows["failed"]]


def _check_exact_counts(done: pd.DataFrame) -> Check:
    name, remedy = (
        "token counts",
        "the server must honour max_tokens and ignore_eos, and its usage must be right",
    )
    if done.empty:
        return Check(name, None, "invalid", "no complete response", remedy)
    counted = pd.Series(sum_arrays(done["token_n"]), index=done.index)
    words = done["tokens_counted"].fillna(counted)  # absent in older campaigns
    reported = done["tokens"] if done["tokens"].notna().any() else words
    bad = (reported != done["max_tokens"]) | (reported != counted) | (reported != words)
    detail = "usage, text and request agree"
    if bad.any():
        row = done[bad].iloc[0]
        detail = (
            f"{int(bad.sum()):,} of {len(done):,} responses have a wrong number of tokens, such as"
            f" {row['max_tokens']:,.0f} requested, {reported[bad].iloc[0]:,.0f} by usage,"
            f" {words[bad].iloc[0]:,.0f} in the text"
        )
    return Check(name, not bad.any(), "invalid", detail, remedy)
