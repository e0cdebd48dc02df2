"""Channels' consumer for WebSockets."""

import asyncio
import logging

from autobahn.exception import Disconnected
from channels.exceptions import DenyConnection
from channels.generic.websocket import AsyncWebsocketConsumer

from servers.contract import api
from servers.contract.api import CompletionResponse, ContractError
from servers.django_channels.generation import KINDS, engine, generated


class CompletionsConsumer(AsyncWebsocketConsumer):
    answering: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        if self.scope["path"] not in KINDS:
            raise DenyConnection
        await self.accept()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if self.answering:
            await asyncio.wait([self.answering])
        # not awaited: else a disconnect would wait for it
        self.answering = asyncio.create_task(self.answer(text_data or bytes_data or ""))

    async def disconnect(self, _: int) -> None:
        if self.answering:
            self.answering.cancel()

    async def answer(self, message: str | bytes) -> None:
        try:
            wanted = api.parse_request(KINDS[self.scope["path"]], message)
            reply = CompletionResponse(wanted, engine.model)
            async for item in generated(engine.prepare(wanted)):
                for payload in api.split_events(reply.event(item)):
                    await self.send(text_data=payload)
        except Disconnected:  # Daphne knows, and has not yet told us
            pass
        except Exception as error:
            if not isinstance(error, ContractError):
                logging.exception("generation failed")
            await self.send(text_data=api.error_message(error))
