"""What a field of a request may hold, for the models in `servers/contract/api.py`: validators, and
the fields that are refused.

Every function here raises ValueError or returns the value unchanged for what it does not expect, so
that pydantic makes a 400 of it.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

# By field, the values that are accepted besides null, as they change nothing. Any other value would
# change the response and is refused. The Node gateway reads the same file.
UNSUPPORTED: dict[str, list[Any]] = json.loads(
    Path(__file__).with_name("unsupported_fields.json").read_text()
)
# Of today's clients: the system message under its new name, and what a tool or function returned.
_ROLES = {"developer": "system", "tool": "user", "function": "user"}


def refuse_unsupported(data: Any) -> Any:
    """The body of a request. Raises ValueError, whose message begins with the field's name."""
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
    """null means the default, as at OpenAI."""
    return BeforeValidator(lambda value: default if value is None else value)


def _check_utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode: it has a lone surrogate") from None
    return text


def _unwrap_prompt(prompt: Any) -> Any:
    """The one prompt of a list, as LangChain and LiteLLM send it."""
    if not isinstance(prompt, list):
        return prompt
    if len(prompt) != 1 or not isinstance(prompt[0], str):
        raise ValueError(
            "must be one text: send a request for each prompt, and text instead of token ids"
        )
    return prompt[0]


def _rename_role(role: Any) -> Any:
    return _ROLES.get(role, role) if isinstance(role, str) else role


def _join_parts(content: Any) -> Any:
    """Text parts, [{"type": "text", "text": ...}], as one string."""
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in content
    ):
        return "".join(str(part.get("text", "")) for part in content)
    return content


def fill_content(message: Any) -> Any:
    """An assistant's message that only calls tools has no content: as if it were empty."""
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
