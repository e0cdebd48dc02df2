"""Asks servers with a client library and the library's defaults, plain and streamed.

    python ask_with_client.py LIBRARY MODEL PROMPT BASE_URL...

Prints a JSON object for each server: what was asked, and the text of the response. It runs in an
environment that has the library and nothing of ours.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

LIBRARY, MODEL, PROMPT, *BASE_URLS = sys.argv[1:]
KEY = "none needed"


def ask_with_openai(url: str) -> dict[str, str]:
    import openai

    client = openai.OpenAI(base_url=url, api_key=KEY)
    messages: Any = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": PROMPT},
    ]
    asked: Any = {"model": MODEL, "messages": messages}
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()

    async def ask_async() -> str:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY) as client:
            return content(await client.chat.completions.create(**asked))

    return {
        "completion": client.completions.create(model=MODEL, prompt=PROMPT).choices[0].text,
        "streamed completion": "".join(
            chunk.choices[0].text
            for chunk in client.completions.create(model=MODEL, prompt=PROMPT, stream=True)
        ),
        "chat": content(client.chat.completions.create(**asked)),
        "streamed chat": deltas(client.chat.completions.create(**asked, stream=True)),
        "streamed chat, by its helper": content(final),
        "asynchronous chat": asyncio.run(ask_async()),
    }


def ask_with_langchain(url: str) -> dict[str, str]:
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
    from langchain_openai import ChatOpenAI, OpenAI

    asked: Any = {"model": MODEL, "base_url": url, "api_key": KEY}
    completions, chats = OpenAI(**asked), ChatOpenAI(**asked)
    call: Any = {"name": "look_up", "args": {}, "id": "1"}
    history = [
        SystemMessage("be kind"),
        HumanMessage("look it up"),
        AIMessage("", tool_calls=[call]),
        ToolMessage(PROMPT, tool_call_id="1"),
    ]
    return {
        "completion": completions.invoke(PROMPT),
        "streamed completion": "".join(completions.stream(PROMPT)),
        "asynchronous completion": asyncio.run(completions.ainvoke(PROMPT)),
        "chat": str(chats.invoke(PROMPT).content),
        "streamed chat": "".join(str(chunk.content) for chunk in chats.stream(PROMPT)),
        "one of several chats": str(chats.batch(["baba", PROMPT])[1].content),
        "chat after a tool call": str(chats.invoke(history).content),
    }


def ask_with_litellm(url: str) -> dict[str, str]:
    import litellm

    asked: Any = {"api_base": url, "api_key": KEY}
    chat: Any = asked | {
        "model": f"openai/{MODEL}",
        "messages": [{"role": "user", "content": PROMPT}],
    }
    text: Any = asked | {"model": f"text-completion-openai/{MODEL}", "prompt": PROMPT}
    return {
        "completion": litellm.text_completion(**text).choices[0].text,
        "streamed completion": "".join(
            chunk.choices[0].text or "" for chunk in litellm.text_completion(**text, stream=True)
        ),
        "chat": content(litellm.completion(**chat)),
        "streamed chat": deltas(litellm.completion(**chat, stream=True)),
        "asynchronous chat": content(asyncio.run(litellm.acompletion(**chat))),
    }


def ask_with_llama_index(url: str) -> dict[str, str]:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    asked: Any = {"model": MODEL, "api_base": url, "api_key": KEY}
    completions, chats = OpenAILike(**asked), OpenAILike(**asked, is_chat_model=True)
    messages = [ChatMessage(role="system", content="be kind"), ChatMessage(content=PROMPT)]
    return {
        "completion": completions.complete(PROMPT).text,
        "streamed completion": "".join(
            chunk.delta or "" for chunk in completions.stream_complete(PROMPT)
        ),
        "chat": str(chats.chat(messages).message.content),
        "streamed chat": "".join(chunk.delta or "" for chunk in chats.stream_chat(messages)),
        "completion as a chat": chats.complete(PROMPT).text,
    }


def content(completion: Any) -> str:
    return str(completion.choices[0].message.content)


def deltas(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


ASKING: dict[str, Callable[[str], dict[str, str]]] = {
    "openai": ask_with_openai,
    "langchain": ask_with_langchain,
    "litellm": ask_with_litellm,
    "llama_index": ask_with_llama_index,
}
for base_url in BASE_URLS:
    print(json.dumps(ASKING[LIBRARY](f"{base_url}/v1")))
