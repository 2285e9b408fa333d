"""A NodeStore with a disk: what has no room goes there and comes back, whoever frees, reads or waits
meanwhile."""

from __future__ import annotations

import asyncio
import errno
import random

import pytest

from ray_mono.common.store_messages import DISK_FULL
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.create_queue import RoomWanted
from ray_mono.object_manager.errors import ObjectExists, StoreFull
from ray_mono.object_manager.get_queue import FoundState, Wanted
from ray_mono.object_manager.keys import TRANSFERS, ObjectKey
from ray_mono.object_manager.spill_files import Extent
from ray_mono.object_manager.stored_object import ObjectState
from tests.object_manager.fakes import PlainDisk
from tests.object_manager.spilling_scene import (
    HERE,
    NO_SPACE,
    OWNER,
    SIZE,
    TIMEOUT_S,
    A,
    B,
    C,
    D,
    E,
    F,
    content,
    run,
    scene,
    started,
)


def test_a_job_of_ten_times_the_store_is_written_and_read_back_in_any_order() -> None:
    async def play() -> None:
        async with scene() as s:
            names = [ObjectKey(b"o%d" % number) for number in range(40)]
            await s.put(*names)
            random.Random(1).shuffle(names)
            await s.read(*names)
            assert s.node.store.spilled_bytes_total >= 36 * SIZE
            assert s.node.store.restored_bytes_total >= 36 * SIZE
            s.node.free(names)
            s.node.check_invariants()
            assert s.node.store.used_bytes == 0
            await s.cluster.settle()
            assert not s.disk.files

    run(play)


def test_the_least_recently_used_are_written_many_to_a_file_and_stay_until_room_is_needed() -> None:
    async def play() -> None:
        async with scene() as s:
            await s.put(A, B, C, D)
            await s.read(A)  # the latest, now
            await s.put(E)
            assert {each: s.state(each) for each in (A, B, C, D)} == {
                A: ObjectState.SEALED,
                B: ObjectState.SPILLED,
                C: ObjectState.SEALED,
                D: ObjectState.SEALED,
            }
            assert [len(file) for file in s.disk.files.values()] == [2 * SIZE]  # C is written, too
            await s.put(F)
            assert s.state(C) is ObjectState.SPILLED and len(s.disk.files) == 1

    run(play)


def test_what_is_written_is_not_written_again_when_it_has_been_read_back() -> None:
    async def play() -> None:
        async with scene() as s:
            await s.put(A, B, C, D, E, F)
            written = s.node.store.spilled_bytes_total
            for _ in range(3):
                await s.read(A, B)
            await s.put(ObjectKey(b"x"))
            assert s.node.store.spilled_bytes_total <= written + 2 * SIZE

    run(play)


def test_more_is_written_ahead_of_need_where_most_of_the_store_could_only_be_had_so() -> None:
    async def play() -> None:
        async with scene(object_spilling_threshold=0.6) as s:
            await s.put(A, B)
            assert s.disk.num_under_way == 0
            await s.put(C)
            await s.cluster.settle()
            assert len(s.disk.files) == 1 and s.state(A) is ObjectState.SEALED
            s.disk.hold()
            await s.put(D, E)  # nobody waits for the disk

            s.disk.go_on()

    run(play)


@pytest.mark.parametrize("end", ["freed", "its owner dies"])
def test_what_is_freed_while_it_is_written_goes_when_that_ends(end: str) -> None:
    async def play() -> None:
        async with scene() as s:
            await s.put(A, B, C, D)
            s.disk.hold()
            put = await started(s.put(E))
            assert s.state(A) is ObjectState.SPILLING
            if end == "freed":
                s.node.free([A, B])
            else:
                s.node.free_owned_by(OWNER)
            s.node.check_invariants()
            assert s.state(A) is ObjectState.FREED_SPILLING
            s.disk.go_on()
            await put
            assert s.state(A) is None and s.state(B) is None
            await s.cluster.settle()
            assert not s.disk.files

    run(play)


def test_what_is_freed_while_it_is_written_and_read_goes_with_its_last_reader() -> None:
    async def play() -> None:
        async with scene() as s:
            await s.put(A, B, C, D)
            s.disk.hold()
            put = await started(s.put(E))
            await s.get(A)
            s.node.free([A])
            s.disk.go_on()
            await put
            assert s.state(A) is ObjectState.FREED_WITH_READERS
            s.node.release(A, s.client)
            assert s.state(A) is None

    run(play)


