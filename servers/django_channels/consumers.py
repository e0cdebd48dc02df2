"""The Channels consumer for WebSockets."""

import asyncio
import logging

from autobahn.exception import Disconnected
from channels.exceptions import DenyConnection
from channels.generic.websocket import AsyncWebsocketConsumer

from servers.contract import api
from servers.contract.api import CompletionResponse, ContractError
from servers.django_channels.generation import KINDS, engine, generated


class CompletionsConsumer(AsyncWebsocketConsumer):
    response: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        if self.scope["path"] not in KINDS:
            raise DenyConnection
        await self.accept()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if self.response:
            await asyncio.wait([self.response])
        # not awaited: a disconnect would wait for it
        self.response = asyncio.create_task(self.respond(text_data or bytes_data or ""))

    async def disconnect(self, _: int) -> None:
        if self.response:
            self.response.cancel()

    async def respond(self, message: str | bytes) -> None:
        try:
            wanted = api.parse_request(KINDS[self.scope["path"]], message)
            reply = CompletionResponse(wanted, engine.model)
            async for item in generated(engine.prepare(wanted)):
                for payload in api.split_events(reply.event(item)):
                    await self.send(text_data=payload)
        except Disconnected:  # Daphne has noticed, but not yet called `disconnect`
            pass
        except Exception as error:
            if not isinstance(error, ContractError):
                logging.exception("generation failed")
            await self.send(text_data=api.error_message(error))
