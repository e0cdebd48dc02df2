"""A gateway with aiohttp as its client: one connection pool; response bytes are forwarded as they
arrive.
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
    # no limit on connections: requests wait in the engine
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
                ) as response:
                    app.state.engine.add(url, await response.json(content_type=None))
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
        response = await client.post(url, data=body.encode())
        if not stream or response.status != 200:
            return gateway_base.forward_plain(
                response.status, await response.read(), response.headers.get("Retry-After", "")
            )
    return StreamingResponse(
        events(url, response),
        media_type=api.SSE_CONTENT_TYPE,
        headers=api.SSE_HEADERS,
        # also runs if the client disconnects; closing cancels the upstream's work
        background=BackgroundTask(close, response),
    )


# async because Starlette would run a plain function in another thread
async def close(response: aiohttp.ClientResponse) -> None:
    response.close()


async def events(url: str, response: aiohttp.ClientResponse) -> AsyncIterator[bytes | str]:
    try:
        with failures(url):
            async for piece in response.content.iter_any():
                yield piece
    except api.ContractError as error:
        yield gateway_base.error_event(error)


app = gateway_base.create_gateway("Serveoff: gateway, aiohttp", lifespan, forward)
