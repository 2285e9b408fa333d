"""Which bytes of which file are whose: when a file is dead, and when it is worth a copy of the rest."""

from __future__ import annotations

import random

import pytest

from ray_mono.common.our_bug import InternalError
from ray_mono.object_manager.keys import ObjectKey
from ray_mono.object_manager.spill_files import Extent, SpillFile, SpillFiles

A, B, C, D = (ObjectKey(bytes([number])) for number in range(4))


@pytest.fixture
def files() -> SpillFiles:
    return SpillFiles(sparse_share=0.7)


def write(files: SpillFiles, *object_ids: ObjectKey, size_bytes: int = 100, directory: int = 0) -> SpillFile:
    extents = files.plan(directory, [(object_id, size_bytes) for object_id in object_ids])
    files.written(extents, object_ids)
    files.check_invariants()
    return next(iter(extents.values())).file


def drop(files: SpillFiles, object_id: ObjectKey) -> None:
    files.drop(object_id)
    files.check_invariants()


def any_may_move(object_id: ObjectKey) -> bool:
    return True


def test_objects_lie_behind_each_other_each_at_an_offset_that_memory_could_have(files: SpillFiles) -> None:
    file = write(files, A, B, C, size_bytes=100)
    assert [files.where(each) for each in (A, B, C)] == [
        Extent(file, 0, 100),
        Extent(file, 128, 100),
        Extent(file, 256, 100),
    ]
    assert (files.total_bytes, files.dead_bytes, files.num_objects, len(files)) == (384, 0, 3, 1)


def test_a_file_goes_when_all_of_it_is_dead(files: SpillFiles) -> None:
    file = write(files, A, B)
    drop(files, A)
    assert files.take_dead() == [] and files.dead_bytes == 128
    drop(files, B)
    assert files.take_dead() == [file] and files.take_dead() == []
    assert (files.total_bytes, files.dead_bytes, len(files)) == (0, 0, 0)
    with pytest.raises(InternalError, match=A.hex()):
        files.where(A)


def test_what_was_freed_while_it_was_written_is_dead_from_the_start(files: SpillFiles) -> None:
    extents = files.plan(0, [(A, 100), (B, 100)])
    files.written(extents, [B])
    files.check_invariants()
    assert files.dead_bytes == 128
    other = files.plan(0, [(C, 100)])
    files.written(other, [])
    assert files.take_dead() == [other[C].file]


def write_sparse(files: SpillFiles, object_id: ObjectKey) -> SpillFile:
    """A file of which 75 % is dead, and the object lives."""
    others = [ObjectKey(object_id + bytes([number])) for number in range(3)]
    file = write(files, object_id, *others)
    for other in others:
        drop(files, other)
    return file


def test_files_of_which_most_is_dead_are_copied_together_and_go(files: SpillFiles) -> None:
    first, second = write_sparse(files, A), write_sparse(files, B)
    full = write(files, C)
    assert files.compact(1000, any_may_move) == [first, second]
    files.check_invariants()
    assert files.compact(1000, any_may_move) == []  # they are busy
    living = files.living([first, second])
    assert [object_id for object_id, _ in living] == [A, B]
    extents = files.plan(0, [(object_id, extent.size_bytes) for object_id, extent in living])
    drop(files, B)  # while it is copied
    assert files.take_dead() == []
    files.moved([first, second], extents, [A])
    files.check_invariants()
    assert files.is_at(A, extents[A]) and files.take_dead() == [first, second]
    assert files.where(C).file == full


def test_a_file_with_half_of_it_dead_stays(files: SpillFiles) -> None:
    write(files, A, B)
    drop(files, A)
    assert files.compact(1000, any_may_move) == []


def test_so_much_is_copied_at_a_time(files: SpillFiles) -> None:
    first, second = write_sparse(files, A), write_sparse(files, B)
    assert files.compact(1, any_may_move) == [first]
    assert files.compact(1, any_may_move) == [second]


def test_a_file_in_which_something_is_read_stays_until_it_is_not(files: SpillFiles) -> None:
    file = write_sparse(files, A)
    assert files.compact(1000, lambda object_id: object_id != A) == []
    files.check_invariants()
    assert files.compact(1000, any_may_move) == [file]


def test_a_copy_that_failed_leaves_everything_where_it_was(files: SpillFiles) -> None:
    file = write_sparse(files, A)
    files.compact(1000, any_may_move)
    files.moved([file], {}, [])
    files.check_invariants()
    assert files.where(A).file == file and files.take_dead() == []
    assert files.compact(1000, any_may_move) == [file]


def test_a_file_whose_last_object_is_freed_while_it_is_copied_goes_with_the_end_of_that(
    files: SpillFiles,
) -> None:
    file = write_sparse(files, A)
    files.compact(1000, any_may_move)
    extents = files.plan(0, [(A, 100)])
    drop(files, A)
    assert files.take_dead() == []
    files.moved([file], extents, [])
    assert sorted(each.number for each in files.take_dead()) == [file.number, extents[A].file.number]


def test_the_books_agree_after_any_sequence_of_writes_frees_and_copies() -> None:
    rng = random.Random(1)
    files, living, next_id, removed = SpillFiles(0.7), [], 0, set()
    for _ in range(400):
        if rng.random() < 0.3:
            ids = [ObjectKey(bytes([next_id % 256, next_id // 256, number])) for number in range(8)]
            next_id += 1
            living += ids
            write(files, *ids, size_bytes=rng.randrange(500))
        elif living:
            drop(files, living.pop(rng.randrange(len(living))))
        chosen = files.compact(1000, any_may_move)
        if chosen:
            parts = files.living(chosen)
            extents = files.plan(0, [(each, extent.size_bytes) for each, extent in parts])
            files.moved(chosen, extents, [each for each, _ in parts])
            files.check_invariants()
        for file in files.take_dead():
            assert file not in removed
            removed.add(file)
    assert files.num_objects == len(living) and removed
    assert files.dead_bytes <= 0.7 * files.total_bytes
