"""The engine of Hugging Face's Transformers with the tiny model."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from servers import engines
from servers.contract import metrics, oracle
from servers.contract.api import (
    ChatCompletionRequest,
    ChatMessage,
    CompletionRequest,
    ContractError,
)
from servers.engines import Settings
from tests.helpers.heard_generation import Gone, Heard, blocking, completion


def tiny_completion(prompt: str = "baba", max_tokens: int = 8, **more: Any) -> CompletionRequest:
    return completion(prompt, max_tokens, model="serveoff-tiny", **more)


def test_hf_is_exact_and_one_event_is_one_token(hf_engine: Any) -> None:
    for prompt in ("baba", "bebe bibi", oracle.VOCABULARY[-3], "hello"):
        heard = blocking(hf_engine, tiny_completion(prompt, 12))
        assert heard.pieces == [" " + word for word in oracle.continuation_words(prompt, 12)]
        assert (
            heard.outcome
            and heard.outcome.completion_tokens == 12
            and heard.outcome.finish_reason == "length"
        )
        assert heard.outcome.prompt_tokens == oracle.count_tokens(prompt)
        assert heard.outcome.prompt_ms > 0 and heard.outcome.predicted_ms > 0


def test_hf_streams_tokens_as_it_generates_them(hf_engine: Any) -> None:
    heard = blocking(hf_engine, tiny_completion(max_tokens=30))
    assert heard.outcome and heard.times[-1] - heard.times[0] >= 0.5e-3 * heard.outcome.predicted_ms


def test_hf_chats_with_the_template(hf_engine: Any) -> None:
    request = ChatCompletionRequest(
        model="serveoff-tiny",
        messages=[ChatMessage(role="user", content="baba")],
        max_tokens=3,
        temperature=0,
    )
    heard = blocking(hf_engine, request)
    assert (
        heard.text == oracle.continuation("baba", 3)
        and heard.outcome
        and heard.outcome.prompt_tokens == 2
    )


def test_hf_stops_at_stop_strings(hf_engine: Any) -> None:
    for stop, expected in (
        ("bi ba", " babe ba"),
        (["zzz", "babu"], " babe babi babo "),
        ("baca cc", oracle.continuation("baba", 5)),
    ):
        heard = blocking(hf_engine, tiny_completion(max_tokens=5, stop=stop))
        assert heard.text == expected and heard.outcome
        assert heard.outcome.finish_reason == ("length" if stop == "baca cc" else "stop")


@pytest.fixture
def opinionated(tiny: Path, hf_engine: Any, tmp_path: Path) -> Any:
    """The tiny model with generation settings of its own, like many published models: "babo" ends a
    response, and repetition is penalised.
    """
    for file in tiny.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(
        json.dumps(
            {
                "eos_token_id": hf_engine.tokenizer("babo").input_ids[0],
                "pad_token_id": 2,
                "repetition_penalty": 9.0,
                "do_sample": True,
            }
        )
    )
    return type(hf_engine)(Settings("hf", "serveoff-tiny", str(tmp_path), threads=1, simulated={}))


def test_hf_ends_when_the_model_does_unless_ignore_eos_is_set(opinionated: Any) -> None:
    heard = blocking(opinionated, tiny_completion(max_tokens=8))
    assert heard.outcome and (heard.outcome.finish_reason, heard.outcome.completion_tokens) == (
        "stop",
        3,
    )
    heard = blocking(opinionated, tiny_completion(max_tokens=8, ignore_eos=True))
    assert heard.outcome and (heard.outcome.finish_reason, heard.outcome.completion_tokens) == (
        "length",
        8,
    )
    assert heard.text == oracle.continuation("baba", 8)


def test_hf_samples_by_the_request_and_not_by_the_models_defaults(opinionated: Any) -> None:
    """With the penalty, "babi" would not occur again."""
    assert blocking(
        opinionated, tiny_completion("babi baba", 8, ignore_eos=True)
    ).text == oracle.continuation("baba", 8)


def test_hf_is_cancelled_by_an_exception_and_keeps_working(hf_engine: Any) -> None:
    running = metrics.RUNNING._value.get()
    cancelled: list[Heard] = []

    def second(heard: Heard) -> bool:
        cancelled[:] = [heard]
        return len(heard.pieces) == 2

    with pytest.raises(Gone):
        blocking(hf_engine, tiny_completion(max_tokens=2000), until=second)
    assert (
        cancelled[0].text == oracle.continuation("baba", 2)
        and metrics.RUNNING._value.get() == running
    )
    assert blocking(hf_engine, tiny_completion()).text == oracle.continuation("baba", 8)


def test_hf_is_exact_in_several_threads_at_once(hf_engine: Any) -> None:
    words = oracle.VOCABULARY[::500]
    with ThreadPoolExecutor(len(words)) as pool:
        texts = pool.map(lambda word: blocking(hf_engine, tiny_completion(word, 16)).text, words)
        assert list(texts) == [oracle.continuation(word, 16) for word in words]


def test_hf_samples_the_same_for_the_same_seed(hf_engine: Any) -> None:
    def sample(seed: int) -> str:
        request = CompletionRequest(
            model="serveoff-tiny", prompt="baba", max_tokens=12, temperature=2.0, seed=seed
        )
        return blocking(hf_engine, request).text

    assert sample(1) == sample(1) != sample(2)


def test_hf_refuses_requests_beyond_its_context(hf_engine: Any) -> None:
    with pytest.raises(ContractError, match="exceed the context of 4096 tokens"):
        hf_engine.prepare(tiny_completion(max_tokens=4096))
    assert hf_engine.prepare(tiny_completion(max_tokens=4095)).max_tokens == 4095


class Tokenizer:
    """The tokenizer of a model whose template requires alternating roles, or that has none."""

    def __init__(self, chat_template: str | None):
        self.chat_template = chat_template

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        raise TemplateError("roles must alternate")


@pytest.mark.parametrize(
    ("template", "message"),
    [("{{ messages }}", "roles must alternate"), (None, "no chat template")],
)
def test_messages_that_the_models_template_refuses_are_a_400(
    template: str | None, message: str
) -> None:
    message_of_user = ChatMessage(role="user", content="baba")
    request = ChatCompletionRequest(model="m", messages=[message_of_user])
    with pytest.raises(ContractError, match=message) as error:
        engines.encode_prompt(Tokenizer(template), request)
    assert (error.value.status, error.value.param) == (400, "messages")


def test_hf_computes_with_the_launcher_s_type_and_logs_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The known-answer model is as exact in float16, which GPUs before Ampere need."""
    from servers.engines.hf import HfEngine

    monkeypatch.setenv("SERVEOFF_DTYPE", "float16")
    engine = HfEngine(Settings("hf", "serveoff-tiny", str(tiny), 1, {}))
    assert str(engine.network.dtype) == "torch.float16"
    assert '{"type": "cpu", "name": null, "uuid": null, "dtype": "float16"' in (
        capsys.readouterr().err
    )
    heard = blocking(engine, tiny_completion("baba", 12))
    assert heard.pieces == [" " + word for word in oracle.continuation_words("baba", 12)]
