"""A store in a real Redis, for heads that must be able to move between machines.

One hash per table, one field per row: `ray_mono:{namespace}:actor` and so on. The namespace names the
cluster, so that several can share a server. Its braces keep all tables of a cluster in one slot, so that a
batch can be one MULTI/EXEC. A commit is answered when Redis has executed it; what that survives is Redis's
own configuration (appendonly).

A broken connection is retried within a bound: rows are written whole, so executing a batch twice is the same
as once. Other answers of Redis (a wrong password, a read-only replica, out of memory) fail at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, cast

from redis import asyncio as redis_asyncio
from redis import exceptions as redis_exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ray_mono.common.our_bug import InternalError
from ray_mono.gcs.storage.table_storage import StorageError, Table, Write

# Between attempts to reach a Redis that does not answer.
RETRY_PERIOD_S = 0.2
# For one answer: a Redis that takes longer is treated as unreachable.
ANSWER_TIMEOUT_S = 10.0

Answer = TypeVar("Answer")


class RedisStorage:
    """Implements TableStorage on a Redis server."""

    def __init__(self, address: str, password: str, namespace: str, retry_for_s: float) -> None:
        """address: "host:port" or "unix:/path". password: empty for none. retry_for_s: an unreachable one."""
        self._address = address
        self._password = password
        self._namespace = namespace
        self._retry_for_s = retry_for_s
        self._client: redis_asyncio.Redis | None = None

    async def open(self) -> None:
        self._client = self._make_client()
        try:
            await self._retrying("connect", self._client.ping)
        except StorageError:
            await self.close()
            raise

    def _make_client(self) -> redis_asyncio.Redis:
        password = self._password or None
        # How often something is tried again is decided here, not in the client.
        never = Retry(NoBackoff(), 0)
        if self._address.startswith("unix:"):
            path = self._address.removeprefix("unix:")
            return redis_asyncio.Redis(
                unix_socket_path=path, password=password, socket_timeout=ANSWER_TIMEOUT_S, retry=never
            )
        host, separator, port = self._address.rpartition(":")
        if not separator or not host or not port.isdigit():
            raise StorageError(f"the Redis address must be host:port or unix:/path, got {self._address!r}")
        return redis_asyncio.Redis(
            host=host, port=int(port), password=password, socket_timeout=ANSWER_TIMEOUT_S, retry=never
        )

    async def load_all(self, table: Table) -> dict[bytes, bytes]:
        client = self._opened()
        rows = await self._retrying(
            f"read table {table.value}",
            lambda: cast("Awaitable[dict[bytes, bytes]]", client.hgetall(self._key(table))),
        )
        return dict(sorted(rows.items()))

    async def commit(self, writes: Sequence[Write]) -> None:
        client = self._opened()

        async def execute() -> None:
            async with client.pipeline(transaction=True) as pipeline:
                for write in writes:
                    if write.value is None:
                        pipeline.hdel(self._key(write.table), cast(str, write.key))
                    else:
                        pipeline.hset(self._key(write.table), cast(str, write.key), cast(str, write.value))
                await pipeline.execute()

        await self._retrying("write", execute)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _key(self, table: Table) -> str:
        return f"ray_mono:{{{self._namespace}}}:{table.value}"

    def _opened(self) -> redis_asyncio.Redis:
        if self._client is None:
            raise StorageError(f"Redis at {self._address} is not open")
        return self._client

    async def _retrying(self, what: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """call(), again while Redis cannot be reached, for at most retry_for_s. Raises StorageError."""
        attempts = 1 + round(self._retry_for_s / RETRY_PERIOD_S)
        for attempt in range(1, attempts + 1):
            try:
                return await call()
            except (redis_exceptions.ConnectionError, redis_exceptions.TimeoutError, OSError) as error:
                # Newer clients wrap the refusal of a password, older ones raise it.
                if isinstance(error.__cause__ or error, redis_exceptions.AuthenticationError):
                    raise StorageError(
                        f"Redis at {self._address} refused the password: {error}. Pass it with "
                        "--redis-password or in the environment variable RAY_MONO_REDIS_PASSWORD"
                    ) from error
                if attempt == attempts:
                    raise StorageError(
                        f"Redis at {self._address} cannot be reached to {what} ({attempt} attempts): {error}"
                    ) from error
                await asyncio.sleep(RETRY_PERIOD_S)
            except redis_exceptions.RedisError as error:
                raise StorageError(f"Redis at {self._address} refused to {what}: {error}") from error
        raise InternalError("the last attempt neither returned nor raised")
