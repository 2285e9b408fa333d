"""The doors of this component that a simulation replaces: the mapped file, the disk, and the streams between
nodes.

Time, channels and servers come through `common.world` and `rpc.surface` like everyone's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ray_mono.object_manager.keys import NodeKey, ObjectKey, WorkerKey
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


class UnreadableSource(Exception):  # noqa: N818 (it tells whose fault an OSError is)
    """What was to be copied cannot be read."""

    def __init__(self, source: Extent, error: OSError) -> None:
        super().__init__(str(error))
        self.source = source
        self.error = error


class SpillDisk(Protocol):
    """The files of what is spilled. Nothing here holds the loop up. All raise OSError."""

    num_directories: int
    num_external: int
    """So many, from the first on, are elsewhere: clients map nothing there. If there are any, one more has
    what has to be mapped."""

    def path(self, file: SpillFile) -> str:
        """Where clients find it; empty where there is no file."""
        ...

    async def write(self, extents: Sequence[Extent], contents: Sequence[memoryview]) -> None:
        """Makes a file of these objects. When it returns, the disk has them. Where it fails, or there is
        hardly room left (ENOSPC), nothing stays."""
        ...

    async def read(self, extent: Extent, start: int, target: memoryview, prepare: Prepare) -> None:
        """Fills `target` from byte `start` of an object on, with what was written. prepare(start, count) may
        be called first, from another thread, for parts of the target that are written next."""
        ...

    async def check(self, extent: Extent) -> None:
        """Looks whether an object can be read in place. What `write` or `copy` wrote is looked at whole; of
        what a client wrote, whether it is the same file."""
        ...

    async def copy(self, sources: Sequence[Extent], targets: Sequence[Extent]) -> None:
        """Makes a file of what lies in others. As `write`, but within one directory up to the last byte of
        the disk: such a copy makes room there. Raises UnreadableSource as well."""
        ...

    async def make(self, file: SpillFile, size_bytes: int) -> None:
        """Makes a file of this size, for a client to write. As `write`."""
        ...

    async def made(self, file: SpillFile) -> None:
        """The client has written it, and nobody writes it any more."""
        ...

    def map(self, file: SpillFile, size_bytes: int) -> memoryview:
        """The bytes of a file that was made, writable."""
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


class NodeGone(TransferFailed):
    """The node is dead, or the GCS, which is there, has never told of it."""


class SentOn(Exception):  # noqa: N818 (an answer)
    """The peer sends the object to others already: this one passes it on."""

    def __init__(self, node_id: NodeKey) -> None:
        super().__init__(f"node {node_id.hex()} passes the object on")
        self.node_id = node_id


@dataclass(frozen=True, slots=True)
class Fetch:
    """What is asked of a peer."""

    object_id: ObjectKey
    max_bytes: int = 0
    """Of a larger object only the size is asked for. 0: any size."""
    avoided: tuple[NodeKey, ...] = ()
    """These did not give it."""
    is_sent_on: bool = False
    goes_on: bool = False
    """The peer has just given other bytes of it."""


class Arrival(Protocol):
    """A copy that is on its way here, for those to whom it is passed on."""

    is_over: bool
    """It is whole, or was given up: no more is to be had from here."""

    @property
    def received_bytes(self) -> int:
        """All before this byte is here."""
        ...

    async def until_described(self, timeout_s: float) -> ObjectHeader | None:
        """What it is, once it has memory. None: it is over, or it took too long."""
        ...

    async def until_beyond(self, offset: int) -> None:
        """Until more than `offset` bytes are here, or it is over."""
        ...

    def bytes_so_far(self, start: int, end: int) -> memoryview:
        """These have arrived, and it is not over."""
        ...


class Landing(Protocol):
    """Where a fetch puts its bytes: a part of the object, or all of it."""

    @property
    def at(self) -> int:
        """The first byte that is not here; a fetch starts there."""
        ...

    @property
    def end(self) -> int | None:
        """Where the fetch ends. None: where the object does, and `place` has not told yet."""
        ...

    def arrived(self, count: int) -> None:
        """So many bytes more are here."""
        ...

    def arrived_in_thread(self, count: int) -> None:
        """The same, told by the only thread that writes them."""
        ...

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

    async def fetch(self, peer: PeerAddress, fetch: Fetch, landing: Landing) -> bool:
        """Brings what its landing wants of an object. Raises TransferFailed, SentOn, and what place() raises.

        False where the landing had no room, or the object is larger than max_bytes. Then place() has been
        called all the same, and nothing was awaited after it. Once cancelled, not a byte is written any more.
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
