"""A gateway with httpx2 as its client: one connection pool; response bytes are forwarded as they
arrive.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx2
from fastapi import FastAPI
from fastapi.responses import Response, StreamingResponse
from starlette.background import BackgroundTask

from servers.contract import api
from servers.frameworks import gateway_base
from servers.runtime import limits


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # no limit on connections: requests wait in the engine
    pool = httpx2.Limits(keepalive_expiry=gateway_base.KEEP_ALIVE_S)
    timeout = httpx2.Timeout(limits.READ_TIMEOUT_S, connect=limits.CONNECT_TIMEOUT_S)
    async with httpx2.AsyncClient(
        limits=pool, timeout=timeout, headers=gateway_base.HEADERS, trust_env=False
    ) as app.state.client:
        for url in gateway_base.UPSTREAMS:
            with failures(url):
                app.state.engine.add(
                    url, (await app.state.client.get(f"{url}/v1/models")).raise_for_status().json()
                )
        yield


@contextmanager
def failures(url: str) -> Iterator[None]:
    try:
        yield
    except httpx2.TimeoutException as error:
        raise gateway_base.upstream_silent(url, error) from None
    except httpx2.TransportError as error:
        raise gateway_base.upstream_gone(url, error) from None


async def forward(url: str, body: str, stream: bool) -> Response:
    client: httpx2.AsyncClient = app.state.client
    with failures(url):
        response = await client.send(client.build_request("POST", url, content=body), stream=True)
        if not stream or response.status_code != 200:
            return gateway_base.forward_plain(
                response.status_code,
                await response.aread(),
                response.headers.get("retry-after", ""),
            )
    return StreamingResponse(
        events(url, response),
        media_type=api.SSE_CONTENT_TYPE,
        headers=api.SSE_HEADERS,
        # also runs if the client disconnects; closing cancels the upstream's work
        background=BackgroundTask(response.aclose),
    )


async def events(url: str, response: httpx2.Response) -> AsyncIterator[bytes | str]:
    try:
        with failures(url):
            async for piece in response.aiter_raw():
                yield piece
    except api.ContractError as error:
        yield gateway_base.error_event(error)


app = gateway_base.create_gateway("Serveoff: gateway, httpx2", lifespan, forward)
