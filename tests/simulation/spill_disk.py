"""The disk of a simulated node: slow, full or unreadable now and then, and gone with its object manager.

What is spilled lies in files of the world's folder, so that simulated processes map it as they map stores.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import random
from collections.abc import Sequence

from ray_mono.object_manager.seams import Prepare
from ray_mono.object_manager.spill_files import Extent, SpillFile, aligned

WRITE_DELAY_S = (0.001, 0.2)
READ_DELAY_S = (0.0005, 0.02)
FULL_PROBABILITY = 0.1
UNREADABLE = OSError(errno.EIO, "the simulated disk cannot be read")
UNREADABLE_IS_LOGGED = f"cannot be read from disk: {UNREADABLE}"


class SimSpillDisk:
    """Implements SpillDisk."""

    num_directories = 2
    num_external = 0

    def __init__(self, rng: random.Random, folder: str, name: str, unreadable_probability: float) -> None:
        self._rng = rng
        self._folder = folder
        self._name = name
        self._files: set[SpillFile] = set()
        self._unreadable_probability = unreadable_probability

    @property
    def num_files(self) -> int:
        return len(self._files)

    def path(self, file: SpillFile) -> str:
        """The same in all runs: see Machine.open_file."""
        return f"/sim/{self._base(file)}"

    async def write(self, extents: Sequence[Extent], contents: Sequence[memoryview]) -> None:
        # As it is when the write begins: the store promises that it stays so.
        content = bytearray(extents[-1].offset + aligned(extents[-1].size_bytes))
        for extent, part in zip(extents, contents, strict=True):
            content[extent.offset : extent.offset + extent.size_bytes] = part
        await self._write(extents[0].file, content)

    async def _write(self, file: SpillFile, content: bytes) -> None:
        await asyncio.sleep(self._rng.uniform(*WRITE_DELAY_S))
        if self._rng.random() < FULL_PROBABILITY:
            raise OSError(errno.ENOSPC, "the simulated disk is full")
        self._store(file, content)

    async def read(self, extent: Extent, start: int, target: memoryview, prepare: Prepare) -> None:
        await self._begin_to_read()
        at = extent.offset + start
        target[:] = self._content(extent.file)[at : at + len(target)]

    async def check(self, extent: Extent) -> None:
        await self._begin_to_read()
        self._content(extent.file)

    async def _begin_to_read(self) -> None:
        await asyncio.sleep(self._rng.uniform(*READ_DELAY_S))
        if self._unreadable_probability and self._rng.random() < self._unreadable_probability:
            raise OSError(*UNREADABLE.args)

    async def copy(self, sources: Sequence[Extent], targets: Sequence[Extent]) -> None:
        files = [self._content(source.file) for source in sources]
        parts = [
            memoryview(file)[source.offset : source.offset + source.size_bytes]
            for file, source in zip(files, sources, strict=True)
        ]
        await self.write(targets, parts)

    async def make(self, file: SpillFile, size_bytes: int) -> None:
        await self._write(file, bytes(size_bytes))

    async def made(self, file: SpillFile) -> None:
        pass

    def map(self, file: SpillFile, size_bytes: int) -> memoryview:
        with open(self._real_path(file), "r+b") as opened:
            return memoryview(mmap.mmap(opened.fileno(), size_bytes))

    async def remove(self, file: SpillFile) -> None:
        await asyncio.sleep(self._rng.uniform(*READ_DELAY_S))
        if file in self._files:  # else the machine is gone
            self._files.remove(file)
            os.unlink(self._real_path(file))

    def close(self) -> None:
        for file in self._files:
            os.unlink(self._real_path(file))
        self._files.clear()

    def _base(self, file: SpillFile) -> str:
        return f"spilled.{self._name}.{file.directory}.{file.number}"

    def _real_path(self, file: SpillFile) -> str:
        return os.path.join(self._folder, self._base(file))

    def _store(self, file: SpillFile, content: bytes) -> None:
        with open(os.open(self._real_path(file), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), "wb") as opened:
            opened.write(content)
        self._files.add(file)

    def _content(self, file: SpillFile) -> bytes:
        with open(self._real_path(file), "rb") as opened:
            return opened.read()
