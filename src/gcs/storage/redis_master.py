"""Which server of a Redis takes writes: asked anew for each connection, since another may take them by then.

What a server is it says itself (INFO). A Sentinel names the master; a node of a Redis Cluster names the
master that has our keys, all of which lie in one slot; any other server must be a master. So one connection
to one server is all that is used, and what follows another (WAIT follows a write) is about the same server.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from typing import Any

from redis import asyncio as redis_asyncio
from redis import exceptions as redis_exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

from ray_mono.gcs.storage.redis_address import RedisAddress

logger = logging.getLogger(__name__)

# For one answer: a Redis that takes longer is treated as unreachable.
ANSWER_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0

REFUSALS = (redis_exceptions.AuthenticationError, ssl.SSLCertVerificationError)
UNREACHABLE = (redis_exceptions.ConnectionError, redis_exceptions.TimeoutError, OSError)


class NoMasterError(redis_exceptions.ConnectionError):
    """No server takes writes now; another may soon."""


class AmbiguousServiceError(Exception):
    """Sentinels watch several masters, and the address names none. The message names them."""


@dataclass
class Master:
    """A client of the server that takes writes."""

    client: redis_asyncio.Redis
    has_replicas: bool
    """Whether it is one of several by its nature: of a Sentinel, or of a Redis Cluster."""


async def find_master(address: RedisAddress, slot_key: str) -> Master:
    """The server that takes writes of this key. Raises RedisError, OSError, AmbiguousServiceError."""
    if address.socket_path:
        client = _client(address, ("", 0), is_sentinel=False)
        await _check_is_master(client, await _info(client))
        return Master(client, has_replicas=False)
    errors: list[Exception] = []
    for server in address.servers:
        try:
            return await _ask(address, server, slot_key)
        except UNREACHABLE as error:
            if refusal_in(error) is not None:
                raise
            errors.append(error)
    raise NoMasterError("; ".join(map(str, errors)))


def refusal_in(error: BaseException | None) -> BaseException | None:
    """What of an error and its causes is a refusal, by the server or of its certificate: to stay.

    Newer clients wrap the refusal of a password in another error, older ones raise it.
    """
    while error is not None and not isinstance(error, REFUSALS):
        error = error.__cause__ or error.__context__
    return error


async def _ask(address: RedisAddress, server: tuple[str, int], slot_key: str) -> Master:
    client, info = await _greet(address, server)
    mode = info.get("redis_mode", "standalone")
    if mode == "standalone":
        await _check_is_master(client, info)
        return Master(client, has_replicas=False)
    try:
        if mode == "sentinel":
            found = await _master_of_sentinel(address, client)
        else:
            found = await _master_of_slot(client, server, key_slot(slot_key.encode()))
    finally:
        await client.aclose()
    master = _client(address, found, is_sentinel=False)
    await _check_is_master(master, await _info(master))
    return Master(master, has_replicas=True)


async def _greet(
    address: RedisAddress, server: tuple[str, int]
) -> tuple[redis_asyncio.Redis, dict[str, Any]]:
    """A client, and what the server says of itself. Sentinels have users of their own, often none."""
    client = _client(address, server, is_sentinel=bool(address.service))
    try:
        return client, await _info(client)
    except (redis_exceptions.RedisError, OSError) as error:
        await client.aclose()
        if address.service or not isinstance(refusal_in(error), redis_exceptions.AuthenticationError):
            raise
        client = _client(address, server, is_sentinel=True)
        try:
            info = await _info(client)
            if info.get("redis_mode") == "sentinel":
                return client, info
        except redis_exceptions.RedisError:
            # The first refusal says more.
            pass
        await client.aclose()
        raise


async def _info(client: redis_asyncio.Redis) -> dict[str, Any]:
    try:
        return await client.info()
    except redis_exceptions.NoPermissionError:
        # A user who may not ask: then it is what its address says, a server that takes writes.
        return {"role": "master"}


async def _check_is_master(client: redis_asyncio.Redis, info: dict[str, Any]) -> None:
    if info.get("role") != "master":
        await client.aclose()
        raise NoMasterError(f"it is a {info.get('role')}, which takes no writes")
    policy = info.get("maxmemory_policy", "")
    if info.get("maxmemory") and policy.startswith("allkeys"):
        logger.warning(
            "Redis removes keys when its memory is used (its maxmemory-policy is %s), the cluster's tables as"
            " well. Set it to noeviction: then the head waits for memory, and nothing is lost",
            policy,
        )


async def _master_of_sentinel(address: RedisAddress, sentinel: Any) -> tuple[str, int]:
    service = address.service
    if not service:
        masters = sorted(await sentinel.sentinel_masters())
        if len(masters) != 1:
            raise AmbiguousServiceError(
                f"the Sentinels at {address} watch {', '.join(masters) or 'no master'}: name the one that is "
                "meant as in redis+sentinel://host:port/service"
            )
        [service] = masters
    found = await sentinel.sentinel_get_master_addr_by_name(service)
    if found is None:
        raise NoMasterError(f"its Sentinels know no master {service!r}")
    host, port = found
    return (host.decode() if isinstance(host, bytes) else host), int(port)


async def _master_of_slot(client: Any, server: tuple[str, int], slot: int) -> tuple[str, int]:
    # In two words: then it comes as Redis sends it.
    for first, last, (host, port, *_), *_ in await client.execute_command("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            # No host: the one that was asked.
            return (host.decode() if host else server[0]), port
    raise NoMasterError(f"no node of the cluster has slot {slot}")


def _client(address: RedisAddress, server: tuple[str, int], is_sentinel: bool) -> redis_asyncio.Redis:
    # Sentinels and nodes of clusters have one database.
    credentials: dict[str, Any] = {
        "username": (address.sentinel_username if is_sentinel else address.username) or None,
        "password": (address.sentinel_password if is_sentinel else address.password) or None,
        "db": 0 if is_sentinel else address.database,
    }
    common: dict[str, Any] = {
        "socket_timeout": ANSWER_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        # How often something is tried again is decided by whoever asks, not in the client.
        "retry": Retry(NoBackoff(), 0),
    }
    if address.socket_path:
        return redis_asyncio.Redis(unix_socket_path=address.socket_path, **credentials, **common)
    tls: dict[str, Any] = {}
    if address.has_tls:
        tls = {"ssl": True, "ssl_check_hostname": address.checks_hostname, **dict(address.tls_files)}
    host, port = server
    return redis_asyncio.Redis(host=host, port=port, **tls, **credentials, **common)
