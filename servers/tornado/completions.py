"""One handler for completions, for a POST or the messages of a WebSocket. Its coroutine flushes
each event.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import cast

from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError
from tornado.web import Finish, HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from servers.contract import api
from servers.contract.api import ClientGone, CompletionResponse, ContractError
from servers.contract.metrics import CountedRequest
from servers.engines import Job
from servers.tornado.generation import generated
from servers.tornado.handlers import Handler


class CompletionsHandler(Handler, WebSocketHandler):
    response: "asyncio.Task[None] | None" = None

    async def post(self) -> None:
        wanted = api.parse_request(self.kind, self.request.body)
        job = self.engine.prepare(wanted)
        reply = CompletionResponse(wanted, self.engine.model)
        try:
            if wanted.stream:
                await self.stream(job, reply)
            else:
                *pieces, outcome = [
                    item async for item in generated(self.engine, self.pool, job, self.gone)
                ]
                self.finish(reply.complete("".join(pieces), outcome))
        except (ClientGone, StreamClosedError):
            self.gone.set()
            raise Finish from None

    async def stream(self, job: Job, reply: CompletionResponse) -> None:
        for name, value in {"Content-Type": api.SSE_CONTENT_TYPE, **api.SSE_HEADERS}.items():
            self.set_header(name, value)
        # otherwise a token may wait for the client's acknowledgement
        cast(HTTP1Connection, self.request.connection).stream.set_nodelay(True)
        try:
            async for item in generated(self.engine, self.pool, job, self.gone):
                self.write(reply.event(item))
                await self.flush()
        except (ClientGone, StreamClosedError):
            raise
        except Exception as error:
            logging.exception("generation failed")
            self.write(reply.event(error))

    async def get(self) -> None:
        if not self.upgrading:
            raise HTTPError(405)
        await super().get()

    def open(self) -> None:
        self.set_nodelay(True)

    async def on_message(self, message: str | bytes) -> None:
        if self.response:
            await asyncio.wait([self.response])
        # not awaited: Tornado reads pings and the close meanwhile
        self.response = asyncio.create_task(self.respond(message))

    async def respond(self, message: str | bytes) -> None:
        counted = CountedRequest(self.request.path)
        try:
            async for payload in self.payloads(message):
                await self.write_message(payload)
                counted.status = api.status_of_end(payload) or counted.status
        except (ClientGone, WebSocketClosedError):
            pass
        finally:
            counted.end()

    async def payloads(self, message: str | bytes) -> AsyncIterator[str]:
        try:
            wanted = api.parse_request(self.kind, message)
            reply = CompletionResponse(wanted, self.engine.model)
            async for item in generated(
                self.engine, self.pool, self.engine.prepare(wanted), self.gone
            ):
                for payload in api.split_events(reply.event(item)):
                    yield payload
        except ClientGone:
            raise
        except Exception as error:
            if not isinstance(error, ContractError):
                logging.exception("generation failed")
            yield api.error_message(error)

    def on_close(self) -> None:  # Tornado calls it for a POST's connection as well
        self.gone.set()
