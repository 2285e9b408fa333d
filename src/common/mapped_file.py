"""A file of shared memory mapped for writing, whose pages this process touches many at a time.

The first touch of a page costs a process a trap into the kernel, and the very first of all the clearing of
the page too: one by one that is several times slower than the copy that follows. `prepare` has the kernel do
it for a range in one call, without the interpreter's lock, so that several threads can share it. What is
prepared stays so: the files of this runtime never give pages back.

A range has to have memory behind it (the store sees to that before it grants one). Where it has none, prepare
does nothing, unlike a write, of which the process would die.
"""

from __future__ import annotations

import errno
import functools
import mmap
import os
import weakref
from collections.abc import Callable
from typing import Any

# Linux 5.14 and later; Python's mmap has no name for it yet.
_MADV_POPULATE_WRITE = 23
_MAP_FAILED = (1 << 64) - 1
# What is remembered as prepared or not: 4 KiB of notes per GiB. Ranges are rounded outwards to it.
PIECE_BYTES = 256 << 10
_YES = b"\1"


class MappedFile:
    """The first size_bytes of a file. Its methods may be called from any thread."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        """Raises OSError, ValueError as mmap does. The descriptor may be closed afterwards."""
        self.size_bytes = size_bytes
        self._map = mmap.mmap(fd, size_bytes)
        self.view = memoryview(self._map)
        self._prepared = bytearray(-(-size_bytes // PIECE_BYTES))
        self._populate: Callable[[int, int], int] | None = None

    def prepared_bytes(self, offset: int, length_bytes: int) -> int:
        """How much of [offset, offset + length_bytes) can be written without a trap, from its start on."""
        end = offset + length_bytes
        piece = self._prepared.find(0, offset // PIECE_BYTES, -(-end // PIECE_BYTES))
        return length_bytes if piece < 0 else max(0, piece * PIECE_BYTES - offset)

    def prepare(self, offset: int, length_bytes: int) -> None:
        """Touches the pages of the range, as far as they are not. Nothing is written to them."""
        done_bytes = self.prepared_bytes(offset, length_bytes)
        if done_bytes == length_bytes:
            return
        first, last = (offset + done_bytes) // PIECE_BYTES, -(-(offset + length_bytes) // PIECE_BYTES)
        start = first * PIECE_BYTES
        error = self._populated(start, min(last * PIECE_BYTES, self.size_bytes) - start)
        if error == errno.EINVAL:  # an older kernel: page by page, then
            self._prepared = bytearray(_YES * len(self._prepared))
        elif not error:
            self._prepared[first:last] = _YES * (last - first)

    def close(self) -> None:
        """Slices of the view that are alive keep the mapping until they, or the process, end."""
        self.view.release()
        try:
            self._map.close()
        except BufferError:
            pass

    def _populated(self, offset: int, length_bytes: int) -> int:
        """The error number, 0 for none."""
        if self._populate is None:
            self._populate = _populate_function(self._map)
        return self._populate(offset, length_bytes)


def bytes_of(fd: int, size_bytes: int, offset: int) -> memoryview:
    """Bytes of a file, read-only, mapped until nothing refers to them. Python's own mappings keep a
    descriptor each, of which a process has few. Raises OSError."""
    import ctypes

    libc = _libc()
    length = ctypes.c_size_t(size_bytes)
    address = libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(offset))
    if address == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    memory = (ctypes.c_ubyte * size_bytes).from_address(address)
    weakref.finalize(memory, libc.munmap, ctypes.c_void_p(address), length).atexit = False
    return memoryview(memory).cast("B").toreadonly()


@functools.cache
def _libc() -> Any:
    """ctypes is imported late: it costs milliseconds."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    return libc


def _populate_function(mapping: mmap.mmap) -> Callable[[int, int], int]:
    """mmap.madvise would keep the interpreter's lock meanwhile."""
    import ctypes

    libc = _libc()
    base = ctypes.addressof(ctypes.c_char.from_buffer(mapping))

    def populate(offset: int, length_bytes: int) -> int:
        address, length = ctypes.c_void_p(base + offset), ctypes.c_size_t(length_bytes)
        return ctypes.get_errno() if libc.madvise(address, length, _MADV_POPULATE_WRITE) else 0

    return populate
