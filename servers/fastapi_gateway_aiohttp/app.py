"""A gateway whose client is aiohttp: one pool of connections, an answer's bytes passed on as they
come.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp
from fastapi import FastAPI
from fastapi.responses import Response, StreamingResponse
from starlette.background import BackgroundTask

from servers.contract import api
from servers.frameworks import gateway_base
from servers.runtime import limits


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # no limit: whoever waits, waits in the engine
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=gateway_base.KEEP_ALIVE_S)
    timeout = aiohttp.ClientTimeout(
        sock_connect=limits.CONNECT_TIMEOUT_S, sock_read=limits.READ_TIMEOUT_S
    )
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=gateway_base.HEADERS
    ) as app.state.client:
        for url in gateway_base.UPSTREAMS:
            with failures(url):
                async with app.state.client.get(
                    f"{url}/v1/models", raise_for_status=True
                ) as answer:
                    app.state.engine.add(url, await answer.json(content_type=None))
        yield


@contextmanager
def failures(url: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise gateway_base.upstream_silent(url, error) from None
    except aiohttp.ClientError as error:
        raise gateway_base.upstream_gone(url, error) from None


async def forward(url: str, body: str, stream: bool) -> Response:
    client: aiohttp.ClientSession = app.state.client
    with failures(url):
        answer = await client.post(url, data=body.encode())
        if not stream or answer.status != 200:
            return gateway_base.forward_plain(
                answer.status, await answer.read(), answer.headers.get("Retry-After", "")
            )
    return StreamingResponse(
        events(url, answer),
        media_type=api.SSE_CONTENT_TYPE,
        headers=api.SSE_HEADERS,
        # also if the client has gone, which cancels the upstream's work
        background=BackgroundTask(close, answer),
    )


# async, since Starlette would give a plain function to another thread
async def close(answer: aiohttp.ClientResponse) -> None:
    answer.close()


async def events(url: str, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes | str]:
    try:
        with failures(url):
            async for piece in answer.content.iter_any():
                yield piece
    except api.ContractError as error:
        yield gateway_base.error_event(error)


app = gateway_base.create_gateway("Serveoff: gateway, aiohttp", lifespan, forward)
