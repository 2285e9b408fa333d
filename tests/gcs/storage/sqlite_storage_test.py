"""The file: who may use it, and what a SIGKILL leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ray_mono.gcs.storage.sqlite_storage import SqliteStorage
from ray_mono.gcs.storage.table_storage import StorageError, Table, Write
from tests.other_user import OTHER_UID, give_away, needs_another_user

COMMITS_BEFORE_KILL = 300

WRITER = """
import asyncio, sys
from ray_mono.gcs.storage.sqlite_storage import SqliteStorage
from ray_mono.gcs.storage.table_storage import Table, Write

async def write():
    storage = SqliteStorage(sys.argv[1], survive_power_loss=False)
    await storage.open()
    number = 0
    while True:
        number += 1
        key = number.to_bytes(4, "big")
        await storage.commit([Write(Table.KV, key, key * 50), Write(Table.META, b"last", key)])
        print(number, flush=True)

asyncio.run(write())
"""


def storage(path: str) -> SqliteStorage:
    return SqliteStorage(path, survive_power_loss=False)


async def load(path: str, table: Table) -> dict[bytes, bytes]:
    opened = storage(path)
    await opened.open()
    try:
        return await opened.load_all(table)
    finally:
        await opened.close()


@needs_another_user
@pytest.mark.parametrize("name", ["gcs.sqlite", "gcs.sqlite-wal", "gcs.sqlite-shm", ""])
def test_a_file_that_another_user_prepared_is_not_used(short_dir: str, name: str) -> None:
    path = Path(short_dir, name)
    path.touch()
    give_away(path)
    with pytest.raises(StorageError, match=f"not to be trusted.*belongs to user id {OTHER_UID}"):
        asyncio.run(storage(f"{short_dir}/gcs.sqlite").open())
    os.chown(path, os.getuid(), -1)


def test_a_link_is_not_followed_to_what_it_names(short_dir: str) -> None:
    Path(short_dir, "gcs.sqlite").symlink_to(f"{short_dir}/elsewhere")
    with pytest.raises(StorageError, match="cannot open"):
        asyncio.run(storage(f"{short_dir}/gcs.sqlite").open())
    assert not Path(short_dir, "elsewhere").exists()


def test_a_commit_that_returned_survives_sigkill(short_dir: str) -> None:
    path = f"{short_dir}/gcs.sqlite"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert writer.stdout is not None
    try:
        for _ in range(COMMITS_BEFORE_KILL):
            assert writer.stdout.readline(), "the writer ended early"
    finally:
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read()
        writer.stdout.close()
        writer.wait()
    answered = int(rest.split()[-1]) if rest.endswith("\n") else COMMITS_BEFORE_KILL
    rows = asyncio.run(load(path, Table.KV))
    last = asyncio.run(load(path, Table.META))[b"last"]
    # Batches are whole, in order, and none that was answered is missing.
    assert len(rows) >= answered
    assert list(rows) == [number.to_bytes(4, "big") for number in range(1, len(rows) + 1)]
    assert int.from_bytes(last, "big") == len(rows)


def environment() -> dict[str, str]:
    """For a child that imports what this process can."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_a_second_user_of_the_file_is_refused(short_dir: str) -> None:
    async def scene() -> None:
        first, second = storage(f"{short_dir}/gcs.sqlite"), storage(f"{short_dir}/gcs.sqlite")
        await first.open()
        with pytest.raises(StorageError, match="is another gcs_server using it"):
            await second.open()
        await first.close()
        await second.open()
        await second.close()

    asyncio.run(scene())


def test_only_its_owner_can_read_the_file(short_dir: str) -> None:
    path = f"{short_dir}/gcs.sqlite"
    asyncio.run(load(path, Table.KV))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_a_file_that_is_not_a_database_is_refused_and_left_alone(short_dir: str) -> None:
    path = f"{short_dir}/notes.txt"
    text = "my notes " * 1000
    with open(path, "w") as file:
        file.write(text)
    with pytest.raises(StorageError, match="is not a file of the GCS"):
        asyncio.run(load(path, Table.KV))
    with open(path) as file:
        assert file.read() == text


def test_a_file_of_a_later_version_is_refused(short_dir: str) -> None:
    path = f"{short_dir}/gcs.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=77")
    connection.close()
    with pytest.raises(StorageError, match="schema 77; this ray_mono reads schema 2"):
        asyncio.run(load(path, Table.KV))


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(StorageError, match="/no/such/folder/gcs.sqlite: No such file"):
        asyncio.run(load("/no/such/folder/gcs.sqlite", Table.KV))


def test_a_batch_that_fails_leaves_nothing(short_dir: str) -> None:
    async def scene() -> None:
        opened = storage(f"{short_dir}/gcs.sqlite")
        await opened.open()
        with pytest.raises(StorageError, match="cannot write"):
            bad = Write(Table.KV, b"bad", object())  # type: ignore[arg-type]
            await opened.commit([Write(Table.KV, b"good", b"1"), bad])
        assert await opened.load_all(Table.KV) == {}
        await opened.commit([Write(Table.KV, b"next", b"1")])
        assert await opened.load_all(Table.KV) == {b"next": b"1"}
        await opened.close()

    asyncio.run(scene())