def test_what_is_read_while_it_is_written_stays_in_memory() -> None:
    async def play() -> None:
        async with scene() as s:
            await s.put(A, B, C, D)
            s.disk.hold()
            put = await started(s.put(E, F))
            (found,) = await s.get(A)
            s.disk.go_on()
            await put
            assert s.state(A) is ObjectState.SEALED and s.bytes_of(found) == content(A, SIZE)
            s.node.release(A, s.client)

    run(play)


def test_what_was_freed_while_it_was_written_and_is_made_again_stays() -> None:
    async def play() -> None:
        async with scene(object_spilling_threshold=0.6) as s:
            s.disk.hold()
            await s.put(A, B, C)
            s.node.free([A])
            assert s.state(A) is ObjectState.FREED_SPILLING
            with pytest.raises(ObjectExists):
                await s.put(A)
            s.disk.go_on()
            await s.cluster.settle()
            await s.read(A)

    run(play)


def test_what_is_freed_on_disk_makes_its_file_dead() -> None:
    async def play() -> None:
        async with scene() as s:
            await s.put(A, B, C, D, E, F)
            assert len(s.disk.files) == 1
            s.node.free([A, B])
            await s.cluster.settle()
            assert not s.disk.files and not s.node.store.contains(A)
            (found,) = await s.get(A)
            assert found.state is FoundState.LOST

    run(play)


def test_what_is_freed_while_it_is_read_from_disk_is_lost_for_who_waits() -> None:
    async def play() -> None:
        async with scene() as s:
            await s.put(A, B, C, D, E)
            s.disk.hold()
            get = await started(s.get(A))
            assert s.state(A) is ObjectState.RESTORING
            s.node.free([A])
            s.node.check_invariants()
            (found,) = await get
            assert found.state is FoundState.LOST and "freed" in found.reason
            assert s.state(A) is ObjectState.FREED_RESTORING
            s.disk.go_on()
            await s.cluster.settle()
            assert s.state(A) is None

    run(play)


def test_who_waits_for_room_waits_as_long_as_the_disk_is_slow() -> None:
    """Longer than a create has where nothing goes on."""

    async def play() -> None:
        async with scene(create_timeout_s=0.01) as s:
            await s.put(A, B, C, D)
            s.disk.hold()
            put = await started(s.put(E))
            await asyncio.sleep(0.05)
            assert not put.done()
            s.disk.go_on()
            await put

    run(play)


def test_where_all_is_read_a_create_is_given_a_file_after_a_while_and_the_next_ones_at_once() -> None:
    async def play() -> None:
        async with scene(create_to_disk_s=0.05, create_timeout_s=TIMEOUT_S) as s:
            await s.put(A, B, C, D)
            await s.get(A, B, C, D)
            first = await started(s.node.create(RoomWanted(s.client, SIZE, E, b"", OWNER)))
            assert not first.done() and isinstance(await first, Extent)
            second = await started(s.node.create(RoomWanted(s.client, SIZE, F, b"", OWNER)))
            await s.cluster.settle()
            assert second.done() and isinstance(second.result(), Extent)
            for each in (E, F):
                s.node.seal(each, s.client)
                assert s.state(each) is ObjectState.SPILLED
            s.node.release(A, s.client)
            (found,) = await s.get(E)
            assert found.extent is None and s.state(A) is ObjectState.SPILLED

    run(play)


def test_where_all_is_read_and_the_disk_is_full_a_create_fails_and_says_the_sizes() -> None:
    async def play() -> None:
        async with scene() as s:
            await s.put(A, B, C, D)
            await s.get(A, B, C, D)
            s.disk.broken[0] = NO_SPACE
            with pytest.raises(StoreFull, match=f"pinned by readers {4 * SIZE}.*{DISK_FULL}"):
                await s.put(E)
            s.node.release(A, s.client)
            del s.disk.broken[0]
            await s.put(E)
            assert s.state(A) is ObjectState.SPILLED

    run(play)


