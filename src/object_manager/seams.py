"""The doors of this component that a simulation replaces: the mapped file, the disk, and the streams between
nodes.

Time, channels and servers come through `common.world` and `rpc.surface` like everyone's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ray_mono.object_manager.keys import ObjectKey, WorkerKey
from ray_mono.object_manager.spill_files import Extent, SpillFile

Prepare = Callable[[int, int], None]
"""(start, count): makes these bytes of a target ready to be written."""


class SharedMemory(Protocol):
    """The bytes of the store."""

    path: str
    """What clients map; empty where there is no file."""
    backed_bytes: int
    """[0, backed_bytes) has pages: touching them cannot fail."""

    def extend(self, until_bytes: int) -> bool:
        """Backs everything below until_bytes.

        False, with nothing changed, where the system has no memory left for it.
        """
        ...

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes [offset, offset + length), writable; backed ones only."""
        ...

    def prepare(self, offset: int, length: int) -> None:
        """Touches these pages, all at once, so that writing them is fast.

        Backed ones only. From any thread.
        """
        ...

    def close(self) -> None:
        """Gives everything back, the file's name included."""
        ...


class SpillDisk(Protocol):
    """The files of what is spilled. Nothing here holds the loop up. All raise OSError."""

    num_directories: int

    def path(self, file: SpillFile) -> str:
        """Where clients find it; empty where there is no file."""
        ...

    async def write(self, file: SpillFile, parts: Sequence[memoryview]) -> None:
        """Makes a file of these bytes. When it returns, the disk has them. Where it fails, or there is hardly
        room left (ENOSPC), nothing stays."""
        ...

    async def read(self, extent: Extent, start: int, target: memoryview, prepare: Prepare) -> None:
        """Fills `target` from byte `start` of an object on. prepare(start, count) may be called first, from
        another thread, for parts of the target that are written next."""
        ...

    async def copy(self, sources: Sequence[Extent], targets: Sequence[Extent]) -> None:
        """Makes a file of what lies in others. As `write`, but up to the last byte of the disk."""
        ...

    async def make(self, file: SpillFile, size_bytes: int) -> None:
        """Makes a file of this size, for a client to write. As `write`."""
        ...

    async def remove(self, file: SpillFile) -> None: ...

    def close(self) -> None:
        """Removes everything."""
        ...


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where another node's object manager answers transfers."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ObjectHeader:
    """What a holder says about an object before its bytes."""

    size_bytes: int
    metadata: bytes
    owner: WorkerKey


class TransferFailed(Exception):
    """The peer did not give the object (all of it), or could not be reached; the message says which."""


class Landing(Protocol):
    """Where a fetch puts its bytes."""

    received_bytes: int
    """How much is here already; a fetch starts there and adds to it."""

    def place(self, header: ObjectHeader) -> memoryview | None:
        """Called once per fetch, before the first byte: the object's memory, or None where there is no room.

        Raises TransferFailed where the header contradicts an earlier one.
        """
        ...

    def prepare(self, start: int, count: int) -> None:
        """Makes bytes [start, start + count) of the object's memory ready to be written. From any thread."""
        ...


class TransferStreams(Protocol):
    """Streams to other object managers."""

    sent_bytes: int
    """Object bytes only, since the start."""
    received_bytes: int

    async def fetch(self, peer: PeerAddress, object_id: ObjectKey, max_bytes: int, landing: Landing) -> bool:
        """Brings the rest of the object to its landing. Raises TransferFailed, and what place() raises.

        False where the landing had no room, or the object is larger than max_bytes (0: any size). Then
        place() has been called all the same, and nothing was awaited after it. Once cancelled, not a byte is
        written any more.
        """
        ...

    async def free(self, peer: PeerAddress, object_ids: Sequence[ObjectKey]) -> None:
        """Frees the peer's copies. Raises TransferFailed."""
        ...

    def drop(self, peer: PeerAddress) -> None:
        """The peer is gone for good: its connections are of no use."""
        ...

    async def close(self) -> None:
        """Ends every connection."""
        ...
