"""The real disk: files of real bytes, real directories, and what is said and left where it is full or
broken."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.keys import ObjectKey
from ray_mono.object_manager.seams import UnreadableSource
from ray_mono.object_manager.spill_directories import SpillDirectories, SpillDirectoryError
from ray_mono.object_manager.spill_disk import FileSpillDisk
from ray_mono.object_manager.spill_files import Extent, SpillFile, SpillFiles

MIB = 1 << 20
NODE = "0123abcd"
TIMEOUT_S = 60.0
A = ObjectKey(b"a")


def make_disk(*directories: Path, **config: Any) -> FileSpillDisk:
    names = [str(directory) for directory in directories]
    return FileSpillDisk(SpillDirectories(names, NODE), ObjectManagerConfig(1 << 30, **config))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FileSpillDisk]:
    disk = make_disk(tmp_path / "spilled")
    yield disk
    disk.close()
    assert os.listdir(tmp_path / "spilled") == []


def run(play: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await play()

    asyncio.run(bounded())


def parts_of(contents: list[bytes]) -> list[memoryview]:
    return [memoryview(content) for content in contents]


def extents_of(number: int, contents: list[bytes]) -> list[Extent]:
    files = SpillFiles(1.0)
    for _ in range(number):
        files.plan(0, [(A, 1)])
    ids = [(ObjectKey(b"%d" % each), len(content)) for each, content in enumerate(contents)]
    return list(files.plan(0, ids).values())


async def read(disk: FileSpillDisk, extent: Extent, start: int = 0, length: int | None = None) -> bytes:
    target = memoryview(bytearray(extent.size_bytes - start if length is None else length))
    await disk.read(extent, start, target, lambda start, count: None)
    return bytes(target)


def test_what_is_written_is_read_back_whole_and_in_part(disk: FileSpillDisk) -> None:
    contents = [random.Random(size).randbytes(size) for size in (1, 0, 100, 64, 5 * MIB + 3, 70 * MIB + 1)]
    extents = extents_of(0, contents)

    async def play() -> None:
        await disk.write(extents, parts_of(contents))
        for extent, content in zip(extents, contents, strict=True):
            assert await read(disk, extent) == content
        assert await read(disk, extents[4], 1000, 2 * MIB) == contents[4][1000 : 1000 + 2 * MIB]
        await disk.remove(extents[0].file)
        assert not os.path.exists(disk.path(extents[0].file))

    run(play)


def test_thousands_of_objects_are_written_to_one_file(disk: FileSpillDisk) -> None:
    contents = [random.Random(number).randbytes(100 + number % 50) for number in range(2000)]
    extents = extents_of(0, contents)

    async def play() -> None:
        await disk.write(extents, parts_of(contents))
        for number in (0, 1, 511, 512, 1999):
            assert await read(disk, extents[number]) == contents[number]

    run(play)


def test_every_byte_of_a_target_is_made_ready_before_it_is_read_into(disk: FileSpillDisk) -> None:
    contents = [random.Random(1).randbytes(70 * MIB)]
    (extent,) = extents_of(0, contents)
    ready: list[tuple[int, int]] = []

    async def play() -> None:
        await disk.write([extent], parts_of(contents))
        target = memoryview(bytearray(extent.size_bytes))
        await disk.read(extent, 0, target, lambda start, count: ready.append((start, count)))
        at = 0
        for start, count in sorted(ready):
            assert start == at
            at += count
        assert at == extent.size_bytes

    run(play)


def test_what_lives_is_copied_from_several_files_into_one(disk: FileSpillDisk) -> None:
    first, second = [b"a" * 100, b"b" * 20 * MIB], [b"c" * 300, b"d" * 7]
    old = [extents_of(0, first), extents_of(1, second)]

    async def play() -> None:
        await disk.write(old[0], parts_of(first))
        await disk.write(old[1], parts_of(second))
        targets = extents_of(2, [first[1], second[0]])
        await disk.copy([old[0][1], old[1][0]], targets)
        for each in old:
            await disk.remove(each[0].file)
        assert [await read(disk, target) for target in targets] == [first[1], second[0]]

    run(play)


def test_a_file_that_is_shorter_than_what_was_written_is_an_error(disk: FileSpillDisk) -> None:
    (extent,) = extents_of(0, [b"x" * 1000])

    async def play() -> None:
        await disk.write([extent], [memoryview(b"x" * 1000)])
        os.truncate(disk.path(extent.file), 500)
        with pytest.raises(OSError, match="shorter than what was written") as caught:
            await read(disk, extent)
        assert caught.value.errno == errno.EIO

    run(play)


def alter(path: str, offset: int) -> None:
    """One bit of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_bytes_that_changed_on_the_disk_are_never_given(disk: FileSpillDisk) -> None:
    contents = [random.Random(size).randbytes(size) for size in (100, 20 * MIB + 5, 100)]
    first, large, last = extents_of(0, contents)

    async def play() -> None:
        await disk.write([first, large, last], parts_of(contents))
        alter(disk.path(large.file), large.offset + 9 * MIB + 17)
        for start, length in ((0, None), (9 * MIB, 1), (9 * MIB + 100, 2 * MIB), (8 * MIB + 5, 2 * MIB)):
            with pytest.raises(OSError, match="bytes are not those that were written"):
                await read(disk, large, start, length)
        with pytest.raises(OSError, match="bytes are not those that were written"):
            await disk.check(large)
        with pytest.raises(UnreadableSource, match="bytes are not those that were written"):
            await disk.copy([first, large], extents_of(1, contents[:2]))
        assert await read(disk, large, 10 * MIB) == contents[1][10 * MIB :]
        assert await read(disk, large, MIB + 1, 7 * MIB) == contents[1][MIB + 1 : 8 * MIB + 1]
        for extent, content in ((first, contents[0]), (last, contents[2])):
            await disk.check(extent)
            assert await read(disk, extent) == content

    run(play)


