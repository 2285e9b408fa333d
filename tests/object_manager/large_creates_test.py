"""Objects that are larger than the store: each has a file of its own, from its creation to its end."""

from __future__ import annotations

import asyncio
import errno

import pytest

from ray_mono.common.store_messages import DISK_FULL
from ray_mono.object_manager import pressure
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.create_queue import RoomWanted
from ray_mono.object_manager.errors import ObjectExists, StoreFull
from ray_mono.object_manager.get_queue import FoundState, Wanted
from ray_mono.object_manager.pressure_notices import STORE_FULL
from ray_mono.object_manager.spill_files import Extent
from ray_mono.object_manager.stored_object import ObjectState
from tests.object_manager.fakes import PlainDisk
from tests.object_manager.spilling_scene import (
    HERE,
    NO_SPACE,
    OWNER,
    SIZE,
    A,
    B,
    C,
    D,
    E,
    F,
    Scene,
    content,
    run,
    scene,
    started,
)

LARGE = 10 * SIZE


def room(s: Scene) -> RoomWanted:
    return RoomWanted(s.client, LARGE, A, b"meta", OWNER)


async def put_large(s: Scene) -> Extent:
    extent = await s.node.create(room(s))
    assert isinstance(extent, Extent)
    s.disk.files[extent.file] = content(A, LARGE)
    s.node.seal(A, s.client)
    s.node.check_invariants()
    return extent


def test_it_is_written_to_a_file_and_read_there() -> None:
    async def play() -> None:
        async with scene() as s:
            extent = await put_large(s)
            assert s.node.store.used_bytes == 0 and s.node.path(extent) == "0/0"
            (found,) = await s.get(A)
            assert found.extent == extent and s.bytes_of(found) == content(A, LARGE)
            await s.put(B)  # the store is for others
            s.node.free([A])
            assert s.state(A) is ObjectState.FREED_ON_DISK
            s.node.release(A, s.client)
            await s.cluster.settle()
            assert not s.disk.files

    run(play)


def test_who_waits_for_it_while_it_is_written_reads_it_when_it_is_whole() -> None:
    async def play() -> None:
        async with scene() as s:
            extent = await s.node.create(room(s))
            assert isinstance(extent, Extent)
            waiting = await started(s.get(A))
            s.disk.files[extent.file] = content(A, LARGE)
            s.node.seal(A, s.client)
            (found,) = await waiting
            assert found.extent == extent and s.bytes_of(found) == content(A, LARGE)
            s.node.check_invariants()

    run(play)


def test_another_node_whose_store_holds_it_copies_it() -> None:
    async def play() -> None:
        async with scene() as s:
            other = s.cluster.add("other", ObjectManagerConfig(capacity_bytes=2 * LARGE))
            await put_large(s)
            (found,) = await other.get(other.connect(), [Wanted(A, (HERE,))], None)
            assert bytes(other.memory.view(found.offset, LARGE)) == content(A, LARGE)

    run(play)


@pytest.mark.parametrize("end", ["given up", "freed", "its client goes", "its owner dies"])
def test_what_is_not_finished_leaves_no_file(end: str) -> None:
    async def play() -> None:
        async with scene() as s:
            await s.node.create(room(s))
            if end == "given up":
                s.node.abort(A, s.client)
            elif end == "its client goes":
                s.node.disconnect(s.client)
            else:
                if end == "freed":
                    s.node.free([A])
                else:
                    s.node.free_owned_by(OWNER)
                s.node.seal(A, s.client)
            s.node.check_invariants()
            await s.cluster.settle()
            assert s.state(A) is None and not s.disk.files

    run(play)


@pytest.mark.parametrize("end", ["given up", "cancelled", "its client goes"])
def test_who_goes_before_the_file_is_made_leaves_none(end: str) -> None:
    async def play() -> None:
        async with scene() as s:
            s.disk.hold()
            create = await started(s.node.create(room(s)))
            if end == "given up":
                s.node.abort(A, s.client)
            elif end == "cancelled":
                create.cancel()
            else:
                s.node.disconnect(s.client)
            s.disk.go_on()
            with pytest.raises((StoreFull, asyncio.CancelledError)):
                await create
            await s.cluster.settle()
            assert s.state(A) is None and not s.disk.files

    run(play)


def test_where_the_disk_has_no_room_either_it_is_refused_at_once_with_the_sizes() -> None:
    async def play() -> None:
        async with scene(create_timeout_s=1000.0) as s:
            s.disk.broken[0] = NO_SPACE
            with pytest.raises(StoreFull, match=f"wanted {LARGE} bytes.*capacity {4 * SIZE}.*{DISK_FULL}"):
                await s.node.create(room(s))
            (found,) = await s.get(A)
            assert found.state is FoundState.LOST

    run(play)


def test_where_one_disk_has_no_room_another_one_gets_it() -> None:
    async def play() -> None:
        async with scene(PlainDisk(num_directories=3)) as s:
            s.disk.broken = {0: NO_SPACE, 1: OSError(errno.EIO, "Input/output error")}
            for object_id in (A, B, C, D):
                extent = await s.node.create(RoomWanted(s.client, LARGE, object_id, b"meta", OWNER))
                assert isinstance(extent, Extent) and extent.file.directory == 2
                s.disk.files[extent.file] = content(object_id, LARGE)
                s.node.seal(object_id, s.client)
            await s.read(A, B, C, D)
            s.disk.broken[2] = NO_SPACE
            with pytest.raises(StoreFull, match="Input/output error.*; .*No space left"):
                await s.node.create(RoomWanted(s.client, LARGE, E, b"meta", OWNER))

    run(play)


def test_what_readers_leave_no_room_for_goes_to_a_disk_that_has_some() -> None:
    async def play() -> None:
        async with scene(PlainDisk(num_directories=2), create_to_disk_s=0.01, create_timeout_s=1000.0) as s:
            await s.put(A, B, C, D)
            views = [await s.get(object_id) for object_id in (A, B, C, D)]
            assert len(views) == 4
            s.disk.broken[0] = NO_SPACE
            for object_id in (E, F):
                extent = await s.node.create(RoomWanted(s.client, SIZE, object_id, b"meta", OWNER))
                assert isinstance(extent, Extent) and extent.file.directory == 1
                s.node.seal(object_id, s.client)

    run(play)


def test_nobody_is_told_of_a_full_store_where_its_disk_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "TELL_AFTER_S", 0.01)

    async def play() -> None:
        async with scene(create_to_disk_s=0.01, create_timeout_s=1000.0) as s:
            told: list[tuple[str, str, bool]] = []
            s.node.pressure.watch(lambda *what: told.append(what))
            await s.put(A, B, C, D)
            await s.get(A, B, C, D)
            for object_id in (E, F):
                extent = await s.node.create(RoomWanted(s.client, SIZE, object_id, b"meta", OWNER))
                assert isinstance(extent, Extent)
                s.node.seal(object_id, s.client)
            assert not [text for text, what, _ in told if what == STORE_FULL]

    run(play)


def test_of_two_who_make_it_one_does() -> None:
    """A task that runs again, in another process."""

    async def play() -> None:
        async with scene() as s:
            s.disk.hold()
            first, second = await started(s.node.create(room(s))), await started(s.node.create(room(s)))
            s.disk.go_on()
            done = await asyncio.gather(first, second, return_exceptions=True)
            assert sorted(type(each).__name__ for each in done) == ["Extent", "ObjectExists"]
            with pytest.raises(ObjectExists):
                s.node.seal(A, s.client)
                await s.node.create(room(s))
            await s.cluster.settle()
            assert len(s.disk.files) == 1

    run(play)
