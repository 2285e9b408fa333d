"""What a full or broken disk does to who waits and to what is stored, and how files are compacted."""

from __future__ import annotations

import errno

import pytest

from ray_mono.common.store_messages import DISK_FULL
from ray_mono.object_manager.errors import ObjectExists, StoreFull
from ray_mono.object_manager.get_queue import FoundState
from ray_mono.object_manager.keys import ObjectKey
from ray_mono.object_manager.stored_object import ObjectState
from tests.object_manager.fakes import PlainDisk
from tests.object_manager.spilling_scene import (
    NO_SPACE,
    SIZE,
    A,
    B,
    C,
    D,
    E,
    F,
    run,
    scene,
)


def test_a_full_disk_is_the_reason_of_who_finds_no_room_and_nothing_is_lost() -> None:
    async def play() -> None:
        async with scene() as s:
            s.disk.broken[0] = NO_SPACE
            await s.put(A, B, C, D)
            with pytest.raises(StoreFull, match=f"{DISK_FULL}.*No space left on device"):
                await s.put(E)
            assert not s.disk.files
            await s.read(A, B, C, D)
            del s.disk.broken[0]
            await s.put(E, F)
            await s.read(A, B, C, D, E, F)
            assert DISK_FULL not in s.node.store.describe_memory()

    run(play)


def test_a_disk_that_breaks_is_told_and_the_objects_stay() -> None:
    async def play() -> None:
        async with scene() as s:
            s.disk.broken[0] = OSError(errno.EIO, "Input/output error")
            await s.put(A, B, C, D)
            with pytest.raises(StoreFull, match="cannot be written to disk: .*Input/output error"):
                await s.put(E)
            await s.read(A, B, C, D)

    run(play)


def test_several_disks_take_turns_and_the_others_go_on_where_one_is_full() -> None:
    async def play() -> None:
        async with scene(PlainDisk(num_directories=2)) as s:
            names = [ObjectKey(b"o%d" % number) for number in range(12)]
            await s.put(*names)
            assert {file.directory for file in s.disk.files} == {0, 1}
            s.disk.broken[0] = NO_SPACE
            more = [ObjectKey(b"p%d" % number) for number in range(12)]
            await s.put(*more)
            await s.read(*names, *more)

    run(play)


def test_what_cannot_be_read_back_is_lost_and_says_why() -> None:
    async def play() -> None:
        async with scene() as s:
            await s.put(A, B, C, D, E)
            s.disk.unreadable.update(s.disk.files)
            (found,) = await s.get(A)
            assert found.state is FoundState.LOST and "cannot be read from disk" in found.reason
            assert s.state(A) is None
            await s.put(A)  # a task that runs again
            await s.read(A)

    run(play)


def test_what_is_gone_elsewhere_when_it_is_to_be_read_in_place_is_lost() -> None:
    async def play() -> None:
        async with scene(PlainDisk(num_directories=2, num_external=1)) as s:
            names = [ObjectKey(b"o%d" % number) for number in range(8)]
            await s.put(*names)
            await s.get(*names[4:])  # all memory is read
            s.disk.unreadable.add(s.node.store.extent_of(names[0]).file)
            (found,) = await s.get(names[0])
            assert found.state is FoundState.LOST and "cannot be read from disk: " in found.reason

    run(play)


def test_where_a_file_is_gone_all_that_was_only_there_is_lost() -> None:
    async def play() -> None:
        async with scene() as s:
            await s.put(A, B, C, D, E)
            (file,) = s.disk.files
            content = s.disk.files.pop(file)
            (found,) = await s.get(A)
            assert found.state is FoundState.LOST and "it is gone" in found.reason
            assert s.state(A) is None and s.state(B) is None
            s.disk.files[file] = content  # for the removal
            await s.put(A, B)  # a task that runs again
            await s.read(A, B)

    run(play)


def test_what_is_made_again_replaces_what_is_lost_on_disk_before_anybody_asks_for_it() -> None:
    async def play() -> None:
        async with scene() as s:
            await s.put(A, B, C, D, E)
            s.disk.unreadable.update(s.disk.files)
            await s.put(A, B)
            await s.read(A, B)
            with pytest.raises(ObjectExists):
                await s.put(E)

    run(play)


def test_what_is_made_again_and_stands_on_disk_is_not_written_again() -> None:
    async def play() -> None:
        async with scene() as s:
            await s.put(A, B, C, D, E)
            assert s.state(A) is ObjectState.SPILLED
            with pytest.raises(ObjectExists):
                await s.put(A)
            await s.read(A)

    run(play)


def test_files_of_which_most_is_dead_are_compacted_and_what_lives_is_read_from_the_new_one() -> None:
    async def play() -> None:
        async with scene(capacity_bytes=8 * SIZE, min_spilling_size_bytes=8 * SIZE) as s:
            names = [ObjectKey(b"o%d" % number) for number in range(16)]
            await s.put(*names)
            (old,) = s.disk.files
            s.node.free(names[:6])
            await s.cluster.settle()
            (new,) = s.disk.files
            assert new != old and len(s.disk.files[new]) == 2 * SIZE
            await s.read(*names[6:])

    run(play)


def test_a_file_that_cannot_be_read_stops_neither_the_compaction_of_others_nor_writing() -> None:
    async def play() -> None:
        async with scene(capacity_bytes=8 * SIZE, min_spilling_size_bytes=4 * SIZE) as s:
            names = [ObjectKey(b"o%d" % number) for number in range(16)]
            await s.put(*names)
            damaged = s.node.store.extent_of(names[0]).file
            whole = s.node.store.extent_of(names[4]).file
            s.disk.unreadable.add(damaged)
            s.node.free([*names[:3], *names[4:7]])
            await s.cluster.settle()
            assert damaged in s.disk.files and whole not in s.disk.files
            assert "cannot be written" not in s.node.store.describe_memory()
            await s.put(A, B, C, D, E, F)
            await s.read(*names[7:], A, B, C, D, E, F)
            (found,) = await s.get(names[3])
            assert found.state is FoundState.LOST
            await s.cluster.settle()
            assert damaged not in s.disk.files

    run(play)


def test_what_is_freed_while_its_file_is_compacted_is_not_kept() -> None:
    async def play() -> None:
        async with scene(capacity_bytes=8 * SIZE, min_spilling_size_bytes=8 * SIZE) as s:
            names = [ObjectKey(b"o%d" % number) for number in range(16)]
            await s.put(*names)
            s.disk.hold()
            s.node.free(names[:6])
            await s.until(lambda: s.disk.num_under_way == 1)
            s.node.free(names[6:8])
            s.disk.go_on()
            await s.cluster.settle()
            assert not s.disk.files

    run(play)
