"""Stores responses in this process or, with SERVEOFF_CACHE_URL, in Redis. Both evict the least
recently used ones.
"""

import os
from collections.abc import Awaitable
from typing import Any

from cachetools import TTLCache
from prometheus_client import Counter
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from servers.runtime.limits import CACHE_ENTRIES, CACHE_TTL_S, REDIS_S

ERRORS = Counter("serveoff_cache_errors", "failed reads and writes of the cache")


class InMemory:
    def __init__(self) -> None:
        self.responses: TTLCache[str, str] = TTLCache(CACHE_ENTRIES, CACHE_TTL_S)

    async def get(self, key: str) -> str | None:
        return self.responses.get(key)

    async def put(self, key: str, response: str) -> None:
        self.responses[key] = response

    async def close(self) -> None:
        pass


class InRedis:
    """A failing Redis only makes the server slower: every request is then a miss."""

    def __init__(self, url: str):
        # at most 50 connections; when all are in use, a request waits for one
        self.redis = Redis.from_pool(
            BlockingConnectionPool.from_url(url, timeout=REDIS_S, socket_timeout=REDIS_S)
        )

    async def get(self, key: str) -> bytes | str | None:
        return await self._tried(self.redis.get(key))

    async def put(self, key: str, response: str) -> None:
        await self._tried(self.redis.set(key, response, px=round(1000 * CACHE_TTL_S)))

    async def close(self) -> None:
        await self.redis.aclose()

    async def _tried(self, command: Awaitable[Any]) -> Any:
        try:
            return await command
        except RedisError:
            ERRORS.inc()
            return None


def from_environment() -> InMemory | InRedis:
    url = os.environ.get("SERVEOFF_CACHE_URL")
    return InRedis(url) if url else InMemory()
