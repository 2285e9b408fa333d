"""A store in a real Redis, for heads that must be able to move between machines.

One hash per table, one field per row: `ray_mono:{namespace}:actor` and so on. The namespace names the
cluster, so that several can share a server. Its braces keep all that belongs to a cluster in one slot, so
that a batch can be one script. `redis_lease.py` says how a head holds these rows against other heads, and
`redis_master.py` where they are.

A commit is answered when Redis has executed it, and when as many replicas as were asked for have it (WAIT).
What that survives beyond them is Redis's own configuration (appendonly).

A Redis that cannot be reached, is not the master any more, or whose replicas do not answer, is tried again
within a bound, with pauses that grow. It is warned of once. One that has no memory left for a write is a disk
without room (`room.py`). Other answers of Redis (a wrong password) fail at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from redis import asyncio as redis_asyncio
from redis import exceptions as redis_exceptions

from ray_mono.common.backoff import Backoff
from ray_mono.gcs.storage import head_process, redis_lease
from ray_mono.gcs.storage.redis_address import RedisAddress
from ray_mono.gcs.storage.redis_master import (
    UNREACHABLE,
    AmbiguousServiceError,
    Master,
    NoMasterError,
    find_master,
    refusal_in,
)
from ray_mono.gcs.storage.table_storage import DeposedError, StorageError, StorageFullError, Table, Write

logger = logging.getLogger(__name__)

# Pauses between attempts to reach a Redis that does not answer.
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0
# For the replicas of one commit, before it is tried again.
REPLICAS_TIMEOUT_S = 1.0
# A table is read in pieces: however large it is, and slow the network, each answer comes in time.
PIECE_BYTES = 4 << 20
PIECE_ROWS = 1000
# At the end, when nothing depends on it.
RELEASE_TIMEOUT_S = 1.0

# Not now: another server is, or will be, the one to ask.
TRANSIENT = (
    *UNREACHABLE,
    redis_exceptions.ReadOnlyError,
    redis_exceptions.AskError,
    redis_exceptions.TryAgainError,
    redis_exceptions.ClusterDownError,
)
# The same as they come without a class of their own, or in the middle of what Redis 6 says of a script.
TRANSIENT_CODES = ("NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "READONLY", "BUSY", "UNBLOCKED", "MISCONF")
# In what it says where it takes no writes for that.
OUT_OF_MEMORY = "used memory > 'maxmemory'"

Answer = TypeVar("Answer")
TABLES = tuple(Table)


async def read_piece(key: str, names: Sequence[bytes], client: redis_asyncio.Redis) -> Sequence[bytes | None]:
    """The values of some of these fields, from the first one on."""
    values: list[bytes | None] = await client.eval(redis_lease.READ, 1, key, PIECE_BYTES, *names)
    return values


class RedisStorage:
    """Implements TableStorage on a Redis."""

    def __init__(
        self,
        address: RedisAddress,
        namespace: str,
        retry_for_s: float,
        time_s: Callable[[], float],
    ) -> None:
        """retry_for_s: an unreachable one. time_s(): monotonic, and goes on while the machine sleeps."""
        self._address = address
        self._namespace = namespace
        self._retry_for_s = retry_for_s
        self._time_s = time_s
        self._master: Master | None = None
        self._is_open = False
        self._number = 0
        self._sequence = 0
        self._confirmed_until_s = 0.0
        self._keys = [f"ray_mono:{{{namespace}}}:{name}" for name in ("head", *(t.value for t in TABLES))]

    # ---- to take over

    async def open(self) -> int:
        self._is_open = True
        try:
            return await self._take_over()
        except BaseException:
            await self.close()
            raise

    async def _take_over(self) -> int:
        me = f"{socket.gethostname()} (pid {os.getpid()})"
        token = secrets.token_hex(8)
        process = head_process.own_name()

        async def take(client: redis_asyncio.Redis) -> tuple[int, str, bool]:
            while True:
                number, holder, released, before = await cast(
                    "Awaitable[list[bytes | None]]",
                    client.hmget(self._keys[0], ["number", "holder", "released", "process"]),
                )
                seen = str(int(number or 0))
                own = await self._run(client, redis_lease.TAKE_OVER, 1, seen, me, token, process)
                if own:
                    has_ended = released != b"0" or head_process.has_ended((before or b"").decode())
                    return own, (holder or b"").decode(), not has_ended

        self._number, holder, may_live = await self._retrying("take over the cluster's rows", take)
        # From here on the last head writes nothing. That it answers nobody, either, is a question of time.
        if may_live:
            logger.info("head %d takes over from %s, once its lease is over", self._number, holder)
            await asyncio.sleep(redis_lease.LEASE_S)
        await self.commit([])
        return self._number

    async def load_all(self, table: Table) -> dict[bytes, bytes]:
        key = self._keys[1 + TABLES.index(table)]
        what = f"read table {table.value}"
        names = sorted(await self._retrying(what, lambda it: cast("Awaitable[list[bytes]]", it.hkeys(key))))
        rows: dict[bytes, bytes] = {}
        start = 0
        while start < len(names):
            wanted = names[start : start + PIECE_ROWS]
            values = await self._retrying(what, partial(read_piece, key, wanted))
            read = zip(wanted[: len(values)], values, strict=True)
            rows.update((name, value) for name, value in read if value is not None)
            start += len(values)
        return rows

    # ---- to write

    async def commit(self, writes: Sequence[Write]) -> None:
        sequence = self._sequence + 1
        arguments: list[bytes | int] = [self._number, sequence]
        for write in writes:
            value = b"0" if write.value is None else b"1" + write.value
            arguments += [2 + TABLES.index(write.table), write.key, value]

        async def execute(client: redis_asyncio.Redis) -> None:
            start_s = self._time_s()
            replicas = self._replicas_wanted()
            # The two in one packet, on one connection: WAIT is about what came before it there.
            async with client.pipeline(transaction=False) as pipeline:
                pipeline.eval(redis_lease.COMMIT, len(self._keys), *self._keys, *arguments)
                if replicas:
                    pipeline.execute_command("WAIT", replicas, round(REPLICAS_TIMEOUT_S * 1000))
                (number, done, holder), *answered = await pipeline.execute()
            self._check_head(int(number), int(done), holder.decode(), sequence)
            if answered and int(answered[0]) < replicas:
                raise NoMasterError(
                    f"{answered[0]} replicas have the change, and its address asks for ?replicas={replicas} "
                    "(which is 1 by default for a Sentinel and a Cluster)"
                )
            self._confirmed_until_s = start_s + redis_lease.LEASE_S - redis_lease.MARGIN_S

        await self._retrying("write", execute)
        self._sequence = sequence

    def _replicas_wanted(self) -> int:
        if self._address.replicas is not None:
            return self._address.replicas
        return 1 if self._master is not None and self._master.has_replicas else 0

    def _check_head(self, number: int, done: int, holder: str, sequence: int) -> None:
        """Of the answer to commit number `sequence`."""
        if number > self._number:
            raise DeposedError(
                f"head {number} of this cluster, on {holder}, took over from this one, which is head "
                f"{self._number}"
            )
        if number < self._number or done < sequence:
            raise StorageError(
                f"Redis at {self._address} has lost changes that it had acknowledged: it knows commit {done} "
                f"of head {number}, and commit {sequence - 1} of head {self._number} was done. It was "
                "emptied, started again without its append-only file, killed before it wrote them there "
                "(appendfsync everysec), or failed over to a replica that did not have them (?replicas= in "
                "its address says how many must)"
            )

    def is_confirmed(self, for_s: float) -> bool:
        return self._time_s() + for_s < self._confirmed_until_s

    # ---- to end

    async def close(self) -> None:
        self._is_open = False
        if self._master is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(RELEASE_TIMEOUT_S):
                    await self._run(self._master.client, redis_lease.RELEASE, 1, str(self._number))
        self._confirmed_until_s = 0.0
        await self._drop_master()

    async def _drop_master(self) -> None:
        master, self._master = self._master, None
        if master is not None:
            with contextlib.suppress(*UNREACHABLE):
                await master.client.aclose()

    # ---- to ask

    async def _run(self, client: redis_asyncio.Redis, script: str, num_keys: int, *arguments: str) -> Any:
        return await client.eval(script, num_keys, *self._keys[:num_keys], *arguments)

    async def _client(self) -> redis_asyncio.Redis:
        if self._master is None:
            self._master = await find_master(self._address, self._keys[0])
        return self._master.client

    async def _retrying(self, what: str, call: Callable[[redis_asyncio.Redis], Awaitable[Answer]]) -> Answer:
        """call(client), again while it cannot be done now, for at most retry_for_s. Raises StorageError."""
        if not self._is_open:
            raise StorageError(f"Redis at {self._address} is not open")
        start_s = self._time_s()
        pauses = Backoff(RETRY_FIRST_S, RETRY_MAX_S)
        attempts = 0
        while True:
            try:
                answer = await call(await self._client())
                if attempts:
                    logger.warning(
                        "Redis at %s is back after %.1f s", self._address, self._time_s() - start_s
                    )
                return answer
            except AmbiguousServiceError as error:
                raise StorageError(str(error)) from error
            except (redis_exceptions.RedisError, OSError) as error:
                await self._drop_master()
                self._raise_lasting(error, what)
                attempts += 1
                waited_s = self._time_s() - start_s
                if waited_s >= self._retry_for_s:
                    raise StorageError(
                        f"Redis at {self._address} cannot be reached to {what} "
                        f"({attempts} attempts in {waited_s:.1f} s): {error}"
                    ) from error
                if attempts == 1:
                    logger.warning(
                        "Redis at %s cannot be reached to %s: %s. Trying again for %g s, then this GCS ends",
                        self._address,
                        what,
                        error,
                        self._retry_for_s,
                    )
            await asyncio.sleep(min(pauses.next_s(), max(0.0, self._retry_for_s - waited_s)))

    def _raise_lasting(self, error: Exception, what: str) -> None:
        """Raises StorageError where trying again is of no use."""
        refusal = refusal_in(error)
        if isinstance(refusal, ssl.SSLCertVerificationError):
            raise StorageError(
                f"Redis at {self._address} shows a certificate that is not trusted: {refusal}. Name its "
                "authority as in rediss://host:port?ssl_ca_certs=FILE"
            ) from error
        if refusal is not None:
            raise StorageError(
                f"Redis at {self._address} refused the password or user: {refusal}. Pass them with "
                "--redis-password and --redis-username, or in the environment variables "
                "RAY_MONO_REDIS_PASSWORD and RAY_MONO_REDIS_USERNAME"
            ) from error
        if isinstance(error, TRANSIENT) or any(code in str(error) for code in TRANSIENT_CODES):
            return
        if OUT_OF_MEMORY in str(error):
            raise StorageFullError(
                f"Redis at {self._address} has no memory left to {what} (its maxmemory is used)"
            ) from error
        raise StorageError(f"Redis at {self._address} refused to {what}: {error}") from error
