"""Django under Daphne with a blocking engine in a thread pool: an async view that streams, and Channels' consumer for WebSockets.

The pool's thread hands each token to the event loop with `call_soon_threadsafe`. What streams is an async generator: any other Django
reads to its end before it sends the first token.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import django
from asgiref.sync import sync_to_async
from autobahn.exception import Disconnected
from channels.exceptions import DenyConnection
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.http import require_safe

from servers import contract, engines
from servers.contract import Answer, ChatCompletionRequest, CompletionRequest, ContractError, Outcome
from servers.metrics import AsgiMetrics

KINDS: dict[str, Any] = {contract.COMPLETIONS: CompletionRequest, contract.CHAT_COMPLETIONS: ChatCompletionRequest}
engine = engines.load_blocking()
pool = ThreadPoolExecutor(max_workers=40)  # as many as servers/fastapi_threadpool has


class ClientGone(Exception):
    pass


async def generated(job: engines.Job) -> AsyncIterator[Any]:
    """Each token's text, then the Outcome. Cancelling it ends the generation at its next token."""
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[str | asyncio.Future[Outcome]] = asyncio.Queue()
    gone = threading.Event()

    def on_token(text: str) -> None:
        if gone.is_set():
            raise ClientGone
        loop.call_soon_threadsafe(items.put_nowait, text)

    generation = asyncio.ensure_future(sync_to_async(engine.generate, thread_sensitive=False, executor=pool)(job, on_token))
    generation.add_done_callback(items.put_nowait)
    generation.add_done_callback(asyncio.Future.exception)  # looked at even if nobody is left to ask for it
    try:
        while isinstance(item := await items.get(), str):
            yield item
        yield item.result()
    finally:
        gone.set()


# -------------------------------------------------------------------------------------------------------------------- HTTP


@require_safe
async def health(_: HttpRequest) -> HttpResponse:
    return JsonResponse({"status": "ok"})


@require_safe
async def models(_: HttpRequest) -> HttpResponse:
    return JsonResponse(contract.models_body(engine.model))


async def completions(request: HttpRequest, kind: Any) -> HttpResponse:
    try:
        if request.method != "POST":
            raise ContractError(405, "only POST, or an upgrade to a WebSocket")
        wanted = contract.parse(kind, request.body)
        job = engine.prepare(wanted)
    except ContractError as error:
        return refused(error)
    reply = Answer(wanted, engine.model)
    if wanted.stream:
        return StreamingHttpResponse(events(job, reply), content_type=contract.SSE_CONTENT_TYPE, headers=contract.SSE_HEADERS)
    *pieces, outcome = [item async for item in generated(job)]
    return JsonResponse(reply.complete("".join(pieces), outcome))


async def events(job: engines.Job, reply: Answer) -> AsyncIterator[str]:
    try:
        async for item in generated(job):
            yield reply.event(item)
    except Exception as error:
        logging.exception("generation failed")
        yield reply.event(error)


def refused(error: ContractError, *_: object, **__: object) -> HttpResponse:
    return JsonResponse(error.body(), status=error.status, headers=error.headers)


urlpatterns = [path("health", health), path("v1/models", models), *(path(name[1:], completions, {"kind": KINDS[name]}) for name in KINDS)]
handler400 = partial(refused, ContractError(400, "not a request that Django takes"))
handler404 = partial(refused, ContractError(404, "there is no such path"))
handler500 = partial(refused, ContractError(500, "the server failed"))

# --------------------------------------------------------------------------------------------------------------- WebSocket


class Completions(AsyncWebsocketConsumer):
    answering: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        if self.scope["path"] not in KINDS:
            raise DenyConnection
        await self.accept()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if self.answering:
            await asyncio.wait([self.answering])
        self.answering = asyncio.create_task(self.answer(text_data or bytes_data or ""))  # not awaited: else a disconnect would wait for it

    async def disconnect(self, _: int) -> None:
        if self.answering:
            self.answering.cancel()

    async def answer(self, message: str | bytes) -> None:
        try:
            wanted = contract.parse(KINDS[self.scope["path"]], message)
            reply = Answer(wanted, engine.model)
            async for item in generated(engine.prepare(wanted)):
                for payload in contract.payloads(reply.event(item)):
                    await self.send(text_data=payload)
        except Disconnected:  # Daphne knows, and has not yet told us
            pass
        except Exception as error:
            if not isinstance(error, ContractError):
                logging.exception("generation failed")
            await self.send(text_data=contract.error_message(error))


settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], DATA_UPLOAD_MAX_MEMORY_SIZE=contract.MAX_BODY_BYTES)
django.setup()
application = AsgiMetrics(ProtocolTypeRouter({"http": get_asgi_application(), "websocket": Completions.as_asgi()}))
