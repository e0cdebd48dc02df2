"""A custom spec, modelled on LitServe's OpenAISpec, which supports neither /v1/completions nor
exact lengths.
"""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

import litserve as ls
from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, ResponseBufferItem

from servers.contract import api
from servers.contract.api import CompletionResponse


class Contract(LitSpec):
    """The API server's part: puts requests into the worker's queue and gets tokens back one by
    one.
    """

    stream = True

    def __init__(self, model: str):
        super().__init__()
        self.model = model  # the served name

    def pre_setup(self, _: ls.LitAPI) -> None:
        self.api_path = api.COMPLETIONS  # by which LitServe finds the worker's queue
        self.add_endpoint("/v1/models", self.models, ["GET"])
        self.add_endpoint(api.COMPLETIONS, self.completions, ["POST"])
        self.add_endpoint(api.CHAT_COMPLETIONS, self.chat_completions, ["POST"])

    async def models(self) -> Response:
        return JSONResponse(api.models_body(self.model))

    async def completions(self, request: Request) -> Response:
        return await self.respond(api.parse_request(api.CompletionRequest, await request.body()))

    async def chat_completions(self, request: Request) -> Response:
        wanted = api.parse_request(api.ChatCompletionRequest, await request.body())
        return await self.respond(wanted)

    async def respond(self, wanted: api.Request) -> Response:
        reply = CompletionResponse(wanted, self.model)
        items = self.items(wanted)
        first = await anext(items)  # raises the worker's refusal while the status can still be set
        if wanted.stream:
            return StreamingResponse(
                self.events(first, items, reply),
                media_type=api.SSE_CONTENT_TYPE,
                headers=api.SSE_HEADERS,
            )
        *pieces, outcome = [first] + [item async for item in items]
        return JSONResponse(reply.complete("".join(pieces), outcome))

    async def items(self, wanted: api.Request) -> AsyncIterator[Any]:
        """Yield each token's text, then the Outcome."""
        uid, arrived, buffer = str(uuid.uuid4()), asyncio.Event(), deque[Any]()
        self.response_buffer[uid] = ResponseBufferItem(event=arrived, response_queue=buffer)
        try:
            self.request_queue.put(
                (self.response_queue_id, uid, time.monotonic(), (wanted, time.perf_counter()))
            )
            async for item, status in self.data_streamer(buffer, arrived, send_status=True):
                if status == LitAPIStatus.ERROR:
                    raise (
                        item
                        if isinstance(item, HTTPException)
                        else HTTPException(500, "the engine failed")
                    )
                yield item
        finally:
            del self.response_buffer[uid]

    async def events(
        self, item: Any, items: AsyncIterator[Any], reply: CompletionResponse
    ) -> AsyncIterator[str]:
        yield reply.event(item)
        try:
            async for item in items:
                yield reply.event(item)
        except HTTPException as error:
            yield reply.event(error)

    def encode_response(self, output: Iterator[Any]) -> Iterator[Any]:
        return output
