"""The disk of a real GCS has no room for its file: it waits, says so once, loses nothing that it answered,
and goes on when there is room; or it ends after a bound, with the reason."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_mono.protobuf import gcs_pb2, gcs_rpc
from tests.gcs.gcs_process import GcsProcess, Start, connected
from tests.waiting import wait_until

ROOM_BYTES = 1 << 20
VALUE_BYTES = 50_000


class Disk:
    """It is full until `make_room`."""

    path: Path

    def fill(self, gcs: GcsProcess) -> None:
        raise NotImplementedError

    def make_room(self, gcs: GcsProcess) -> None:
        raise NotImplementedError


class SmallDisk(Disk):
    """A file system of a megabyte, most of which another file takes."""

    def __init__(self, place: Path) -> None:
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs", str(place)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("this machine lets nobody mount")
        self.path = place
        self._other = place / "other"

    def fill(self, gcs: GcsProcess) -> None:
        status = os.statvfs(self.path)
        self._other.write_bytes(b"x" * max(0, status.f_bavail * status.f_frsize - 2 * VALUE_BYTES))

    def make_room(self, gcs: GcsProcess) -> None:
        self._other.unlink()

    def unmount(self) -> None:
        # A GCS that the test started may still use it.
        subprocess.run(["umount", "-l", str(self.path)], check=True)


class Limited(Disk):
    """Files of the process may not grow beyond a limit, as with a quota."""

    def __init__(self, place: Path) -> None:
        place.mkdir()
        self.path = place

    def fill(self, gcs: GcsProcess) -> None:
        size = (self.path / "gcs.sqlite-wal").stat().st_size + 2 * VALUE_BYTES
        resource.prlimit(gcs.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def make_room(self, gcs: GcsProcess) -> None:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(gcs.process.pid, resource.RLIMIT_FSIZE, unlimited)


@pytest.fixture(params=["file system", "limit"])
def disk(request: pytest.FixtureRequest, short_dir: str) -> Iterator[Disk]:
    place = Path(short_dir) / "disk"
    if request.param == "limit":
        yield Limited(place)
        return
    small = SmallDisk(place)
    yield small
    small.unmount()


async def put(gcs: gcs_rpc.GcsServiceAsyncStub, key: bytes) -> None:
    await gcs.KvPut(gcs_pb2.KvPutRequest(key=key, value=key * (VALUE_BYTES // len(key))))


async def put_until_full(gcs: gcs_rpc.GcsServiceAsyncStub, process: GcsProcess) -> tuple[list[bytes], bytes]:
    """Returns what was acknowledged, and what is not."""
    answered: list[bytes] = []
    while True:
        key = b"key %4d" % len(answered)
        putting = asyncio.ensure_future(put(gcs, key))
        while not putting.done():
            await asyncio.sleep(0.01)
            if "There is no room for the head's store" in process.log():
                putting.cancel()
                return answered, key
        await putting
        answered.append(key)


def test_what_has_to_be_written_waits_for_room_and_nothing_is_lost(start: Start, disk: Disk) -> None:
    storage = f"--storage-path={disk.path}/gcs.sqlite"
    gcs = start(storage)

    async def run() -> list[bytes]:
        async with connected(gcs.address) as stub:
            await put(stub, b"before ")
            disk.fill(gcs)
            answered, waits = await put_until_full(stub, gcs)
            assert gcs.process.poll() is None
            another = asyncio.ensure_future(put(stub, b"another"))
            await asyncio.sleep(0.1)
            assert not another.done()
            disk.make_room(gcs)
            await another
            return [b"before ", *answered, b"another", waits]

    keys = asyncio.run(run())
    assert gcs.log().count("There is no room for the head's store") == 1
    assert "There is room for" in gcs.log()
    gcs.kill()
    again = start(storage)

    async def look() -> None:
        async with connected(again.address) as stub:
            for key in keys:
                found = await stub.KvGet(gcs_pb2.KvGetRequest(key=key))
                assert found.value[: len(key)] == key and len(found.value) > VALUE_BYTES - 10

    asyncio.run(look())


def test_a_disk_that_stays_full_ends_the_gcs_with_the_reason_and_what_was_answered_is_there(
    start: Start, disk: Disk
) -> None:
    storage = f"--storage-path={disk.path}/gcs.sqlite"
    settings = f"--config={json.dumps({'gcs': {'disk_retry_for_s': 1}})}"
    gcs = start(storage, settings)

    async def run() -> list[bytes]:
        async with connected(gcs.address) as stub:
            await put(stub, b"before ")
            disk.fill(gcs)
            answered, _ = await put_until_full(stub, gcs)
            return [b"before ", *answered]

    keys = asyncio.run(run())
    wait_until(lambda: gcs.process.poll() is not None, "it ends")
    assert gcs.process.returncode != 0
    assert "there has been no room for it for" in gcs.log()
    if isinstance(disk, SmallDisk):
        disk.make_room(gcs)
    again = start(storage)

    async def look() -> None:
        async with connected(again.address) as stub:
            for key in keys:
                assert (await stub.KvGet(gcs_pb2.KvGetRequest(key=key))).found

    asyncio.run(look())


def test_a_gcs_that_starts_on_a_full_disk_waits_for_room(start: Start, short_dir: str) -> None:
    disk = SmallDisk(Path(short_dir) / "disk")
    try:
        storage = f"--storage-path={disk.path}/gcs.sqlite"
        full = disk.path / "full"
        full.write_bytes(b"x" * (ROOM_BYTES - 4096 * 3))
        settings = f"--config={json.dumps({'gcs': {'disk_retry_for_s': 1}})}"
        refused = GcsProcess(short_dir, [storage, settings])
        assert refused.process.wait(30) != 0
        assert "there has been no room for it for" in refused.log()
        full.unlink()
        start(storage)
    finally:
        disk.unmount()
