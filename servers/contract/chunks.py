"""Reads one event of a stream, or one plain response, of any OpenAI-compatible server."""

import json
import re
from dataclasses import dataclass
from typing import Any

from servers.contract import JsonObject

# the paths of such responses
COMPLETIONS = "/v1/completions"
CHAT_COMPLETIONS = "/v1/chat/completions"
# Fields that hold reasoning. vLLM sends two of them with the same text.
REASONING_FIELDS = ("reasoning_content", "reasoning", "reasoning_text", "thinking")
FAILED_REASONS = ("error", "abort", "aborted", "cancelled")  # values of finish_reason
SHOWN_CHARACTERS = 200
# Servers repeat keys in their errors: "Incorrect API key provided: sk-..."
_SECRET = re.compile(r"\b(?:Bearer\s+|(?:sk|hf|gsk|xai|nvapi|pk)[-_])[\w.~+/*=-]{6,}", re.I)
_TAG = re.compile(r"<(?:style|script)\b.*?</(?:style|script)>|<[^>]*>", re.I | re.S)


@dataclass(frozen=True)
class Chunk:
    """One chunk of a response. `text` is visible, `reasoning` is not; both are empty if the chunk
    carries no token. `reasoning_field` is the field that held the reasoning. `error` is the
    server's own message.
    """

    text: str
    finish_reason: str | None
    usage: JsonObject | None
    timings: JsonObject | None
    error: str | None
    reasoning: str = ""
    reasoning_field: str | None = None


def read_chunk(payload: bytes) -> Chunk:
    """Read the JSON of an event (without "data: ") or of a plain response.

    Raises ValueError if it is not a JSON object of that form.
    """
    body = json.loads(payload)
    if not isinstance(body, dict):
        raise ValueError("the response is not a JSON object")
    text, reasoning, reasoning_field, finish_reason = "", "", None, None
    error = find_error(body)
    try:
        for choice in body.get("choices") or ():
            part = choice.get("delta") or choice.get("message")
            if part is None:
                text += choice.get("text") or ""
            else:
                visible, hidden, name = _read_message(part)
                text, reasoning = text + visible, reasoning + hidden
                reasoning_field = name or reasoning_field
            finish_reason = choice.get("finish_reason") or finish_reason
            if finish_reason in FAILED_REASONS:
                words = find_error(choice) or f"finish_reason is {finish_reason!r}"
                error = error or words
    except (AttributeError, TypeError):
        raise ValueError("the response has choices in another form than OpenAI's") from None
    return Chunk(
        text,
        finish_reason,
        body.get("usage"),
        body.get("timings"),
        error,
        reasoning,
        reasoning_field,
    )


def _read_message(part: JsonObject) -> tuple[str, str, str | None]:
    """Return (visible text, reasoning, its field) of a delta or a message."""
    content = part.get("content")
    text, reasoning, name = "", "", None
    if isinstance(content, str):
        text = content
    elif content:
        for each in content:
            kind = each.get("type")
            if kind in ("thinking", "reasoning"):
                reasoning, name = reasoning + _join_text(each.get(kind) or each), f"content.{kind}"
            else:
                text += _join_text(each)
    for field in REASONING_FIELDS:
        if found := _join_text(part.get(field)):
            reasoning, name = reasoning + found, field
            break
    else:
        if found := _join_text(part.get("reasoning_details")):
            reasoning, name = reasoning + found, "reasoning_details"
    # the model also generates its tool calls; function_call is their older name
    functions = [call.get("function") for call in part.get("tool_calls") or ()]
    for function in filter(None, (*functions, part.get("function_call"))):
        text += (function.get("name") or "") + (function.get("arguments") or "")
    return text + (part.get("refusal") or ""), reasoning, name


def _join_text(value: Any) -> str:
    """Return all text of a part or of a list of parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return _join_text(value.get("text") or value.get("content") or value.get("summary"))
    if isinstance(value, list):
        return "".join(_join_text(each) for each in value)
    return ""


def find_error(body: JsonObject) -> str | None:
    """Return the server's message and code if the JSON object is an error in any of the forms that
    servers use; None if it is not.
    """
    # {"error": {...}} or "...", of OpenAI and nearly all others
    if error := body.get("error"):
        return _describe_error(error)
    # {"text": "...", "error_code": 50001}, of FastChat
    if _is_code(body.get("error_code")):
        return _describe_error(body, body["error_code"])
    # {"base_resp": {"status_code": 1004, "status_msg": "..."}}, of MiniMax
    status = body.get("base_resp")
    if isinstance(status, dict) and _is_code(status.get("status_code")):
        return _describe_error(status, status["status_code"])
    if body.get("choices") or body.get("usage") is not None:
        return None
    if body.get("object") == "error" or body.get("type") == "error":
        return _describe_error(body)
    # {"detail": ...} of FastAPI, {"code": 1214, "msg": "..."}, {"errors": [...]}
    for name in ("detail", "errors", "message", "msg", "error_message", "error_msg"):
        if body.get(name) and not body.get("id"):
            return _describe_error(body)
    return None


def _is_code(code: Any) -> bool:
    return code not in (None, 0, "0", "", 200, "200", False)


def _describe_error(error: Any, code: Any = None) -> str:
    words: Any = error
    if isinstance(error, dict):
        names = ("message", "msg", "status_msg", "error_message", "error_msg", "detail", "errors")
        words = next((error[name] for name in (*names, "text", "type") if error.get(name)), None)
        code = code if code is not None else error.get("code")
    if not isinstance(words, str):
        words = json.dumps(words if words is not None else error, ensure_ascii=False)
    return f"{code}: {words}" if _is_code(code) and str(code) not in words else words


def describe_body(body: bytes) -> str:
    """Return printable text for a body that is not a completion: its error's message, or the body
    without HTML tags.
    """
    text = body[: 64 * SHOWN_CHARACTERS].decode(errors="replace")
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return shorten(_TAG.sub(" ", text))
    found = find_error(parsed) if isinstance(parsed, dict) else None
    return shorten(text if found is None else found)


def shorten(words: str) -> str:
    """Return the first characters of a server's message on one line. Secrets are masked; control
    characters, which a terminal would obey, are left out; lone surrogates, which JSON allows and
    UTF-8 does not, are replaced.
    """
    line = " ".join(_SECRET.sub("***", words).split())
    line = "".join(c for c in line if c.isprintable() or "\ud800" <= c <= "\udfff")
    cut = line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 3] + "..."
    return cut.encode(errors="replace").decode()


def status_of_end(payload: str) -> int | None:
    """Return the status if this WebSocket message ends its response; None if more follow."""
    if payload == "[DONE]":
        return 200
    if '"error"' in payload[:32]:  # saves decoding every chunk: a chunk starts with its id
        try:
            body = json.loads(payload)
        except ValueError:
            return None
        if isinstance(body, dict) and body.get("error"):
            return status if isinstance(status := body.get("status"), int) else 500
    return None
