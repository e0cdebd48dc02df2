"""LitServe: HTTP is one process, the model another, and a queue for requests and one for tokens lie in a third.

Its OpenAISpec knows neither /v1/completions nor exact lengths, so this is a spec of our own, made as LitServe makes that one.
"""

import argparse
import asyncio
import os
import queue
import signal
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import litserve as ls
import litserve.server
from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, ResponseBufferItem
from starlette.exceptions import HTTPException as StarletteHTTPException

from servers import contract, engines
from servers.contract import Answer, ContractError, Outcome
from servers.metrics import AsgiMetrics

SETTINGS = engines.Settings.from_environment()


class Contract(LitSpec):
    """The API server's side: what is asked goes to the worker's queue, and its tokens come back one by one."""

    stream = True

    def pre_setup(self, _: ls.LitAPI) -> None:
        self.api_path = contract.COMPLETIONS  # by which LitServe finds the worker's queue
        self.add_endpoint("/v1/models", self.models, ["GET"])
        self.add_endpoint(contract.COMPLETIONS, self.completions, ["POST"])
        self.add_endpoint(contract.CHAT_COMPLETIONS, self.chat_completions, ["POST"])

    async def models(self) -> Response:
        return JSONResponse(contract.models_body(SETTINGS.model))

    async def completions(self, request: Request) -> Response:
        return await self.answer(contract.parse(contract.CompletionRequest, await request.body()))

    async def chat_completions(self, request: Request) -> Response:
        return await self.answer(contract.parse(contract.ChatCompletionRequest, await request.body()))

    async def answer(self, wanted: contract.Request) -> Response:
        reply = Answer(wanted, SETTINGS.model)
        items = self.items(wanted)
        first = await anext(items)  # or what the worker refused, while the status can still say so
        if wanted.stream:
            return StreamingResponse(self.events(first, items, reply), media_type=contract.SSE_CONTENT_TYPE, headers=contract.SSE_HEADERS)
        *pieces, outcome = [first] + [item async for item in items]
        return JSONResponse(reply.complete("".join(pieces), outcome))

    async def items(self, wanted: contract.Request) -> AsyncIterator[Any]:
        """Each token's text, then the Outcome."""
        uid, arrived, buffer = str(uuid.uuid4()), asyncio.Event(), deque[Any]()
        self.response_buffer[uid] = ResponseBufferItem(event=arrived, response_queue=buffer)
        try:
            self.request_queue.put((self.response_queue_id, uid, time.monotonic(), (wanted, time.perf_counter())))
            async for item, status in self.data_streamer(buffer, arrived, send_status=True):
                if status == LitAPIStatus.ERROR:
                    raise item if isinstance(item, HTTPException) else HTTPException(500, "the engine failed")
                yield item
        finally:
            del self.response_buffer[uid]

    async def events(self, item: Any, items: AsyncIterator[Any], reply: Answer) -> AsyncIterator[str]:
        yield reply.event(item)
        try:
            async for item in items:
                yield reply.event(item)
        except HTTPException as error:
            yield reply.event(error)

    def encode_response(self, output: Iterator[Any]) -> Iterator[Any]:
        return output


class Generation(ls.LitAPI):
    """The inference worker's side."""

    def setup(self, _: str) -> None:
        self.engine = engines.load_blocking()
        self.pool = ThreadPoolExecutor(max_workers=1)

    def decode_request(self, request: tuple[contract.Request, float]) -> engines.Job:
        wanted, received = request
        try:
            job = self.engine.prepare(wanted)
        except ContractError as error:
            raise HTTPException(error.status, error.body()) from None
        job.received = received  # it has waited in LitServe's queue
        return job

    def predict(self, job: engines.Job) -> Iterator[str | Outcome]:
        items: queue.SimpleQueue[str | Outcome | BaseException] = queue.SimpleQueue()
        generation = self.pool.submit(self.engine.generate, job, items.put)
        generation.add_done_callback(lambda done: items.put(done.exception() or done.result()))
        while isinstance(item := items.get(), str):
            yield item
        if isinstance(item, BaseException):
            raise item
        yield item


async def refused(_: Request, error: ContractError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)


async def http_error(_: Request, error: StarletteHTTPException) -> Response:
    from_worker: Any = error.detail
    body = from_worker if isinstance(from_worker, dict) else contract.error_body(error.status_code, error.detail)
    return JSONResponse(body, error.status_code, error.headers)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--workers", type=int)
    arguments = parser.parse_args()
    os.environ["SERVEOFF_THREADS"] = str(max(1, SETTINGS.threads // arguments.workers))

    litserve.server._MCP_AVAILABLE = False  # it takes vLLM's `mcp` for the older one that it knows, and fails
    owner = os.getpid()

    def end(*_: object) -> None:
        """LitServe's way to end in order is Ctrl-C; what it forks inherits this."""
        if os.getpid() == owner:
            raise KeyboardInterrupt
        os._exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    server = ls.LitServer(Generation(spec=Contract()), devices=1, workers_per_device=arguments.workers, timeout=False,
                          middlewares=[AsgiMetrics])
    server.app.add_exception_handler(ContractError, refused)
    server.app.add_exception_handler(StarletteHTTPException, http_error)
    server.uvicorn_graceful_timeout = 10
    server.run(host=arguments.host, port=arguments.port, num_api_servers=1, generate_client_file=False, log_level="warning",
               loop="uvloop", http="httptools", access_log=False)


if __name__ == "__main__":
    main()
