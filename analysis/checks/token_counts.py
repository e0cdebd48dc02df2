"""Checks of how many tokens a response has: by the server's usage, by our own count, and as asked.

Numbers are by usage. Only a known-answer model's own words are counted exactly; else a chunk with
text is the only thing that can be counted, and it may hold several tokens.
"""

import pandas as pd

from analysis.case import CaseData, credible_usage
from analysis.checks.verdict import Check, format_share, is_strict
from analysis.metrics.requests import sum_arrays

MOST_APART = 0.01  # of all tokens, what the numbers count against usage


def check_token_counts(case: CaseData) -> Check:
    """Usage, our own count and the tokens behind the numbers agree. On our own servers with a
    known-answer model exactly, and with what was asked, in each complete response; a server that
    never gives usage is judged by our count. Else usage can be believed, the numbers are within 1%
    of it, and there are no more chunks than it has tokens.
    """
    done = _completed(case)
    if is_strict(case):
        return _check_exact_counts(done)
    name, of = "token counts", f"of {len(done):,} responses"
    usage, counted = credible_usage(done), sum_arrays(done["token_n"])
    if done["tokens"].isna().all():
        remedy = "see the check usage"
        return Check(name, None, "invalid", "there is no usage to compare with", remedy)
    apart = float(usage.sum()), float(counted[usage.notna().to_numpy()].sum())
    if abs(apart[1] - apart[0]) > MOST_APART * apart[0]:
        detail = f"usage has {apart[0]:,.0f} tokens, and the numbers count {apart[1]:,.0f}"
        return Check(
            name, False, "invalid", detail, "run the campaign again, so that usage is counted"
        )
    absurd = done[done["tokens"].notna() & usage.isna()]
    if len(absurd):
        row = absurd.iloc[0]
        detail = (
            f"usage cannot be right in {len(absurd):,} {of}, such as {row['tokens']:,.0f} tokens"
            f" where {row['max_tokens']:,.0f} were asked for and {row['tokens_counted']:,.0f}"
            " chunks came: there chunks are counted, which may hold several tokens, and there is no"
            " TPOT"
        )
        return Check(name, False, "warning", detail, "look at how the server counts its usage")
    more = done[done["tokens_counted"] > usage]
    detail = f"{usage.sum():,.0f} tokens by usage in {done['tokens_counted'].sum():,.0f} chunks"
    if len(more):
        row = more.iloc[0]
        detail = (
            f"more chunks with text than tokens in {len(more):,} {of}, such as"
            f" {row['tokens_counted']:,.0f} chunks for {row['tokens']:,.0f} tokens: either a token"
            " is split, or usage is too low; the numbers are by usage"
        )
    return Check(
        name,
        not len(more),
        "warning",
        detail,
        "compare usage with the model's own tokenizer, or measure without what splits the chunks",
    )


def check_usage(case: CaseData) -> Check | None:
    """Every complete response of an endpoint that is not held to exact counts has a usage."""
    if is_strict(case):
        return None
    done = _completed(case)
    remedy = "let the server report usage in streams (stream_options.include_usage)"
    if done.empty:
        return Check("usage", None, "warning", "no complete response", remedy)
    missing = int(done["tokens"].isna().sum())
    detail = "in every response"
    if missing:
        detail = (
            f"missing in {missing:,} of {len(done):,} responses: their tokens are their chunks,"
            " which may hold several, so that throughput may be too low, and TPOT too high"
        )
    return Check("usage", not missing, "warning", detail, remedy)


def check_lengths(case: CaseData) -> Check | None:
    """Responses of an endpoint that is not held to exact counts have as many tokens as were asked
    for: more is a warning, fewer a note, since not every server can be kept from its end of text.
    """
    if is_strict(case):
        return None
    done, name = _completed(case), "response lengths"
    tokens = credible_usage(done)
    known, asked = tokens.notna(), done["max_tokens"]
    if not known.any():
        remedy = "see the check usage"
        return Check(name, None, "note", "no usage to compare with what was asked", remedy)
    longer, shorter = int((tokens > asked).sum()), int((tokens < asked).sum())
    means = f"mean {tokens.mean():,.1f} of {asked[known].mean():,.1f} tokens"
    if longer:
        detail = f"{format_share(longer / known.sum())} had more tokens than asked for ({means})"
        return Check(
            name,
            False,
            "warning",
            f"{detail}: this is more work than the scenario asks for",
            "let the server keep max_tokens",
        )
    detail = "as asked"
    if shorter:
        detail = f"{format_share(shorter / known.sum())} ended early ({means})"
    return Check(
        name,
        not shorter,
        "note",
        detail,
        "compare it only with servers whose responses have these lengths",
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
    words = done["tokens_counted"].fillna(counted)  # which older campaigns do not have
    reported = done["tokens"] if done["tokens"].notna().any() else words
    bad = (reported != done["max_tokens"]) | (reported != counted) | (reported != words)
    detail = "usage, text and what was asked agree"
    if bad.any():
        row = done[bad].iloc[0]
        detail = (
            f"{int(bad.sum()):,} of {len(done):,} responses have another number of tokens, such as"
            f" {row['max_tokens']:,.0f} asked for, {reported[bad].iloc[0]:,.0f} by usage,"
            f" {words[bad].iloc[0]:,.0f} in its text"
        )
    return Check(name, not bad.any(), "invalid", detail, remedy)
