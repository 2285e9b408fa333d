"""A database that is cut off or changed: refused, kept aside, and nothing acknowledged is lost in silence."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_mono.gcs.storage.sqlite_storage import SqliteStorage
from ray_mono.gcs.storage.table_storage import StorageError, Table, Write

Rows = dict[Table, dict[bytes, bytes]]

# Ends without closing: the last commits are in the log alone.
WRITER = """
import asyncio, os, sys
from ray_mono.gcs.storage.sqlite_storage import SqliteStorage
from ray_mono.gcs.storage.table_storage import Table, Write

async def write():
    storage = SqliteStorage(sys.argv[1], survive_power_loss=False)
    await storage.open()
    for number in range(40):
        key = b"%d" % number
        await storage.commit([Write(Table.KV, key, key * 100), Write(Table.ACTOR, key, b"row " + key)])
        if number == 30 and sys.argv[2] == "closed":
            await storage.close()
            await storage.open()
    await storage.commit([Write(Table.KV, b"%d" % number, None) for number in range(0, 40, 7)])
    if sys.argv[2] == "closed":
        await storage.close()
    os.kill(os.getpid(), 9)

asyncio.run(write())
"""


def write(path: Path, how: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run([sys.executable, "-c", WRITER, str(path), how], env=environment)
    assert done.returncode == -signal.SIGKILL


async def load(path: Path) -> Rows:
    storage = SqliteStorage(str(path), survive_power_loss=False)
    await storage.open()
    try:
        return {table: await storage.load_all(table) for table in Table}
    finally:
        await storage.close()


async def head_number(path: Path) -> int:
    storage = SqliteStorage(str(path), survive_power_loss=False)
    try:
        return await storage.open()
    finally:
        await storage.close()


class Original:
    """A written database, of which each case gets a copy."""

    def __init__(self, directory: Path, how: str) -> None:
        self.directory = directory / "original"
        self.cases = directory / "cases"
        self.directory.mkdir()
        write(self.directory / "gcs.sqlite", how)
        self.rows = asyncio.run(load(self.copy()))
        assert len(self.rows[Table.ACTOR]) == 40 and len(self.rows[Table.KV]) == 34

    def copy(self) -> Path:
        """A fresh one."""
        shutil.rmtree(self.cases, ignore_errors=True)
        shutil.copytree(self.directory, self.cases)
        return self.cases / "gcs.sqlite"

    def is_refused(self, path: Path) -> bool:
        """Whether it is refused, and kept; where it is not, everything must be there."""
        try:
            assert asyncio.run(load(path)) == self.rows
        except StorageError as error:
            kept = [found for found in path.parent.iterdir() if ".damaged-" in found.name]
            assert path.exists() != bool(kept), f"{error}: {kept}"
            return True
        return False


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Original]:
    """All of it is in the file, and there is no log."""
    original = Original(tmp_path_factory.mktemp("closed"), "closed")
    assert not (original.directory / "gcs.sqlite-wal").exists()
    yield original


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Original]:
    """All of it is in the log."""
    original = Original(tmp_path_factory.mktemp("killed"), "killed")
    assert (original.directory / "gcs.sqlite-wal").stat().st_size > 100_000
    yield original


@pytest.mark.parametrize("name", ["gcs.sqlite", "gcs.sqlite-wal"])
def test_a_file_that_was_cut_off_anywhere_is_refused(closed: Original, killed: Original, name: str) -> None:
    original = killed if name.endswith("-wal") else closed
    size = (original.directory / name).stat().st_size
    lengths = sorted({0, 1, 15, 16, 17, 31, 32, 99, 100, 101, *range(24, size, size // 40), size - 1})
    for length in lengths:
        path = original.copy()
        os.truncate(path.parent / name, length)
        assert original.is_refused(path), f"cut off at {length} of {size}"


def test_a_log_that_is_gone_is_missed(killed: Original) -> None:
    path = killed.copy()
    os.unlink(f"{path}-wal")
    assert killed.is_refused(path)


@pytest.mark.parametrize("name", ["gcs.sqlite", "gcs.sqlite-wal"])
def test_a_byte_that_was_changed_anywhere_is_refused_or_was_of_no_use(
    closed: Original, killed: Original, name: str
) -> None:
    original = killed if name.endswith("-wal") else closed
    content = (original.directory / name).read_bytes()
    refused = 0
    places = [*range(0, 200), *range(200, len(content), max(1, len(content) // 800))]
    for place in places:
        path = original.copy()
        changed = bytearray(content)
        changed[place] ^= 0x55
        (path.parent / name).write_bytes(changed)
        refused += original.is_refused(path)
    # Some bytes mean nothing: free room in pages, and pages that were written again later in the log.
    assert refused > len(places) // 4


@pytest.mark.parametrize("start", [0, 100, 4096, 8192])
def test_rubbish_in_its_place_is_refused(closed: Original, start: int) -> None:
    path = closed.copy()
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"rubbish " * 512)
    assert closed.is_refused(path)


def test_what_was_refused_is_not_replaced_by_an_empty_store_until_somebody_moves_it(
    closed: Original,
) -> None:
    path = closed.copy()
    content = path.read_bytes()[:-4096]
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"gcs.sqlite is damaged: .* It is kept as .*\.damaged-\d{8}T"):
        asyncio.run(load(path))
    [kept] = [found for found in path.parent.iterdir() if found.name.endswith("Z")]
    assert kept.read_bytes()[:8192] == content[:8192]
    for _ in range(2):
        with pytest.raises(StorageError, match=f"was damaged. It is kept as {kept}.*move it to another"):
            asyncio.run(load(path))
    assert not path.exists()
    # As if it was repaired: a whole one in the old place is taken.
    shutil.copy(closed.directory / "gcs.sqlite", path)
    assert asyncio.run(load(path)) == closed.rows
    path.unlink()
    kept.rename(kept.parent.parent / kept.name)
    assert asyncio.run(load(path)) == {table: {} for table in Table}


def test_a_repaired_file_of_an_older_state_is_taken(killed: Original) -> None:
    """Whoever puts it there knows what is missing."""
    path = killed.copy()
    os.unlink(f"{path}-wal")
    assert killed.is_refused(path)
    [kept] = [found for found in path.parent.iterdir() if found.name.endswith("Z")]
    kept.rename(path)
    assert asyncio.run(load(path)) == {table: {} for table in Table}


def test_a_head_on_an_older_copy_is_a_later_one_than_those_whom_the_nodes_know(closed: Original) -> None:
    path = closed.copy()
    numbers = [asyncio.run(head_number(path)) for _ in range(3)]
    numbers.append(asyncio.run(head_number(closed.copy())))
    assert numbers == sorted(set(numbers))


def test_the_room_of_deleted_rows_is_used_again(tmp_path: Path) -> None:
    async def scene() -> None:
        path = tmp_path / "gcs.sqlite"
        storage = SqliteStorage(str(path), survive_power_loss=False)
        await storage.open()
        sizes = []
        for round in range(6):
            for number in range(200):
                await storage.commit([Write(Table.KV, b"%d/%d" % (round, number), bytes(20_000))])
            for number in range(200):
                await storage.commit([Write(Table.KV, b"%d/%d" % (round, number), None)])
            sizes.append(path.stat().st_size + Path(f"{path}-wal").stat().st_size)
        assert max(sizes[1:]) <= sizes[0] * 1.5
        # One large batch: its room comes back at the next start, the log's at the next checkpoint.
        await storage.commit([Write(Table.KV, b"large %d" % number, bytes(1 << 20)) for number in range(50)])
        await storage.commit([Write(Table.KV, b"large %d" % number, None) for number in range(50)])
        await storage.close()
        assert path.stat().st_size > 40 << 20
        await storage.open()
        await storage.close()
        assert path.stat().st_size < 1 << 20

    asyncio.run(scene())
