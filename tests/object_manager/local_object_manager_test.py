"""What is written to disk and when, and what is read back, as decisions alone."""

from __future__ import annotations

from typing import Any

from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.keys import ClientKey, ObjectKey, WorkerKey
from ray_mono.object_manager.local_object_manager import (
    BringHere,
    LocalObjectManager,
    ReadInPlace,
    ReadObject,
    RemoveFile,
    SpillEffect,
    WriteFile,
)
from ray_mono.object_manager.spill_files import SpillFiles
from ray_mono.object_manager.store import Store
from ray_mono.object_manager.stored_object import Allocated

ANNA = ClientKey(1)
SIZE = 256
NAMES = [ObjectKey(bytes([number])) for number in range(20)]


class Scene:
    """A store of eight objects, files of two."""

    def __init__(self, num_directories: int = 1, num_external: int = 0, **changes: Any) -> None:
        settings = {
            "min_spilling_size_bytes": 2 * SIZE,
            "file_share": 1.0,
            "files_ahead": 0,
            "object_spilling_threshold": 1.0,
            **changes,
        }
        config = ObjectManagerConfig(capacity_bytes=8 * SIZE, **settings)
        files = SpillFiles(config.sparse_share)
        self.store = Store(config.capacity_bytes, files, 10)
        self.store.backed(config.capacity_bytes)
        self.store.connect(ANNA)
        self.manager = LocalObjectManager(config, self.store, files, num_directories, num_external)

    def put(self, *names: ObjectKey) -> None:
        for name in names:
            allocation = self.store.create(name, SIZE, b"", WorkerKey(b"o"), ANNA, is_primary=True)
            assert isinstance(allocation, Allocated)
            self.store.seal(name, ANNA)

    def make_room(self, wanted_bytes: int = SIZE) -> list[SpillEffect]:
        effects = self.manager.make_room(wanted_bytes)
        self.check_invariants()
        return effects

    def check_invariants(self) -> None:
        self.store.check_invariants()
        self.manager.check_invariants()


def written(effects: list[SpillEffect]) -> list[list[ObjectKey]]:
    assert all(isinstance(effect, WriteFile) for effect in effects)
    return [list(effect.extents) for effect in effects if isinstance(effect, WriteFile)]


def test_nothing_is_written_where_nobody_waits_or_there_is_no_disk() -> None:
    scene = Scene()
    scene.put(*NAMES[:8])
    assert scene.make_room(0) == [] and scene.manager.can_make_room
    alone = Scene(num_directories=0)
    alone.put(*NAMES[:8])
    assert alone.make_room() == [] and not alone.manager.can_make_room


def test_so_many_files_are_written_as_who_waits_needs() -> None:
    scene = Scene()
    scene.put(*NAMES[:8])
    assert written(scene.make_room(3 * SIZE)) == [NAMES[0:2], NAMES[2:4]]
    assert scene.make_room(3 * SIZE) == []
    assert written(scene.make_room(5 * SIZE)) == [NAMES[4:6]]


def test_no_more_files_are_written_at_a_time_than_there_are_workers() -> None:
    scene = Scene(max_io_workers=2)
    scene.put(*NAMES[:8])
    first, second = scene.make_room(8 * SIZE)
    assert isinstance(first, WriteFile) and isinstance(second, WriteFile)
    assert scene.make_room(8 * SIZE) == []
    scene.manager.written(first.number)
    assert written(scene.make_room(8 * SIZE)) == [NAMES[4:6]]


def test_less_than_a_file_is_written_only_where_nothing_else_is() -> None:
    scene = Scene()
    scene.put(*NAMES[:3])
    (write,) = scene.make_room(8 * SIZE)
    assert isinstance(write, WriteFile) and len(write.extents) == 2
    scene.manager.written(write.number)
    assert written(scene.make_room(8 * SIZE)) == [NAMES[2:3]]


