"""Copies from another node for which there is no room here: they are written to files and read there, and the
files go with their readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from ray_mono.common.store_messages import DISK_FULL
from ray_mono.object_manager.admission import Priority
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.create_queue import RoomWanted
from ray_mono.object_manager.errors import StoreFull
from ray_mono.object_manager.get_queue import Found, FoundState, Wanted
from ray_mono.object_manager.keys import ClientKey, NodeKey, ObjectKey
from ray_mono.object_manager.node_store import NodeStore
from tests.object_manager.fakes import FakeCluster, PlainDisk
from tests.object_manager.spilling_scene import NO_SPACE, OWNER, SIZE, TIMEOUT_S, content, run, started

FAR, NEAR = NodeKey(b"far"), NodeKey(b"near")
OBJECTS = [ObjectKey(bytes([97 + number])) for number in range(10)]


@dataclass
class Scene:
    """Ten objects on one node, and another whose store holds four."""

    cluster: FakeCluster
    far: NodeStore
    near: NodeStore
    disk: PlainDisk
    client: ClientKey

    def get(
        self, *object_ids: ObjectKey, priority: Priority = Priority.GET
    ) -> Coroutine[Any, Any, tuple[Found, ...]]:
        wanted = [Wanted(each, (FAR,), SIZE) for each in object_ids]
        return self.near.get(self.client, wanted, None, priority=priority)

    def check(self, found: Found) -> None:
        """It is found, and its bytes are right."""
        assert found.state is FoundState.FOUND, found.reason
        if found.extent is None:
            part = self.near.memory.view(found.offset, found.size_bytes)
        else:
            at = found.extent.offset
            part = memoryview(self.disk.files[found.extent.file])[at : at + found.size_bytes]
        assert part == content(found.object_id, found.size_bytes)

    def release(self, *some: Found) -> None:
        for found in some:
            self.near.release(found.object_id, self.client)


@asynccontextmanager
async def scene(sizes: dict[ObjectKey, int] | None = None, **changes: Any) -> AsyncIterator[Scene]:
    settings = {"copy_to_disk_after_s": 0.0, "backing_ahead_bytes": 0, **changes}
    cluster = FakeCluster()
    far = cluster.add("far", ObjectManagerConfig(capacity_bytes=100 * SIZE))
    disk = PlainDisk()
    near = cluster.add("near", ObjectManagerConfig(capacity_bytes=4 * SIZE, **settings), disk=disk)
    writer = far.connect()
    for object_id, size_bytes in (sizes or dict.fromkeys(OBJECTS, SIZE)).items():
        offset = await far.create(RoomWanted(writer, size_bytes, object_id, b"meta", OWNER))
        assert isinstance(offset, int)
        far.memory.view(offset, size_bytes)[:] = content(object_id, size_bytes)
        far.seal(object_id, writer)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield Scene(cluster, far, near, disk, near.connect())
            await cluster.settle()
            cluster.check_invariants()
    finally:
        await cluster.close()


def test_a_get_of_more_than_the_store_has_what_fits_in_memory_and_the_rest_in_files() -> None:
    async def play() -> None:
        async with scene(copy_to_disk_after_s=TIMEOUT_S) as s:
            found = await s.get(*OBJECTS)
            for each in found:
                s.check(each)
            assert all(each.pulled for each in found)
            assert sum(each.extent is None for each in found) == 4 and len(s.disk.files) == 6
            s.near.check_invariants()
            s.release(*found)
            await s.cluster.settle()
            assert not s.disk.files and s.near.store.num_sealed == 4

    run(play)


def test_two_readers_share_a_file_and_it_goes_with_the_last() -> None:
    async def play() -> None:
        async with scene() as s:
            pinned = await s.get(*OBJECTS[:4])
            first, second = await asyncio.gather(s.get(OBJECTS[4]), s.get(OBJECTS[4]))
            third = await s.get(OBJECTS[4])
            assert len(s.disk.files) == 1 and first[0].extent == second[0].extent == third[0].extent
            s.release(*first, *second)
            await s.cluster.settle()
            s.check(third[0])
            s.release(*third, *pinned)
            await s.cluster.settle()
            assert not s.disk.files

    run(play)


@pytest.mark.parametrize("end", ["freed", "its client goes"])
def test_a_copy_in_a_file_that_is_freed_stays_for_its_readers(end: str) -> None:
    async def play() -> None:
        async with scene() as s:
            pinned = await s.get(*OBJECTS[:4])
            (found,) = await s.get(OBJECTS[4])
            if end == "freed":
                s.near.free([OBJECTS[4]])
                await s.cluster.settle()
                s.check(found)
                s.release(found, *pinned)
            else:
                s.near.disconnect(s.client)
            await s.cluster.settle()
            assert not s.disk.files

    run(play)


def test_an_object_larger_than_the_store_is_copied_to_a_file_at_once() -> None:
    async def play() -> None:
        async with scene({OBJECTS[0]: 10 * SIZE}, copy_to_disk_after_s=TIMEOUT_S) as s:
            (found,) = await s.near.get(s.client, [Wanted(OBJECTS[0], (FAR,))], None)
            s.check(found)
            assert found.extent is not None and s.near.store.used_bytes == 0
            s.release(found)

    run(play)


async def it_waits_for_memory(s: Scene) -> None:
    """A get of one object, while readers hold the memory."""
    pinned = await s.get(*OBJECTS[:4])
    waiting = await started(s.get(OBJECTS[4]))
    await s.cluster.settle()
    assert not waiting.done()
    s.release(*pinned)
    (found,) = await waiting
    assert found.extent is None
    s.release(found)


def test_a_get_that_could_have_room_waits_for_it_before_it_goes_to_disk() -> None:
    async def play() -> None:
        async with scene(copy_to_disk_after_s=TIMEOUT_S) as s:
            await it_waits_for_memory(s)

    run(play)


def test_arguments_that_waited_for_long_are_read_from_files() -> None:
    async def play() -> None:
        async with scene(overtaken_max_s=0.05) as s:
            pinned = await s.get(*OBJECTS[:4])
            (found,) = await s.get(OBJECTS[4], priority=Priority.TASK_ARGUMENTS)
            assert found.extent is not None
            s.check(found)
            s.release(found, *pinned)

    run(play)


def test_arguments_that_together_never_fit_are_read_from_files() -> None:
    async def play() -> None:
        async with scene(overtaken_max_s=TIMEOUT_S, copy_to_disk_after_s=TIMEOUT_S) as s:
            found = await s.get(*OBJECTS, priority=Priority.TASK_ARGUMENTS)
            for each in found:
                s.check(each)
            s.release(*found)

    run(play)


@pytest.mark.parametrize("size_bytes", [SIZE, 10 * SIZE])
def test_who_can_go_elsewhere_gets_no_files(size_bytes: int) -> None:
    async def play() -> None:
        names = OBJECTS[:9]
        async with scene(dict.fromkeys(names, size_bytes), elsewhere_timeout_s=0.05) as s:
            wanted = [Wanted(each, (FAR,), size_bytes) for each in names]
            with pytest.raises(StoreFull, match="waits for room"):
                await s.near.get(s.client, wanted, None, may_go_elsewhere=True)
            assert not s.disk.files

    run(play)


def test_another_node_copies_what_lies_in_a_file_here() -> None:
    async def play() -> None:
        async with scene() as s:
            pinned = await s.get(*OBJECTS[:4])
            (found,) = await s.get(OBJECTS[4])
            other = s.cluster.add("other", ObjectManagerConfig(capacity_bytes=4 * SIZE))
            (copy,) = await other.get(other.connect(), [Wanted(OBJECTS[4], (NEAR,))], None)
            assert other.memory.view(copy.offset, SIZE) == content(OBJECTS[4], SIZE)
            s.release(found, *pinned)

    run(play)


def test_without_room_on_the_disk_a_get_that_never_fits_is_told_so_at_once() -> None:
    async def play() -> None:
        async with scene() as s:
            s.disk.broken[0] = NO_SPACE
            with pytest.raises(StoreFull, match=f"lies on node .*{DISK_FULL}"):
                await s.get(*OBJECTS)
            await s.cluster.settle()
            assert s.near.store.num_pins == s.near.store.num_unsealed == 0

    run(play)


def test_without_room_on_the_disk_a_get_that_may_fit_waits_for_memory() -> None:
    async def play() -> None:
        async with scene() as s:
            s.disk.broken[0] = NO_SPACE
            await it_waits_for_memory(s)

    run(play)


def test_who_finds_room_neither_in_memory_nor_on_disk_is_told_both() -> None:
    async def play() -> None:
        async with scene(pull_memory_timeout_s=0.05) as s:
            pinned = await s.get(*OBJECTS[:4])
            s.disk.broken[0] = NO_SPACE
            with pytest.raises(StoreFull, match=f"no room to copy it .*nor on disk: .*{DISK_FULL}"):
                await s.get(OBJECTS[4])
            s.release(*pinned)

    run(play)


def test_a_get_that_is_given_up_while_its_file_is_made_leaves_none() -> None:
    async def play() -> None:
        async with scene() as s:
            pinned = await s.get(*OBJECTS[:4])
            s.disk.hold()
            waiting = await started(s.get(OBJECTS[4]))
            while not s.disk.num_under_way:
                await asyncio.sleep(0)
            s.near.free([OBJECTS[4]])
            (found,) = await waiting
            assert found.state is FoundState.LOST
            s.disk.go_on()
            await s.cluster.settle()
            assert not s.disk.files
            s.release(*pinned)

    run(play)
