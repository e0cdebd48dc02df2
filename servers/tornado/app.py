"""Tornado's own server with a blocking engine in a thread pool: one handler, asked by POST or, once upgraded, by a WebSocket's messages.

The pool's thread hands each token to the event loop with `add_callback`, and the handler's coroutine flushes each event.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from prometheus_client import CONTENT_TYPE_LATEST
from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.iostream import StreamClosedError
from tornado.options import define, options
from tornado.web import Application, Finish, HTTPError, RequestHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from servers import contract, engines, metrics
from servers.contract import Answer, ChatCompletionRequest, CompletionRequest, ContractError, Outcome
from servers.metrics import Counted

engine = engines.load_blocking()
pool = ThreadPoolExecutor(max_workers=40)  # as many as servers/fastapi_threadpool has


class ClientGone(Finish):
    pass


class Metrics(RequestHandler):
    def get(self) -> None:
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.finish(metrics.exposition(self.request.query))


class Handler(RequestHandler):
    """What all others have in common: they are counted, ask for the key, and word errors as OpenAI does."""

    def initialize(self, kind: Any = None) -> None:
        self.kind = kind
        self.gone = threading.Event()
        self.upgrading = self.request.headers.get("Upgrade", "").lower() == "websocket"
        self.counted = None if self.upgrading else Counted(self.request.path)  # a WebSocket's messages are counted, not its handshake

    def prepare(self) -> None:
        refusal = metrics.refusal_of(self.request.headers.get("Authorization", ""), str(len(self.request.body)))
        if refusal and self.request.path != "/health":
            raise refusal

    def on_finish(self) -> None:
        if self.counted:
            self.counted.status = 499 if self.gone.is_set() else self.get_status()
            self.counted.end()

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, ContractError):
            super().log_exception(typ, value, tb)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None))[1]
        said = error if isinstance(error, ContractError) else ContractError(status_code, self._reason)
        self.set_status(said.status)
        for name, value in said.headers.items():
            self.set_header(name, value)
        self.finish(said.body())


class Health(Handler):
    def get(self) -> None:
        self.finish({"status": "ok"})


class Models(Handler):
    def get(self) -> None:
        self.finish(contract.models_body(engine.model))


class Unknown(Handler):
    def prepare(self) -> None:
        super().prepare()
        raise ContractError(404, f"there is no {self.request.path}")


class Completions(Handler, WebSocketHandler):
    answering: "asyncio.Task[None] | None" = None

    async def post(self) -> None:
        wanted = contract.parse(self.kind, self.request.body)
        job = engine.prepare(wanted)
        reply = Answer(wanted, engine.model)
        if not wanted.stream:
            *pieces, outcome = [item async for item in self.generated(job)]
            self.finish(reply.complete("".join(pieces), outcome))
            return
        for name, value in {"Content-Type": contract.SSE_CONTENT_TYPE, **contract.SSE_HEADERS}.items():
            self.set_header(name, value)
        cast(HTTP1Connection, self.request.connection).stream.set_nodelay(True)  # else a token may wait for the client's acknowledgement
        try:
            async for item in self.generated(job):
                self.write(reply.event(item))
                await self.flush()
        except (ClientGone, StreamClosedError):
            self.gone.set()
            raise ClientGone from None
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
        if self.answering:
            await asyncio.wait([self.answering])
        self.answering = asyncio.create_task(self.answer(message))  # not awaited: pings and the close are read meanwhile

    async def answer(self, message: str | bytes) -> None:
        counted = Counted(self.request.path)
        try:
            async for payload in self.payloads(message):
                await self.write_message(payload)
                counted.status = contract.status_of_end(payload) or counted.status
        except (ClientGone, WebSocketClosedError):
            pass
        finally:
            counted.end()

    async def payloads(self, message: str | bytes) -> AsyncIterator[str]:
        try:
            wanted = contract.parse(self.kind, message)
            reply = Answer(wanted, engine.model)
            async for item in self.generated(engine.prepare(wanted)):
                for payload in contract.payloads(reply.event(item)):
                    yield payload
        except ClientGone:
            raise
        except Exception as error:
            if not isinstance(error, ContractError):
                logging.exception("generation failed")
            yield contract.error_message(error)

    def on_close(self) -> None:  # of a POST's connection, too
        self.gone.set()

    async def generated(self, job: engines.Job) -> AsyncIterator[Any]:
        """Each token's text, then the Outcome. Ends the generation at its next token when the client has gone."""
        loop = IOLoop.current()
        items: asyncio.Queue[str | asyncio.Future[Outcome]] = asyncio.Queue()

        def on_token(text: str) -> None:
            if self.gone.is_set():
                raise ClientGone
            loop.add_callback(items.put_nowait, text)

        generation = loop.run_in_executor(pool, engine.generate, job, on_token)
        loop.add_future(generation, items.put_nowait)
        generation.add_done_callback(asyncio.Future.exception)  # looked at even if nobody is left to ask for it
        while isinstance(item := await items.get(), str):
            yield item
        yield item.result()


async def main() -> None:
    define("listen", help="HOST:PORT")
    options.parse_command_line()
    host, _, port = options.listen.rpartition(":")
    kinds = {contract.COMPLETIONS: CompletionRequest, contract.CHAT_COMPLETIONS: ChatCompletionRequest}
    app = Application([("/health", Health), ("/v1/models", Models), ("/metrics", Metrics),
                       *((path, Completions, {"kind": kind}) for path, kind in kinds.items())],
                      default_handler_class=Unknown, websocket_max_message_size=contract.MAX_BODY_BYTES)
    server = HTTPServer(app)
    server.listen(int(port), host)
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    await ending.wait()
    server.stop()
    await metrics.idle()


if __name__ == "__main__":
    asyncio.run(main())