def test_without_a_least_size_objects_are_written_one_by_one_and_without_a_threshold_all_of_them() -> None:
    scene = Scene(min_spilling_size_bytes=0, object_spilling_threshold=0.0)
    scene.put(*NAMES[:3])
    assert written(scene.make_room(0)) == [NAMES[0:1], NAMES[1:2], NAMES[2:3]]


def test_a_file_has_so_many_objects_at_most() -> None:
    scene = Scene(max_fused_object_count=1)
    scene.put(*NAMES[:4])
    assert written(scene.make_room(2 * SIZE)) == [NAMES[0:1]]


def test_a_directory_that_failed_rests_and_the_reason_is_told_until_one_took_something() -> None:
    scene = Scene(num_directories=2, spill_retry_s=10.0)
    scene.put(*NAMES[:8])
    (write,) = scene.make_room()
    assert isinstance(write, WriteFile)
    scene.manager.not_written(write.number, "it is broken", 100.0)
    assert scene.manager.can_make_room and scene.manager.next_deadline_s == 110.0
    (other,) = scene.make_room()
    assert isinstance(other, WriteFile)
    assert {each.extents[NAMES[0]].file.directory for each in (write,)} == {0}
    assert {extent.file.directory for extent in other.extents.values()} == {1}
    scene.manager.not_written(other.number, "it is full", 101.0)
    assert not scene.manager.can_make_room and scene.make_room() == []
    assert "it is broken; it is full" in scene.store.describe_memory()
    scene.manager.expire(110.0)
    assert not scene.manager.can_make_room  # a try alone makes no room
    (again,) = scene.make_room()
    assert isinstance(again, WriteFile)
    scene.manager.written(again.number)
    assert scene.manager.can_make_room and "it is" not in scene.store.describe_memory()


def spill_all(scene: Scene, names: list[ObjectKey]) -> None:
    """They are on disk only."""
    scene.put(*names)
    while effects := scene.make_room(8 * SIZE):
        for effect in effects:
            if isinstance(effect, WriteFile):
                scene.manager.written(effect.number)
    assert isinstance(
        scene.store.create(NAMES[19], 8 * SIZE, b"", WorkerKey(b"o"), ANNA, is_primary=True), Allocated
    )
    scene.store.abort(NAMES[19], ANNA)


def test_what_is_wanted_is_read_in_order_and_no_more_at_a_time_than_there_are_workers() -> None:
    scene = Scene(max_io_workers=2)
    spill_all(scene, NAMES[:8])
    for name in NAMES[:3]:
        scene.manager.want(name, 100.0)
    scene.manager.want(NAMES[0], 101.0)  # another Get
    assert scene.manager.oldest_s == 100.0
    first, second = scene.manager.restore()
    assert isinstance(first, ReadObject) and isinstance(second, ReadObject)
    assert (first.object_id, second.object_id) == (NAMES[0], NAMES[1])
    assert scene.manager.restore() == []
    assert scene.manager.restored(NAMES[0])
    (third,) = scene.manager.restore()
    assert isinstance(third, ReadObject) and third.object_id == NAMES[2]
    scene.check_invariants()


def test_what_no_room_can_be_made_for_is_read_in_place() -> None:
    scene = Scene()
    spill_all(scene, NAMES[:4])
    scene.put(*NAMES[8:16])
    for name in NAMES[8:16]:
        scene.store.pin(name, ANNA)
    scene.manager.want(NAMES[0], 100.0)
    assert scene.manager.restore() == [ReadInPlace(NAMES[0], scene.store.extent_of(NAMES[0]))]
    scene.store.release(NAMES[8], ANNA)  # now it can be written, and that awaited
    scene.manager.want(NAMES[1], 100.0)
    assert scene.manager.restore() == [] and scene.manager.wanted_bytes == SIZE
    (write,) = scene.make_room(scene.manager.wanted_bytes)
    assert isinstance(write, WriteFile) and list(write.extents) == [NAMES[8]]


