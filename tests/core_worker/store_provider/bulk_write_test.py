"""Copies into the store: whole, nowhere else, and over when they return, however they end."""

from __future__ import annotations

import os
import random
import tempfile
import threading
from collections.abc import Iterator

import pytest

from ray_mono.common.mapped_file import MappedFile
from ray_mono.core_worker.store_provider import bulk_write
from tests.no_threads import no_threads

MIB = 1 << 20
SIZE_BYTES = 40 * MIB
GUARD = b"\xaa" * 64


@pytest.fixture
def target() -> Iterator[MappedFile]:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        os.posix_fallocate(file.fileno(), 0, SIZE_BYTES)
        mapped = MappedFile(file.fileno(), SIZE_BYTES)
        yield mapped
        mapped.close()


@pytest.mark.parametrize("cpus", [1, 3])
@pytest.mark.parametrize("size_bytes", [0, 1, 511 << 10, 3 * MIB + 1, 17 * MIB + 5, 33 * MIB])
@pytest.mark.parametrize("offset", [64, 5 * MIB + 192])
def test_all_bytes_arrive_and_no_others(
    target: MappedFile, monkeypatch: pytest.MonkeyPatch, cpus: int, size_bytes: int, offset: int
) -> None:
    monkeypatch.setattr(bulk_write.os, "sched_getaffinity", lambda pid: set(range(cpus)))
    data = random.Random(size_bytes).randbytes(size_bytes)
    for source in (data, memoryview(data)):  # over pages that are new, and again
        target.view[offset - 64 : offset] = GUARD
        target.view[offset + size_bytes : offset + size_bytes + 64] = GUARD
        bulk_write.write(target, offset, source)
        assert target.view[offset : offset + size_bytes] == data
        assert target.view[offset - 64 : offset] == GUARD
        assert target.view[offset + size_bytes : offset + size_bytes + 64] == GUARD


class Interrupted(MappedFile):
    """Interrupts the thread that calls write, while its helper is in the middle of a copy."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        super().__init__(fd, size_bytes)
        self.caller = threading.current_thread()
        self.helper: threading.Thread | None = None
        self.helps = threading.Event()
        self.interrupted = threading.Event()

    def prepare(self, offset: int, length_bytes: int) -> None:
        if threading.current_thread() is self.caller:
            assert self.helps.wait(30)
            self.interrupted.set()
            raise KeyboardInterrupt
        self.helper = threading.current_thread()
        self.helps.set()
        assert self.interrupted.wait(30)


def test_an_interrupt_is_raised_when_nobody_writes_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_write.os, "sched_getaffinity", lambda pid: {0, 1})
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        os.posix_fallocate(file.fileno(), 0, SIZE_BYTES)
        target = Interrupted(file.fileno(), SIZE_BYTES)
        with pytest.raises(KeyboardInterrupt):
            bulk_write.write(target, 0, bytes(32 * MIB))
        assert target.helper is not None and not target.helper.is_alive()
        target.close()


def test_where_no_thread_may_be_made_all_bytes_arrive(
    target: MappedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_write.os, "sched_getaffinity", lambda pid: {0, 1, 2})
    data = random.Random(1).randbytes(33 * MIB)
    with no_threads():
        bulk_write.write(target, 64, data)
    assert target.view[64 : 64 + len(data)] == data
