"""One record of the user's file of prompts, as JSON has it: a prompt, a request's messages, or a
whole conversation.
"""

from loadtests.schema import JsonObject
from loadtests.workload.given_prompts import Conversation
from loadtests.workload.prompts import PromptMessage

CONVERSATIONS = ("conversations", "conversation")
COLUMNS = ("prompt", "messages", *CONVERSATIONS)
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
CHAT_ROLES = ("system", "developer", "user", "assistant")


class BadPrompt(Exception):
    """Why a prompt cannot be sent, with the remedy."""


def parse_record(record: JsonObject, column: str | None) -> Conversation | None:
    """Returns the prompt of a record of a file; None if it asks nothing. `column`: the key of the
    prompt, if the user named it. Raises BadPrompt.
    """
    keys = (column,) if column else COLUMNS
    key = next((name for name in keys if record.get(name) is not None), None)
    if key is None:
        wanted = column or "prompt, messages or conversations"
        raise BadPrompt(f"it has no {wanted}: add it, or name the key as --prompts FILE:COLUMN")
    value, max_tokens = record[key], record.get("max_tokens")
    if isinstance(max_tokens, float):  # a table with empty cells has no whole numbers
        max_tokens = int(max_tokens) if max_tokens.is_integer() else max_tokens
        max_tokens = None if max_tokens != max_tokens else max_tokens  # nan
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise BadPrompt(f"max_tokens {max_tokens!r:.40} is not a whole number above 0: correct it")
    if isinstance(value, str):
        if not value.strip():
            raise BadPrompt("its prompt is empty: remove it")
        return Conversation((PromptMessage("user", _read_text(value)),), (1,), max_tokens)
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise BadPrompt(f"{key} is neither text nor a list of messages: correct it")
    is_whole = key in CONVERSATIONS or any("from" in each for each in value)
    messages, ends = _parse_conversation(value) if is_whole else _parse_messages(value)
    return Conversation(messages, ends, max_tokens) if ends else None


def _parse_messages(entries: list[JsonObject]) -> tuple[tuple[PromptMessage, ...], tuple[int, ...]]:
    messages = [
        PromptMessage(str(entry.get("role")), _read_text(entry.get("content"))) for entry in entries
    ]
    while messages and messages[-1].role == "assistant":
        messages.pop()
    for message in messages:
        if message.role not in CHAT_ROLES:
            raise BadPrompt(
                f"the role {message.role!r:.40} is not one of {', '.join(CHAT_ROLES)}: remove it"
            )
    if not messages or messages[-1].role != "user":
        raise BadPrompt("its last message before a response is not the user's: remove it")
    if not messages[-1].text.strip():
        raise BadPrompt("its last message is empty: remove it")
    return tuple(messages), (len(messages),)


def _parse_conversation(
    entries: list[JsonObject],
) -> tuple[tuple[PromptMessage, ...], tuple[int, ...]]:
    """Returns the messages of a whole conversation and its requests. A response before the first
    question is left out; the conversation ends before an empty message. Chat templates want roles
    to alternate, so messages of one role in a row become one.
    """
    messages: list[PromptMessage] = []
    for entry in entries:
        speaker = entry.get("from", entry.get("role"))
        role = ROLES.get(str(speaker).lower())
        if role is None:
            raise BadPrompt(f"{speaker!r:.40} is none of {', '.join(ROLES)}: remove it")
        text = _read_text(entry.get("value", entry.get("content")))
        if not text.strip():
            break
        if role == "assistant" and not any(each.role == "user" for each in messages):
            continue
        if messages and messages[-1].role == role:
            text = f"{messages.pop().text}\n\n{text}"
        messages.append(PromptMessage(role, text))
    ends = tuple(n for n, message in enumerate(messages, 1) if message.role == "user")
    return tuple(messages[: ends[-1]] if ends else ()), ends


def _read_text(content: object) -> str:
    """Returns the text of a message, which may be a list of parts. Halves of a surrogate pair are
    replaced, because no request can hold them.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        raise BadPrompt("a message has content other than text: remove it")
    return _read_text("\n".join(map(str, texts)))
