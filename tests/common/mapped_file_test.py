"""A mapped file: prepared pages are written without traps, and a lack of memory behind them kills nobody."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_mono.common.mapped_file import PIECE_BYTES, MappedFile, bytes_of

SIZE_BYTES = 16 * PIECE_BYTES + 1000
PAGE_BYTES = 4096


@pytest.fixture
def fd() -> Iterator[int]:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        os.posix_fallocate(file.fileno(), 0, SIZE_BYTES)
        yield file.fileno()


def can_populate() -> bool:
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor)) >= (5, 14)


def traps(mapped: MappedFile, offset: int, length: int) -> int:
    data = b"x" * length
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    mapped.view[offset : offset + length] = data
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not can_populate(), reason="this kernel has no MADV_POPULATE_WRITE")
def test_what_is_prepared_is_written_without_traps(fd: int) -> None:
    mapped = MappedFile(fd, SIZE_BYTES)
    length = 4 * PIECE_BYTES
    mapped.prepare(100, length)
    assert traps(mapped, 100, length) < length // PAGE_BYTES // 10
    assert traps(mapped, 8 * PIECE_BYTES, length) >= length // PAGE_BYTES
    mapped.close()


@pytest.mark.skipif(not can_populate(), reason="this kernel has no MADV_POPULATE_WRITE")
def test_it_knows_how_far_a_range_is_prepared(fd: int) -> None:
    mapped = MappedFile(fd, SIZE_BYTES)
    assert mapped.prepared_bytes(0, SIZE_BYTES) == 0
    mapped.prepare(PIECE_BYTES + 10, PIECE_BYTES)
    assert mapped.prepared_bytes(PIECE_BYTES + 10, 100) == 100
    assert mapped.prepared_bytes(PIECE_BYTES + 10, SIZE_BYTES) == 2 * PIECE_BYTES - 10
    assert mapped.prepared_bytes(0, SIZE_BYTES) == 0
    assert mapped.prepared_bytes(3 * PIECE_BYTES, 1) == 0
    mapped.prepare(0, SIZE_BYTES)
    assert mapped.prepared_bytes(0, SIZE_BYTES) == SIZE_BYTES
    assert mapped.prepared_bytes(SIZE_BYTES - 1, 1) == 1
    mapped.close()


def test_nothing_has_no_length(fd: int) -> None:
    mapped = MappedFile(fd, SIZE_BYTES)
    mapped.prepare(PIECE_BYTES, 0)
    assert mapped.prepared_bytes(PIECE_BYTES, 0) == 0
    mapped.close()


def test_preparing_what_has_no_memory_behind_it_does_nothing(fd: int) -> None:
    mapped = MappedFile(fd, SIZE_BYTES)
    os.ftruncate(fd, PAGE_BYTES)  # a write beyond would be the end of this process
    mapped.prepare(PIECE_BYTES, PIECE_BYTES)
    if can_populate():
        assert mapped.prepared_bytes(PIECE_BYTES, PIECE_BYTES) == 0
    mapped.close()


def test_a_kernel_that_cannot_prepare_is_asked_once(fd: int) -> None:
    mapped = MappedFile(fd, SIZE_BYTES)
    asked = []

    def refuse(offset: int, length: int) -> int:
        asked.append((offset, length))
        return errno.EINVAL

    mapped._populate = refuse
    mapped.prepare(0, 1)
    mapped.prepare(PIECE_BYTES, PIECE_BYTES)
    assert asked == [(0, PIECE_BYTES)]
    assert mapped.prepared_bytes(0, SIZE_BYTES) == SIZE_BYTES
    mapped.close()


def test_a_slice_that_is_alive_may_outlive_the_close(fd: int) -> None:
    mapped = MappedFile(fd, SIZE_BYTES)
    part = mapped.view[:10]
    mapped.close()
    part[:] = b"0123456789"
    assert os.pread(fd, 10, 0) == b"0123456789"


def test_what_is_read_keeps_no_descriptor_and_is_mapped_until_nothing_refers_to_it(fd: int) -> None:
    os.pwrite(fd, b"abc", PAGE_BYTES + 10)
    place = os.readlink(f"/proc/self/fd/{fd}").split()[0]
    descriptors = os.listdir("/proc/self/fd")
    some = bytes_of(fd, 2 * PAGE_BYTES, PAGE_BYTES)[10:]
    assert os.listdir("/proc/self/fd") == descriptors
    assert some.readonly and bytes(some[:3]) == b"abc" and len(some) == 2 * PAGE_BYTES - 10
    assert place in Path("/proc/self/maps").read_text()
    del some
    assert place not in Path("/proc/self/maps").read_text()


def test_what_cannot_be_mapped_is_an_error(fd: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        bytes_of(fd, PAGE_BYTES, 1)