def test_a_get_of_more_than_the_store_holds_reads_the_rest_on_disk() -> None:
    async def play() -> None:
        async with scene() as s:
            names = [ObjectKey(b"o%d" % number) for number in range(12)]
            await s.put(*names)
            found = await s.get(*names)
            s.node.check_invariants()
            assert [s.bytes_of(each) for each in found] == [content(each, SIZE) for each in names]
            assert sum(each.extent is not None for each in found) == 8
            s.node.free(names)
            for name in names:
                s.node.release(name, s.client)
            s.node.check_invariants()
            assert s.node.store.used_bytes == 0 and s.node.store.num_pins == 0
            await s.cluster.settle()
            assert not s.disk.files

    run(play)


def test_what_is_not_on_disk_any_more_as_it_was_is_not_read_in_place_and_is_lost() -> None:
    async def play() -> None:
        async with scene() as s:
            await s.put(A, B, C, D, E, F)
            held = await s.get(C, D, E, F)
            s.disk.unreadable.update(s.disk.files)
            for each in (A, B):
                (found,) = await s.get(each)
                assert found.state is FoundState.LOST and "cannot be read from disk" in found.reason
                assert s.state(each) is None
            assert [s.bytes_of(each) for each in held] == [content(each, SIZE) for each in (C, D, E, F)]

    run(play)


def test_what_is_freed_while_it_is_looked_at_to_be_read_in_place_is_lost_by_that_alone() -> None:
    async def play() -> None:
        async with scene() as s:
            await s.put(A, B, C, D, E, F)
            await s.get(C, D, E, F)
            s.disk.hold()
            reading = await started(s.get(A))
            s.node.free([A, B])
            s.disk.go_on()
            (found,) = await reading
            assert found.state is FoundState.LOST and "freed" in found.reason
            await s.cluster.settle()
            assert s.state(A) is None and len(s.disk.files) < 2

    run(play)


def test_what_another_node_could_not_be_given_from_disk_is_not_here_any_more() -> None:
    async def play() -> None:
        async with scene() as s:
            other = s.cluster.add("other", ObjectManagerConfig(capacity_bytes=4 * SIZE))
            client = other.connect()
            await s.put(A, B, C, D, E, F)
            s.disk.unreadable.update(s.disk.files)
            (found,) = await other.get(client, [Wanted(A, (HERE,))], None)
            assert found.state is FoundState.LOST
            assert s.state(A) is None and s.state(C) is not None
            await s.put(A)  # a task that runs again
            (found,) = await other.get(client, [Wanted(A, (HERE,))], None)
            assert found.state is FoundState.FOUND

    run(play)


def test_what_is_read_in_place_and_lies_elsewhere_is_copied_first_and_only_once() -> None:
    async def play() -> None:
        async with scene(PlainDisk(num_directories=2, num_external=1)) as s:
            names = [ObjectKey(b"o%d" % number) for number in range(12)]
            await s.put(*names)
            found, again = await asyncio.gather(s.get(*names), s.get(*names))
            for some in (found, again):
                assert [s.bytes_of(each) for each in some] == [content(each, SIZE) for each in names]
                assert {each.extent.file.directory for each in some if each.extent is not None} == {1}
            assert sum(file.directory == 1 for file in s.disk.files) == 8
            s.node.free(names)
            for name in (*names, *names):
                s.node.release(name, s.client)
            await s.cluster.settle()
            assert not s.disk.files

    run(play)


def test_where_nothing_can_be_copied_to_be_read_in_place_the_get_fails_with_the_reason() -> None:
    async def play() -> None:
        async with scene(PlainDisk(num_directories=2, num_external=1)) as s:
            await s.put(A, B, C, D, E, F)
            s.disk.broken[1] = NO_SPACE
            with pytest.raises(
                StoreFull, match=f"no room in the store, nor on disk: {DISK_FULL}.*No space left"
            ):
                await s.get(A, B, C, D, E, F)
            assert s.node.store.num_pins == 0
            await s.read(A, B, C, D, E, F)

    run(play)


def test_two_gets_that_each_hold_what_the_other_wants_room_for_both_end() -> None:
    async def play() -> None:
        async with scene() as s:
            names = [ObjectKey(b"o%d" % number) for number in range(8)]
            await s.put(*names)
            first, second = await asyncio.gather(s.get(*names), s.get(*reversed(names)))
            for found in (*first, *second):
                assert s.bytes_of(found) == content(found.object_id, SIZE)
                s.node.release(found.object_id, s.client)

    run(play)