def test_what_was_copied_is_known_by_what_was_written_first(disk: FileSpillDisk) -> None:
    contents = [random.Random(1).randbytes(3 * MIB)]
    (source,), (target,) = extents_of(0, contents), extents_of(1, contents)

    async def play() -> None:
        await disk.write([source], parts_of(contents))
        await disk.copy([source], [target])
        assert await read(disk, target) == contents[0]
        alter(disk.path(target.file), MIB)
        with pytest.raises(OSError, match="bytes are not those that were written"):
            await read(disk, target)

    run(play)


def test_another_file_in_the_place_of_one_that_a_client_wrote_is_noticed(disk: FileSpillDisk) -> None:
    (extent,) = extents_of(0, [bytes(MIB)])

    async def play() -> None:
        await disk.make(extent.file, MIB)
        path = Path(disk.path(extent.file))
        path.write_bytes(bytes(MIB))
        await disk.made(extent.file)
        await disk.check(extent)
        path.rename(path.with_name("away"))
        path.write_bytes(bytes(MIB))
        with pytest.raises(OSError, match="not the file that was written"):
            await disk.check(extent)
        path.with_name("away").replace(path)
        await disk.check(extent)
        assert await read(disk, extent) == bytes(MIB)
        alter(str(path), 10)
        with pytest.raises(OSError, match="not the file that was written"):
            await read(disk, extent)

    run(play)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("this machine mounts no file systems for us")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_is_filled_up_to_a_threshold_and_the_refusal_says_the_sizes(small_disk: Path) -> None:
    disk = make_disk(small_disk, local_fs_capacity_threshold=0.5)

    async def play() -> None:
        content = [b"x" * 20 * MIB]
        await disk.write(extents_of(0, content), parts_of(content))
        with pytest.raises(OSError, match=r"over 50%.*bytes are free") as caught:
            await disk.write([Extent(SpillFile(1, 0), 0, len(content[0]))], parts_of(content))
        assert caught.value.errno == errno.ENOSPC and not os.path.exists(disk.path(SpillFile(1, 0)))

    run(play)
    disk.close()


def test_a_write_that_the_disk_has_no_room_for_leaves_nothing(small_disk: Path) -> None:
    """Also where that shows only in the middle: what is compacted is not held up by the threshold."""
    disk = make_disk(small_disk)
    content = [b"x" * 20 * MIB]
    (source,) = extents_of(0, content)

    async def fill() -> None:
        await disk.write([source], parts_of(content))
        (small_disk / "others").write_bytes(b"x" * 36 * MIB)
        before = os.statvfs(small_disk).f_bavail
        with pytest.raises(OSError) as caught:
            await disk.copy([source], extents_of(1, content))
        assert caught.value.errno == errno.ENOSPC
        assert os.statvfs(small_disk).f_bavail == before
        assert await read(disk, source) == content[0]

    run(fill)
    disk.close()


def test_what_is_copied_from_elsewhere_fills_a_disk_up_to_its_threshold(
    small_disk: Path, tmp_path: Path
) -> None:
    disk = make_disk(tmp_path / "elsewhere", small_disk)
    content = [b"x" * 62 * MIB]
    (source,) = extents_of(0, content)

    async def play() -> None:
        await disk.write([source], parts_of(content))
        with pytest.raises(OSError, match=r"over 95%.*bytes are free") as caught:
            await disk.copy([source], [Extent(SpillFile(1, 1), 0, source.size_bytes)])
        assert caught.value.errno == errno.ENOSPC

    run(play)
    disk.close()


def test_a_file_system_that_cannot_be_written_is_refused(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(SpillDirectoryError, match=f"{small_disk}: Read-only file system: choose"):
        make_disk(small_disk)


def test_the_end_stops_what_is_written_and_leaves_nothing(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)

    async def play() -> None:
        contents = [bytes(MIB)] * 256
        write = asyncio.ensure_future(disk.write(extents_of(0, contents), parts_of(contents)))
        await asyncio.sleep(0)
        disk.close()
        with pytest.raises((OSError, asyncio.CancelledError)):
            await write

    run(play)
    assert os.listdir(tmp_path) == []


def test_a_directory_that_somebody_has_removed_is_written_to_again(disk: FileSpillDisk) -> None:
    lost, *others = (extents_of(number, [b"abc"]) for number in range(3))
    made = others[1][0].file

    async def play() -> None:
        await disk.write(lost, parts_of([b"abc"]))
        shutil.rmtree(Path(disk.path(made)).parent)
        await disk.make(made, 10)
        disk.map(made, 10)[:] = b"0123456789"
        shutil.rmtree(Path(disk.path(made)).parent)
        await disk.write(others[0], parts_of([b"abc"]))
        assert await read(disk, others[0][0]) == b"abc"
        with pytest.raises(FileNotFoundError):
            await read(disk, lost[0])

    run(play)