def brought_scene() -> tuple[Scene, BringHere]:
    """Two objects in one file elsewhere, of which the first has to be read in place."""
    scene = Scene(num_directories=2, num_external=1)
    spill_all(scene, NAMES[:2])
    scene.put(*NAMES[8:16])
    for name in NAMES[8:16]:
        scene.store.pin(name, ANNA)
    scene.manager.want(NAMES[0], 100.0)
    (bring,) = scene.manager.restore()
    assert isinstance(bring, BringHere)
    assert (bring.source.file.directory, bring.target.file.directory) == (0, 1)
    return scene, bring


def test_what_is_elsewhere_is_copied_to_be_read_in_place() -> None:
    scene, bring = brought_scene()
    scene.manager.want(NAMES[0], 101.0)
    assert scene.manager.restore() == []  # it is under way
    assert scene.manager.brought(bring)
    assert scene.store.extent_of(NAMES[0]) == bring.target
    scene.manager.want(NAMES[0], 102.0)
    assert scene.manager.restore() == [ReadInPlace(NAMES[0], bring.target)]
    scene.store.free(NAMES[1])
    (removal,) = scene.make_room(0)
    assert removal == RemoveFile(bring.source.file)


def test_what_is_freed_while_it_is_copied_to_be_read_in_place_is_not_kept() -> None:
    scene, bring = brought_scene()
    scene.store.free(NAMES[0])
    assert not scene.manager.brought(bring)
    scene.check_invariants()


def test_what_could_not_be_copied_to_be_read_in_place_stays_where_it_was_and_is_tried_again() -> None:
    scene, bring = brought_scene()
    scene.manager.not_brought(bring)
    assert scene.store.extent_of(NAMES[0]) == bring.source
    scene.manager.want(NAMES[0], 101.0)
    (again,) = scene.manager.restore()
    assert isinstance(again, BringHere)


def test_what_is_larger_than_the_store_lies_where_it_can_be_mapped() -> None:
    scene = Scene(num_directories=3, num_external=2)
    (planned,) = scene.manager.plan_files(NAMES[0], 100 * SIZE)
    assert planned.file.directory == 2
    scene.put(*NAMES[:8])
    writes = scene.make_room(8 * SIZE)
    taken = [write.extents.values() for write in writes if isinstance(write, WriteFile)]
    assert {extent.file.directory for extents in taken for extent in extents} == {0, 1}


def test_files_of_what_is_freed_are_removed() -> None:
    scene = Scene()
    spill_all(scene, NAMES[:2])
    for name in NAMES[:2]:
        scene.store.free(name)
    (removal,) = scene.make_room(0)
    assert isinstance(removal, RemoveFile)
    assert not scene.manager.is_due


def test_a_file_is_at_most_a_share_of_the_store() -> None:
    scene = Scene(min_spilling_size_bytes=100 * SIZE, file_share=0.25)
    scene.put(*NAMES[:8])
    assert written(scene.make_room()) == [NAMES[0:2]]


def test_files_follow_one_another_until_some_less_than_the_threshold_are_left() -> None:
    scene = Scene(object_spilling_threshold=0.8, files_ahead=2)
    scene.put(*NAMES[:6])
    assert scene.make_room(0) == []
    scene.put(NAMES[6])
    for number in (0, 2):
        (write,) = scene.make_room(0)
        assert isinstance(write, WriteFile) and list(write.extents) == NAMES[number : number + 2]
        assert scene.make_room(0) == []
        scene.manager.written(write.number)
    (write,) = scene.make_room(0)
    assert isinstance(write, WriteFile) and list(write.extents) == NAMES[4:6]
    scene.manager.written(write.number)
    assert scene.make_room(0) == [] and not scene.manager.is_due
    scene.put(NAMES[7])
    assert scene.make_room(0) == []
