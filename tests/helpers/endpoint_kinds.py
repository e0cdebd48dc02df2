"""Kinds of streams that servers send, for scripts of endpoint_script.py: complete ones and failed
ones.
"""

import json
from typing import Any

from tests.helpers.endpoint_script import DONE

# --- chunks

ROLE = json.dumps(
    {
        "choices": [
            {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        ]
    }
)
ROLE_NULL = json.dumps(
    {
        "choices": [
            {"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}
        ]
    }
)
AZURE = json.dumps(
    {"choices": [], "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}]}
)
EMPTY_USAGE = json.dumps({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 0}})


EARLY: dict[str, tuple[str, ...]] = {
    "role": (ROLE,),
    "role without content": (ROLE_NULL,),
    "Azure's": (AZURE,),
    "Azure's and a role": (AZURE, ROLE),
    "usage of nothing": (EMPTY_USAGE,),
}
SPECULATIVE: dict[str, dict[str, Any]] = {
    "4 each": {"per_chunk": (4,)},
    "1 to 5": {"per_chunk": (1, 5, 2, 4, 3)},
    "4 each, continuous": {"per_chunk": (4,), "usage": "continuous"},
    "1 to 5, continuous": {"per_chunk": (1, 5, 2, 4, 3), "usage": "continuous"},
    "4 each, usage in the finish chunk": {"per_chunk": (4,), "usage": "finish"},
    "8 each, text of parts": {"per_chunk": (8,), "parts": True},
}
THINKS: dict[str, dict[str, Any]] = {
    "reasoning": {"reasoning_field": "reasoning"},
    "reasoning_content": {"reasoning_field": "reasoning_content"},
    "with empty content": {"reasoning_field": "reasoning", "empty_content": True},
    "parts": {"reasoning_field": "parts", "parts": True},
    "null beside content": {"reasoning_field": "reasoning", "null_reasoning": True},
    "nulls beside content": {
        "reasoning_field": "reasoning_content",
        "null_reasoning": True,
        "extras": True,
        "empty_content": True,
    },
    "without usage": {"reasoning_field": "reasoning_content", "usage": "never"},
    "continuous usage": {"reasoning_field": "reasoning", "usage": "continuous"},
    "3 tokens in a chunk": {"reasoning_field": "reasoning_content", "per_chunk": (3,)},
    "early role": {"reasoning_field": "reasoning", "early": (ROLE,)},
}
SHAPES: dict[str, dict[str, Any]] = {
    "parts": {"parts": True},
    "fields that say nothing": {"extras": True, "null_usage": True, "early": (ROLE,)},
    "the last token has the finish_reason": {"finish_with_token": True},
    "usage in every chunk, unasked": {"usage": "running"},
}


# --- framing

CR_DONE = "data: [DONE]\r\r"
CRLF_DONE = "data: [DONE]\r\n\r\n"

FRAMES: dict[str, dict[str, Any]] = {
    "no space": {"event": ("data:{data}\n\n",), "done": "data:[DONE]\n\n"},
    "event and id": {"event": ("event: message\nid: {n}\ndata: {data}\n\n",)},
    "id behind": {"event": ("data: {data}\nid: {n}\nevent: completion.chunk\n\n",)},
    "ping in the event": {"event": (": ping\ndata: {data}\n: pong\n\n",)},
    "ping between": {"event": (": OPENROUTER PROCESSING\n\ndata: {data}\n\n",)},
    "retry": {"event": ("retry: 3000\ndata: {data}\n\n",)},
    "CR": {"event": ("data: {data}\r\r",), "done": CR_DONE},
    "CRLF": {"event": ("data: {data}\r\n\r\n",), "done": CRLF_DONE},
    "mixed line ends": {
        "event": ("data: {data}\n\n", "data: {data}\r\n\r\n", "data: {data}\r\n\n")
    },
    "LF and CRLF at the end": {"done": CRLF_DONE},
    "CR in the middle": {"event": ("id: {n}\rdata: {data}\n\n", "data: {data}\n\r\n")},
    "several data lines": {"pretty": True},
    "more empty lines": {"event": ("data: {data}\n\n\n\n",)},
    "a byte order mark": {"marked": True},
    "empty data": {"event": ("data:\n\ndata: {data}\n\n",)},
    "no [DONE]": {"done": ""},
    "[DONE] without an empty line": {"done": "data: [DONE]"},
    "[DONE] with one line end": {"done": "data: [DONE]\n"},
    "[DONE] without a space": {"done": "data:[DONE]\n\n"},
    "[DONE] without finish_reason": {"finish": None},
    "a comment at the end": {"done": DONE + ": bye\n\n"},
    "until closed": {"until_closed": True},
    "until closed, no [DONE]": {"until_closed": True, "done": ""},
    "halves": {"in_halves": True},
    "several in a write": {"per_write": 3},
    "content type with charset": {"content_type": "text/event-stream; charset=utf-8"},
    "content type in capitals": {"content_type": "Text/Event-Stream"},
    "another content type": {"content_type": "text/plain"},
    "all of it": {
        "event": (
            ": ping\r\nevent:message\r\nid:{n}\r\ndata:{data}\r\n\r\n",
            "data: {data}\n: ping\n\n",
        ),
        "done": "data:[DONE]",
    },
}
INTERIM: dict[str, tuple[str, ...]] = {
    "100": ("HTTP/1.1 100 Continue\r\n\r\n",),
    "103": ("HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n",),
    "several": ("HTTP/1.1 102 Processing\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n"),
}

# Kinds that need nothing special in a request, so one load can meet all of them.
KINDS_OF_STREAMS: dict[str, dict[str, Any]] = {
    **FRAMES,
    **{f"interim {name}": {"interim": texts} for name, texts in INTERIM.items()},
    **{f"chunks: {name}": fields for name, fields in SHAPES.items()},
    **{f"early: {name}": {"early": chunks} for name, chunks in EARLY.items()},
    **{
        f"thinking: {name}": {"reasoning": 12, **fields}
        for name, fields in THINKS.items()
        if "usage" not in fields
    },
    **{
        f"several tokens: {name}": fields
        for name, fields in SPECULATIVE.items()
        if fields.get("usage") != "continuous"
    },
}


# --- failed streams

EMPTY = json.dumps({"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}]})
USAGE_ONLY = json.dumps({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}})
ERROR = json.dumps({"error": {"message": "the model has been unloaded", "code": 503}})
CONTENT_ERROR = json.dumps(
    {
        "choices": [{"index": 0, "delta": {}, "finish_reason": "error"}],
        "error": {"message": "upstream provider is gone", "code": 502},
    }
)
MINIMAX = json.dumps(
    {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}
)
FASTCHAT = json.dumps({"text": "**NETWORK ERROR DUE TO HIGH TRAFFIC**", "error_code": 50001})

# name: events, tokens before them, and words that the rows and the reason must contain
NO_SUCCESS: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "only [DONE]": ((DONE,), 0, ("no token",)),
    "nothing": ((": bye\n\n",), 0, ("no token",)),
    "an empty text": ((f"data: {EMPTY}\n\n", DONE), 0, ("no token",)),
    "only usage": ((f"data: {USAGE_ONLY}\n\n", DONE), 0, ("no token",)),
    "error line": (
        ('error: {"code":400,"message":"exceeds context"}\n\n', DONE),
        0,
        ("exceeds context",),
    ),
    "error line at once": (('error: {"message": "slot is gone"}\n',), 10, ("slot is gone",)),
    "error event": (
        ('event: error\ndata: {"message": "engine is dead"}\n\n',),
        10,
        ("engine is dead",),
    ),
    "error_code": ((f"data: {FASTCHAT}\n\n", DONE), 0, ("50001", "NETWORK ERROR")),
    "base_resp": ((f"data: {MINIMAX}\n\n", DONE), 0, ("1008", "insufficient balance")),
    "error after 10": ((f"data: {ERROR}\n\n",), 10, ("the model has been unloaded",)),
    "error after 10, [DONE]": ((f"data: {ERROR}\n\n", DONE), 10, ("the model has been unloaded",)),
    "error as a string": (('data: {"error": "OOM"}\n\n', DONE), 3, ("OOM",)),
    "bare JSON": (('{"detail": "worker restarted"}',), 0, ("worker restarted",)),
    "finish_reason error": (
        (f"data: {CONTENT_ERROR}\n\n", DONE),
        8,
        ("upstream provider is gone",),
    ),
    "cut": ((), 10, ("closed",)),
    "ended without finish_reason": ((": bye\n\n",), 10, ("finish_reason",)),
    "HTML": (("<html><body>502 Bad Gateway</body></html>",), 0, ("502 Bad Gateway",)),
}
