"""Validators of request fields for the models in `servers/contract/api.py`, and the fields that are
refused.

For an unexpected value, each function raises ValueError or returns the value unchanged; pydantic
turns both into a 400.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

# The accepted values of each field besides null: those that change nothing. Any other value would
# change the response and is refused. The Node gateway reads the same file.
UNSUPPORTED: dict[str, list[Any]] = json.loads(
    Path(__file__).with_name("unsupported_fields.json").read_text()
)
# Roles of current clients: the new name of the system message, and results of tools or functions.
_ROLES = {"developer": "system", "tool": "user", "function": "user"}


def refuse_unsupported(data: Any) -> Any:
    """Return the body, or raise ValueError with a message that starts with the refused field."""
    if not isinstance(data, dict):
        return data
    for field, value in data.items():
        if field not in UNSUPPORTED or value is None:
            continue
        # Load tools send min_tokens beside ignore_eos, which alone makes the length exact.
        if field == "min_tokens" and data.get("ignore_eos") is True:
            continue
        if isinstance(value, dict):  # some send {"type": "text", "json_schema": null}
            value = {name: each for name, each in value.items() if each is not None}
        if value not in UNSUPPORTED[field]:
            accepted = " or ".join(map(json.dumps, UNSUPPORTED[field]))
            raise ValueError(
                f"{field}: this server does not support it; leave it out"
                + (f" or send {accepted}" if accepted else "")
            )
    return data


def or_default(default: float | bool) -> BeforeValidator:
    """Replace null with the default, as OpenAI does."""
    return BeforeValidator(lambda value: default if value is None else value)


def _check_utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode: it has a lone surrogate") from None
    return text


def _unwrap_prompt(prompt: Any) -> Any:
    """Return the only prompt of a list: LangChain and LiteLLM send such lists."""
    if not isinstance(prompt, list):
        return prompt
    if len(prompt) != 1 or not isinstance(prompt[0], str):
        raise ValueError(
            "must be one text: send one request per prompt, and text instead of token ids"
        )
    return prompt[0]


def _rename_role(role: Any) -> Any:
    return _ROLES.get(role, role) if isinstance(role, str) else role


def _join_parts(content: Any) -> Any:
    """Join text parts, [{"type": "text", "text": ...}], into one string."""
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in content
    ):
        return "".join(str(part.get("text", "")) for part in content)
    return content


def fill_content(message: Any) -> Any:
    """Fill in the empty content of an assistant's message that only calls tools."""
    if (
        isinstance(message, dict)
        and message.get("role") == "assistant"
        and message.get("content") is None
    ):
        return message | {"content": ""}
    return message


Text = Annotated[str, AfterValidator(_check_utf8)]
Prompt = Annotated[Text, BeforeValidator(_unwrap_prompt)]
Role = BeforeValidator(_rename_role)
Content = Annotated[Text, BeforeValidator(_join_parts)]
