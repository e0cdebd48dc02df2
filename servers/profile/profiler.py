"""Finds out what an endpoint is and does with requests like those of a load: `profile_endpoint`.

It adapts where the numbers stay right, and notes what cannot be exact. It refuses an endpoint whose
numbers would be wrong, with one sentence that explains why.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from servers.contract import JsonObject, oracle
from servers.contract.text_mixing import find_foreign_run
from servers.profile.access import OPEN, Access
from servers.profile.client import Completion, ProfileError, send
from servers.profile.endpoint import (
    Endpoint,
    candidate_roots,
    choose_model,
    completion_url,
    find_endpoint,
    read_context,
)
from servers.profile.notes import make_notes
from servers.profile.prober import TOKENS, Prober, find_paths
from servers.profile.profile import (
    CONTINUOUS,
    ENDPOINTS,
    IN_STREAM,
    NEVER,
    PLAIN_ONLY,
    Dialect,
    Profile,
)
from servers.profile.prompt_lengths import (
    ASSUMED,
    TOKENIZE,
    TOKENIZER,
    USAGE,
    WORDS,
    CountText,
    Messages,
    PromptLengths,
    measure_lengths,
)
from servers.profile.usage_probes import (
    Sample,
    complete_plain,
    find_usage,
    raise_if_cumulative,
    raise_if_prompt_counted,
)

IN_FLIGHT = 4
# fields of --body that may end a response although its length is requested
ENDING_FIELDS = {"ignore_eos", "stop", "stop_token_ids", "response_format", "tools", "tool_choice"}
METRICS = ("vllm", "sglang", "tgi", "llamacpp", "trtllm", "nv", "serveoff", "ray", "litellm")


def profile_endpoint(
    url: str,
    *,
    access: Access = OPEN,
    model: str | None = None,
    extra: JsonObject | None = None,
    needed: Sequence[str] = (),
    ready_timeout_s: float | None = None,
    say: Callable[[str], None] = lambda _: None,
    count_text: CountText | None = None,
) -> Profile:
    """Profile the endpoint at a URL. `extra`: fields for the body of each request. `needed`: which
    of `chat` and `completions` must exist; empty: either. `say` receives a line when it has to
    wait. `count_text`: the model's tokenizer, if it is known. Raises ProfileError.
    """
    endpoint = find_endpoint(url, access, ready_timeout_s, say, must_list=model is None)
    name = choose_model(endpoint, model)
    roots = candidate_roots(endpoint, url)
    prober = find_paths(roots, name, needed, ready_timeout_s, say, extra)
    return measure(prober, needed, count_text)


def find_dialect(url: str, model: str, access: Access = OPEN) -> Dialect:
    """Find the form of requests that a server at a base URL accepts, with a request or two for each
    of its endpoints. Raises ProfileError.
    """
    return find_paths([Endpoint(url, Dialect.root, "", access=access)], model, []).dialect


def measure(prober: Prober, needed: Sequence[str], count_text: CountText | None = None) -> Profile:
    usable = [kind for kind in ENDPOINTS if kind not in prober.refusals]
    main = next((kind for kind in needed if kind in usable), usable[0])
    samples = [_sample(prober, main) for _ in range(IN_FLIGHT)]
    raise_if_cumulative(completion_url(prober.endpoint, main), samples)
    raise_if_prompt_counted(completion_url(prober.endpoint, main), samples, prober.tokens)
    samples[0].again = prober.complete(main, samples[0].prompt)
    refusal = _complete_together(prober, main, samples)
    raise_if_mixed_up(prober, main, samples)
    plain = complete_plain(prober, main, samples[0].prompt)
    raise_if_truncated(completion_url(prober.endpoint, main), samples[0], plain)
    stream = samples[0].alone
    usage, per_chunk, per_byte = find_usage(prober, main, samples, plain)
    for name in ("max_tokens", "temperature", "ignore_eos", "stream_options"):
        prober.fields.setdefault(name, "accepted")
    if prober.dialect.max_tokens_field != "max_tokens":
        prober.fields["max_completion_tokens"] = "accepted"
    if usage == NEVER and "stream_options" not in prober.dialect.omitted:
        prober.fields["stream_options"] = "ignored"
    ended_early = any(_ended_early(sample.alone, prober.tokens) for sample in samples)
    ends_itself = prober.dialect.extra.keys() & ENDING_FIELDS
    if ended_early and "ignore_eos" not in prober.dialect.omitted and not ends_itself:
        prober.fields["ignore_eos"] = "ignored"
    counts = [sample.alone.count("completion_tokens") or 0 for sample in samples]
    if usage in (IN_STREAM, CONTINUOUS) and max(counts) > prober.tokens + 1:
        prober.fields[prober.dialect.max_tokens_field] = "ignored"
    if "chat" in usable:
        _try_system_role(prober)
    kinds = [main, *(kind for kind in usable if kind != main)]
    lengths = _measure_lengths(prober, kinds, usage != PLAIN_ONLY, count_text)
    is_known = lengths.source != ASSUMED
    first = next(i for i, (_, c) in enumerate(stream.events) if c.text or c.reasoning)
    texts = [(s.alone.text, s.under_load.text) for s in samples if s.under_load]
    sampled = prober.dialect.is_sampled
    # counts in each chunk cost server and client time, and are redundant for single tokens
    several = per_chunk is not None and abs(per_chunk - 1) > 0.05
    asked = IN_STREAM if usage == CONTINUOUS and not several else usage
    prober.dialect = replace(
        prober.dialect, usage=asked, tokens_per_byte=per_byte if several else None
    )
    profile = Profile(
        base_url=prober.endpoint.base_url,
        dialect=prober.dialect,
        model=prober.model,
        models=tuple(prober.endpoint.listed or ()),
        endpoints=tuple(usable),
        fields=dict(sorted(prober.fields.items())),
        usage=usage,
        tokens_per_chunk=per_chunk,
        reasoning=next(
            (c.reasoning_field for s in samples for _, c in s.alone.events if c.reasoning), None
        ),
        early_chunks=first,
        repeats_alone=None if sampled else samples[0].again.text == stream.text,
        repeats_under_load=(
            all(alone == loaded for alone, loaded in texts) if texts and not sampled else None
        ),
        tokens_per_word=round(lengths.per_word, 3) if is_known else None,
        template_tokens=lengths.added(main) if is_known else None,
        context=(context := read_context(prober.endpoint, prober.model)),
        metrics=_find_metrics(prober),
        lengths=replace(lengths, context=context),
    )
    notes = [*make_notes(profile, [s.alone for s in samples], texts), *refusal]
    if ended_early and ends_itself:
        names = ", ".join(sorted(ends_itself))
        notes.append(f"--body {names}: responses may be shorter than requested")
    return replace(profile, notes=tuple(notes))


def _sample(prober: Prober, kind: str) -> Sample:
    prompt = prober.make_prompt()
    return Sample(prompt, prober.complete(kind, prompt))


def _complete_together(prober: Prober, kind: str, samples: Sequence[Sample]) -> list[str]:
    """Complete all samples at once. Return a note if the server refuses some."""

    def complete(sample: Sample) -> str | None:
        try:
            sample.under_load = prober.complete(kind, sample.prompt)
        except ProfileError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        refused = [why for why in pool.map(complete, samples) if why]
    if not refused:
        return []
    return [f"with {IN_FLIGHT} requests in flight, {len(refused)} failed: {refused[0]}"]


def _ended_early(completion: Completion, asked: int) -> bool:
    count = completion.count("completion_tokens")
    return completion.finish_reason == "stop" and (count or len(completion.tokens)) < asked


def _try_system_role(prober: Prober) -> None:
    tokens = prober.least_tokens
    body = prober.build_body("chat", prober.make_prompt(), tokens, prober.dialect, stream=False)
    body["messages"].insert(0, {"role": "system", "content": prober.make_prompt(4)})
    response = prober.endpoint.send("POST", ENDPOINTS["chat"], body)
    prober.fields["system role"] = "accepted" if response.is_ok else "refused"
    prober.dialect = replace(prober.dialect, has_system_role=response.is_ok)


def _measure_lengths(
    prober: Prober, kinds: Sequence[str], streamed: bool, count_text: CountText | None
) -> PromptLengths:
    """Measure the lengths of prompts, by the best of the ways that there are."""

    def by_usage(kind: str, messages: Messages) -> int | None:
        return prober.count_prompt(kind, messages, streamed)

    is_planted = prober.model in oracle.PLANTED_MODELS
    words = oracle.VOCABULARY[: len(WORDS)] if is_planted else WORDS
    has_tokenize = prober.tokenize(kinds[0], [("user", words[0])]) is not None
    lengths = measure_lengths(
        kinds,
        prober.tokenize if has_tokenize else by_usage,
        source=TOKENIZER if count_text else TOKENIZE if has_tokenize else USAGE,
        count_text=count_text,
        words=words,
        has_system_role=prober.dialect.has_system_role,
    )
    # the oracle knows the continuations of all its words
    return replace(lengths, words=()) if is_planted else lengths


def _find_metrics(prober: Prober) -> str | None:
    """Return the known prefix of the names in its /metrics; "prometheus" if it is unknown."""
    try:
        url = f"{prober.endpoint.base_url}/metrics"
        response = send("GET", url, access=prober.endpoint.access)
    except ProfileError:
        return None
    if not response.is_ok or b"# TYPE " not in response.body:
        return None
    text = response.body.decode(errors="replace")
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    return next(
        (
            known
            for known in METRICS
            if any(n.startswith((f"{known}:", f"{known}_")) for n in names)
        ),
        "prometheus",
    )


def check_endpoint(
    base_url: str, profile: Profile, kind: str, planted: bool, access: Access = OPEN
) -> str:
    """Request a whole completion, as before and after a load. `planted`: the oracle knows the right
    text. Return a description. Raises ProfileError.
    """
    dialect = profile.dialect
    endpoint = Endpoint(base_url, dialect.root, dialect.query, access=access)
    prober = Prober(endpoint, profile.model, dialect)
    prompt = prober.make_prompt()
    completion = prober.complete(kind, prompt)
    expected = oracle.continuation(prompt, TOKENS)
    ended = completion.finish_reason == "stop" and "ignore_eos" in dialect.omitted
    if (
        planted
        and completion.text != expected
        and not (ended and expected.startswith(completion.text))
    ):
        raise ProfileError(
            f"POST {completion_url(endpoint, kind)}: the text is not that of {profile.model}: check"
            " that the server runs that model, unchanged"
        )
    return f"a whole response of {len(completion.tokens)} chunks"


def find_mixed_up(samples: Sequence[Sample]) -> tuple[int, int] | None:
    """Return (response, the other request whose text it has) if, with others in flight, a response
    leaves its own text and continues with another's. Near ties may change a healthy server's text,
    but not into another's.
    """
    pairs = [(s.alone.text, s.under_load.text) for s in samples if s.under_load]
    foreign = find_foreign_run([alone for alone, _ in pairs], [loaded for _, loaded in pairs])
    return (foreign.response, foreign.of) if foreign else None


def raise_if_mixed_up(prober: Prober, kind: str, samples: Sequence[Sample]) -> None:
    """Raise ProfileError if responses are mixed up more than once: once may be chance."""
    if not find_mixed_up(samples):
        return
    for _ in range(2):
        _complete_together(prober, kind, samples)
        if mixed := find_mixed_up(samples):
            raise ProfileError(
                f"POST {completion_url(prober.endpoint, kind)}: with {len(samples)} requests in"
                f" flight, response {mixed[0] + 1} continues with the text of another request"
                f" ({mixed[1] + 1}): the server mixes requests up, so its numbers would be"
                " meaningless"
            )


def raise_if_truncated(url: str, sample: Sample, plain: Completion | None) -> None:
    """Raise ProfileError if the stream lacks words of the plain response to the same prompt,
    although both report the same length and finish_reason.
    """
    stream = sample.alone
    if plain is None:
        return
    streamed, whole = stream.count("completion_tokens"), plain.count("completion_tokens")
    if stream.finish_reason != plain.finish_reason or streamed is None or streamed != whole:
        return
    ours, theirs = stream.visible_text.strip(), plain.visible_text.strip()
    if ours != theirs and (theirs.startswith(ours) or is_subsequence(ours.split(), theirs.split())):
        raise ProfileError(
            f"POST {url}: the stream has {len(ours.split())} words, the plain response to the same"
            f" prompt {len(theirs.split())}, and usage reports {streamed} tokens for both: the"
            " stream loses text"
        )


def is_subsequence(some: Sequence[str], words: Sequence[str]) -> bool:
    """Return whether leaving words out gives `some`."""
    remaining = iter(words)
    return all(word in remaining for word in some)


def as_lines(profile: Profile) -> list[tuple[str, str]]:
    """Return (name, value) of each field, formatted for people."""

    def show(value: float | bool | None) -> str:
        if value is None:
            return "unknown"
        if isinstance(value, bool):
            return "yes" if value else "no"
        return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"

    dialect = profile.dialect
    return [
        ("base URL", profile.base_url),
        ("API", f"{profile.base_url}{dialect.root}" + (f"?{dialect.query}" * bool(dialect.query))),
        ("fields added to each request", json.dumps(dialect.extra) if dialect.extra else "none"),
        ("model", profile.model),
        ("models", ", ".join(profile.models) or "not listed"),
        ("endpoints", ", ".join(profile.endpoints)),
        ("request fields", ", ".join(f"{name} {how}" for name, how in profile.fields.items())),
        ("usage", profile.usage),
        ("tokens per chunk", show(profile.tokens_per_chunk)),
        ("reasoning", profile.reasoning or "none"),
        ("chunks before the first token", show(profile.early_chunks)),
        ("greedy text repeats alone", show(profile.repeats_alone)),
        ("greedy text repeats under load", show(profile.repeats_under_load)),
        ("tokens per word of our prompts", show(profile.tokens_per_word)),
        ("tokens added by the template", show(profile.template_tokens)),
        ("source of these counts", profile.lengths.source),
        ("context, tokens", show(profile.context)),
        ("/metrics", profile.metrics or "none"),
    ]
