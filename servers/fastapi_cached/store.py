"""Where answers are kept: in this process or, with SERVEOFF_CACHE_URL, in Redis. Both drop what was
not asked for longest.
"""

import os
from collections.abc import Awaitable
from typing import Any

from cachetools import TTLCache
from prometheus_client import Counter
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from servers.runtime.limits import CACHE_ENTRIES, CACHE_TTL_S, REDIS_S

ERRORS = Counter("serveoff_cache_errors", "times that the cache could not be asked or told")


class InMemory:
    def __init__(self) -> None:
        self.answers: TTLCache[str, str] = TTLCache(CACHE_ENTRIES, CACHE_TTL_S)

    async def get(self, key: str) -> str | None:
        return self.answers.get(key)

    async def put(self, key: str, answer: str) -> None:
        self.answers[key] = answer

    async def close(self) -> None:
        pass


class InRedis:
    """Without it a server is slower, and nothing else."""

    def __init__(self, url: str):
        # 50 connections; whoever finds none free waits for one.
        self.redis = Redis.from_pool(
            BlockingConnectionPool.from_url(url, timeout=REDIS_S, socket_timeout=REDIS_S)
        )

    async def get(self, key: str) -> bytes | str | None:
        return await self._tried(self.redis.get(key))

    async def put(self, key: str, answer: str) -> None:
        await self._tried(self.redis.set(key, answer, px=round(1000 * CACHE_TTL_S)))

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
