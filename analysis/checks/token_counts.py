"""Checks of the number of tokens in a response: by the server's usage, by our own count, and as
requested.

Metrics go by usage. Only a known-answer model's words can be counted exactly. For other models only
chunks with text can be counted, and a chunk may hold several tokens.
"""

import pandas as pd

from analysis.case import CaseData, credible_usage
from analysis.checks.verdict import Check, format_share, is_strict
from analysis.metrics.requests import sum_arrays

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
