"""A storage elsewhere, by a server that really speaks S3: what is written there, read, removed and left, and
what is said where it is not as it should be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_mono.common.store_messages import ExternalStorageError
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.external_place import ExternalPlace
from ray_mono.object_manager.external_storage import ExternalStorage
from ray_mono.object_manager.keys import ObjectKey
from ray_mono.object_manager.spill_directories import SpillDirectories
from ray_mono.object_manager.spill_disk import FileSpillDisk
from ray_mono.object_manager.spill_files import Extent, SpillFile, SpillFiles, aligned
from ray_mono.object_manager.spill_places import AlteredFileError
from tests.object_manager.harness import environment
from tests.object_manager.s3_server import BUCKET, S3Server, s3
from tests.waiting import wait_until

__all__ = ["s3"]

MIB = 1 << 20
NODE = "0123abcd"
URI = f"s3://{BUCKET}/some/path"
FOLDER = f"some/path/ray_spilled_objects_{NODE}"
TIMEOUT_S = 90.0


def storage(uri: str = URI, session: Path | None = None, node: str = NODE, **config: Any) -> ExternalStorage:
    path = str(session) if session is not None else None
    return ExternalStorage([uri], node, path, ObjectManagerConfig(1 << 30, **config))


@pytest.fixture
def disk(s3: S3Server, tmp_path: Path) -> Iterator[FileSpillDisk]:
    config = ObjectManagerConfig(1 << 30, external_part_bytes=8 * MIB)
    directories = SpillDirectories([str(tmp_path / "here")], NODE)
    disk = FileSpillDisk(directories, config, storage(external_part_bytes=8 * MIB))
    yield disk
    disk.close()
    assert s3.keys() == s3.uploads() == os.listdir(tmp_path / "here") == []


def run(play: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await play()

    asyncio.run(bounded())


def contents_of(*sizes: int) -> list[bytes]:
    return [random.Random(size).randbytes(size) for size in sizes]


def parts_of(contents: list[bytes]) -> list[memoryview]:
    return [memoryview(content) for content in contents]


def extents_of(contents: list[bytes], number: int = 0, directory: int = 0) -> list[Extent]:
    files = SpillFiles(1.0)
    for _ in range(number):
        files.plan(0, [(ObjectKey(b"a"), 1)])
    ids = [(ObjectKey(b"%d" % each), len(content)) for each, content in enumerate(contents)]
    return list(files.plan(directory, ids).values())


async def read(disk: FileSpillDisk, extent: Extent, start: int = 0, length: int | None = None) -> bytes:
    target = memoryview(bytearray(extent.size_bytes - start if length is None else length))
    await disk.read(extent, start, target, lambda start, count: None)
    return bytes(target)


def test_objects_go_up_as_one_in_parts_and_are_read_by_ranges(disk: FileSpillDisk, s3: S3Server) -> None:
    contents = contents_of(1, 0, 100, 64, 30 * MIB + 3, 70 * MIB + 1)
    extents = extents_of(contents)

    async def play() -> None:
        await disk.write(extents, parts_of(contents))
        assert s3.keys() == [f"{FOLDER}/0"] and s3.num_parts(f"{FOLDER}/0") > 5
        assert s3.sizes() == [sum(aligned(len(content)) for content in contents)]
        for extent, content in zip(extents, contents, strict=True):
            assert await read(disk, extent) == content
        assert await read(disk, extents[5], 1000, 20 * MIB) == contents[5][1000 : 1000 + 20 * MIB]
        assert disk.path(extents[0].file) == ""
        await disk.remove(extents[0].file)
        assert s3.keys() == []

    run(play)


def test_what_lives_is_copied_there_and_to_where_it_can_be_mapped(disk: FileSpillDisk, s3: S3Server) -> None:
    contents = contents_of(100, 20 * MIB + 5, 33, 3 * MIB)
    extents = extents_of(contents)
    kept = [extents[1], extents[3]]
    there = extents_of([contents[1], contents[3]], number=1)
    (here,) = extents_of([contents[1]], number=2, directory=1)

    async def play() -> None:
        await disk.write(extents, parts_of(contents))
        await disk.copy(kept, there)
        assert [await read(disk, extent) for extent in there] == [contents[1], contents[3]]
        await disk.copy([extents[1]], [here])
        assert Path(disk.path(here.file)).read_bytes() == contents[1]

    run(play)


def test_a_server_that_is_gone_for_a_while_costs_a_write_and_no_read(
    disk: FileSpillDisk, s3: S3Server
) -> None:
    contents = contents_of(5 * MIB)
    (extent,) = extents_of(contents)

    async def play() -> None:
        await disk.write([extent], parts_of(contents))
        with s3.gone():
            with pytest.raises(OSError, match=f"s3://{BUCKET}/{FOLDER}/1"):
                await disk.write([Extent(SpillFile(1, 0), 0, len(contents[0]))], parts_of(contents))
            reading = asyncio.ensure_future(read(disk, extent))
            await asyncio.wait([reading], timeout=0.5)
            assert not reading.done()
        assert await reading == contents[0]

    run(play)


def test_a_read_is_given_up_after_its_bound_and_at_once_where_the_file_is_gone(
    s3: S3Server, tmp_path: Path
) -> None:
    config = ObjectManagerConfig(1 << 30, external_retry_s=0.2)
    external = storage(external_retry_s=0.2)
    disk = FileSpillDisk(SpillDirectories([str(tmp_path / "here")], NODE), config, external)
    contents = contents_of(MIB)
    (extent,) = extents_of(contents)

    async def play() -> None:
        with pytest.raises(FileNotFoundError):
            await read(disk, extent)
        await disk.write([extent], parts_of(contents))
        with s3.gone(), pytest.raises(OSError, match=f"s3://{BUCKET}/{FOLDER}/0"):
            await read(disk, extent)

    run(play)
    disk.close()


@pytest.mark.parametrize("change", [lambda content: content[:-1] + b"?", lambda content: content[: MIB // 2]])
def test_what_is_not_there_as_it_was_written_is_lost_at_once(
    disk: FileSpillDisk, s3: S3Server, change: Callable[[bytes], bytes]
) -> None:
    contents = contents_of(MIB)
    (extent,) = extents_of(contents)

    async def play() -> None:
        await disk.write([extent], parts_of(contents))
        s3.put(f"{FOLDER}/0", change(contents[0]))
        with pytest.raises(AlteredFileError, match=f"s3://{BUCKET}/{FOLDER}/0"):
            await read(disk, extent)

    run(play)


def test_what_failed_in_the_middle_leaves_no_upload(s3: S3Server) -> None:
    place = ExternalPlace(URI, NODE, part_bytes=8 * MIB, retry_s=0)
    with pytest.raises(OSError, match="it broke"), place.writing(0) as write:
        write([memoryview(bytes(40 * MIB))])
        assert s3.uploads() == [f"{FOLDER}/0"]
        raise OSError("it broke")
    assert s3.uploads() == s3.keys() == []


def test_a_storage_that_cannot_be_used_is_refused_with_the_reason(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExternalStorageError, match="spilled to s3://other: .*bucket does not exist.*exists"):
        storage("s3://other")
    with pytest.raises(ExternalStorageError, match="foo://bucket: Protocol not known: foo"):
        storage("foo://bucket")
    s3.stop()
    s3.start(INITIAL_NO_AUTH_ACTION_COUNT="1")  # from now on it looks at who asks
    with pytest.raises(ExternalStorageError, match="Access Key Id you provided does not exist"):
        storage()
    with s3.paused(), pytest.raises(ExternalStorageError, match=r"has not answered for 0\.2 s"):
        storage(external_check_timeout_s=0.2)
    with s3.gone(), pytest.raises(ExternalStorageError, match="Could not connect to the endpoint"):
        storage()
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    with pytest.raises(ExternalStorageError, match="Unable to locate credentials"):
        storage()


def test_a_package_that_is_missing_is_named_with_what_brings_it() -> None:
    # In a process of its own: fsspec keeps what it has loaded.
    code = """if True:
        import sys
        from ray_mono.common.store_messages import ExternalStorageError
        from ray_mono.object_manager.external_place import ExternalPlace
        sys.modules["s3fs"] = None
        try:
            ExternalPlace("s3://bucket", "aa", 1, 1)
        except ExternalStorageError as error:
            print(error)
    """
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    ).stdout
    assert "s3://bucket: a package is missing" in said and "pip install 'ray_mono[s3]'" in said


def test_nothing_of_a_node_is_left_when_it_ends(s3: S3Server, tmp_path: Path) -> None:
    external = storage(session=tmp_path)
    s3.put(f"{FOLDER}/7", b"x")
    s3.put("some/path/of_another", b"x")
    s3.begin_upload(f"{FOLDER}/8")
    s3.begin_upload("some/path/of_another")
    external.close()
    assert s3.keys() == s3.uploads() == ["some/path/of_another"]
    assert os.listdir(tmp_path) == []


def test_what_a_node_that_is_gone_left_is_removed_by_the_next_one(s3: S3Server, tmp_path: Path) -> None:
    sessions = [tmp_path / name for name in ("session_1", "session_2")]
    for session in sessions:
        session.mkdir()
    gone, lives = "aa" * 14, "bb" * 14
    mark = sessions[0] / f"external_spilling_{gone}"
    mark.write_text(json.dumps([URI]))
    first = storage(session=sessions[0], node=lives)
    for node in (gone, lives):
        s3.put(f"some/path/ray_spilled_objects_{node}/1", b"x")
    second = storage(session=sessions[1])
    wait_until(lambda: not mark.exists(), "what is left is removed")
    assert s3.keys() == [f"some/path/ray_spilled_objects_{lives}/1"]
    second.close()
    first.close()
    assert s3.keys() == [] and [os.listdir(session) for session in sessions] == [[], []]


def test_a_request_that_fails_at_the_end_of_a_node_is_made_again(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    external = storage(session=tmp_path)
    s3.put(f"{FOLDER}/7", b"x")
    s3.begin_upload(f"{FOLDER}/8")
    with contextlib.ExitStack() as until_the_pause:
        until_the_pause.enter_context(s3.gone())
        monkeypatch.setattr(
            "ray_mono.object_manager.external_storage.time.sleep", lambda pause_s: until_the_pause.close()
        )
        external.close()
    assert s3.keys() == s3.uploads() == os.listdir(tmp_path) == []


def test_what_a_storage_that_does_not_answer_holds_is_removed_by_the_next_node(
    s3: S3Server, tmp_path: Path
) -> None:
    session = tmp_path / "session_1"
    session.mkdir()
    external = storage(session=session)
    s3.put(f"{FOLDER}/7", b"x")
    with s3.gone():
        external.close()
    assert os.listdir(session) == [f"external_spilling_{NODE}"]
    external.close()
    assert os.listdir(session) == s3.keys() == []