def test_creates_and_reads_under_pressure_have_their_turn_in_the_order_of_their_coming() -> None:
    async def play() -> None:
        async with scene() as s:
            await s.put(A, B, C, D, E)
            s.disk.hold()
            first = await started(s.put(ObjectKey(b"1"), size_bytes=2 * SIZE))
            read = await started(s.read(A))
            late = await started(s.put(ObjectKey(b"2"), size_bytes=2 * SIZE))
            assert s.state(A) is ObjectState.SPILLED
            s.disk.go_on()
            await first
            await late
            assert s.state(A) is not ObjectState.SPILLED  # its memory was there before
            await read

    run(play)


def test_a_read_that_nobody_waits_for_any_more_is_not_begun() -> None:
    async def play() -> None:
        async with scene(max_io_workers=1) as s:
            await s.put(A, B, C, D, E, F)
            s.disk.hold()
            first, second = await started(s.get(A)), await started(s.get(B))
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            s.disk.go_on()
            await first
            assert s.state(B) is ObjectState.SPILLED

    run(play)


def test_another_node_fetches_what_is_spilled_and_it_takes_no_room_for_that() -> None:
    async def play() -> None:
        async with scene() as s:
            other = s.cluster.add("other", ObjectManagerConfig(capacity_bytes=4 * SIZE))
            await s.put(A, B, C, D, E)
            client = other.connect()
            (found,) = await other.get(client, [Wanted(A, (HERE,))], None)
            assert bytes(other.memory.view(found.offset, SIZE)) == content(A, SIZE) and found.pulled
            assert s.state(A) is ObjectState.SPILLED and s.node.store.num_pins == 0

    run(play)


def test_what_another_node_fetches_from_disk_and_is_freed_meanwhile_goes_after_that() -> None:
    async def play() -> None:
        async with scene() as s:
            await s.put(A, B, C, D, E)
            entry = await s.node.read_for_transfer(A)
            assert entry is not None and entry.state is ObjectState.SPILLED
            s.node.free([A])
            assert s.state(A) is ObjectState.FREED_ON_DISK
            assert bytes(await s.node.content(entry, 10, 20)) == content(A, SIZE)[10:30]
            s.node.release(A, TRANSFERS)
            assert s.state(A) is None

    run(play)


@pytest.mark.parametrize("seed", range(6))
def test_random_requests_under_pressure_end_and_every_byte_is_right(seed: int) -> None:
    """Puts, reads of several objects, frees and broken disks, more than the store holds. With every other
    seed the disks are elsewhere."""

    async def play() -> None:
        rng = random.Random(seed)
        changes = {"create_timeout_s": 5.0, "object_spilling_threshold": rng.choice([0.5, 1.0])}
        disk = PlainDisk(num_directories=3, num_external=2) if seed % 2 else PlainDisk(num_directories=2)
        async with scene(disk, max_io_workers=2, **changes) as s:
            living: dict[ObjectKey, int] = {}
            reading: set[ObjectKey] = set()

            async def one(number: int) -> None:
                if rng.random() < 0.5 or len(living) < 4:
                    name, size_bytes = ObjectKey(b"o%d" % number), rng.randrange(1, 2 * SIZE)
                    await s.put(name, size_bytes=size_bytes)
                    living[name] = size_bytes
                    return
                names = rng.sample(sorted(living), 3)
                reading.update(names)
                for found in await s.get(*names):
                    if found.state is FoundState.FOUND:
                        assert s.bytes_of(found) == content(found.object_id, found.size_bytes)
                        await asyncio.sleep(0)
                        s.node.release(found.object_id, s.client)
                    else:
                        assert found.object_id not in living, found.reason

            for number in range(150):
                tasks = [
                    asyncio.ensure_future(one(10 * number + each)) for each in range(rng.randrange(1, 4))
                ]
                if rng.random() < 0.2:
                    s.disk.broken[rng.randrange(2)] = rng.choice([NO_SPACE, OSError(errno.EIO, "broken")])
                if rng.random() < 0.5:
                    s.disk.broken.clear()
                for name in rng.sample(sorted(living), min(len(living), rng.randrange(4))):
                    del living[name]
                    s.node.free([name])
                s.node.check_invariants()
                s.disk.broken.pop(0, None)
                await asyncio.gather(*tasks)
                s.node.check_invariants()
            s.node.free(list(living))
            await s.cluster.settle()
            assert s.node.store.used_bytes == 0 and not s.disk.files

    run(play)
