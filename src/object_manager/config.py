"""Settings of an object manager: one value, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

MIB = 1024 * 1024


@dataclass(frozen=True)
class ObjectManagerConfig:
    """Limits and bounds. Sizes are bytes, times seconds."""

    capacity_bytes: int
    """Of the store; the file is never longer."""
    create_timeout_s: float = 10.0
    """How long a Create waits in a full store before it fails: time for readers to let go. 0: not at all."""
    create_to_disk_s: float = 1.0
    """How long a Create waits where a disk has room, before its client writes the object there. Longer than
    clients keep pins that nobody needs."""
    pull_memory_timeout_s: float = 60.0
    """How long a copy from another node waits for room. Longer than a Create: others read arguments."""
    overtaken_max_s: float = 15.0
    """A Get of lower priority that has waited so long is overtaken no more. Well below pull_memory_timeout_s:
    it must not fail because others came."""
    copy_to_disk_after_s: float = 1.0
    """A get whose copies wait so long for room has those that find none written to files, and reads them
    there. Most objects are read for less; and a file is not much slower than memory."""
    elsewhere_timeout_s: float = 2.0
    """How long a copy waits for room for who can as well go to a node that has it. Longer than most tasks
    read arguments."""
    unknown_node_timeout_s: float = 5.0
    """How long a pull waits for the GCS to tell of a node that an owner has already named."""
    connect_timeout_s: float = 5.0
    """For a connection to another object manager, handshake included."""
    idle_transfer_timeout_s: float = 15.0
    """A stream on which no byte moved for this long is given up, and the next holder tried. Of a large object
    that is noticed after up to twice as long. Longer than seal_timeout_s."""
    seal_timeout_s: float = 10.0
    """How long another node's fetch of an object that is being written here waits for the seal."""
    pulls_active_max: int = 8
    """Copies that arrive at a time: enough to fill a network, few enough that each has its memory soon."""
    connections_per_peer_max: int = 4
    """Streams kept open to one node."""
    range_bytes: int = 8 * MIB
    """Of an object that several nodes hold so much is asked of one of them at a time: few enough that little
    is lost when it fails, and so many that a network is not idle between two."""
    holders_per_object_max: int = 4
    """Nodes that are asked for one object at a time."""
    slow_range_s: float = 3.0
    """A holder that has not brought such a range after so long is left, where another one has time."""
    receivers_per_object_max: int = 2
    """Nodes that one object is sent to at a time. Who asks meanwhile is sent on to them."""
    sent_on_bytes_min: int = MIB
    """Smaller objects are sent to all who ask: that is over sooner than another question."""
    backing_step_bytes: int = 16 * MIB
    """Pages are taken from the system in steps of this size (2 ms each); others are served between two."""
    backing_ahead_bytes: int = 64 * MIB
    """So much memory is kept ready beyond what is in use: a Create seldom waits for the kernel."""
    send_slice_bytes: int = 4 * MIB
    """A send of this size at a time: the loop serves others between two."""
    frees_pending_max: int = 1_000_000
    """Object ids that wait to be freed on another node. More are given up: copies can be evicted."""
    dead_owners_max: int = 10_000
    """Workers remembered as dead, so that an object of theirs that is finished late goes at once."""
    min_spilling_size_bytes: int = 100 * 1000 * 1000
    """Objects go to disk in files of at least this size, as a disk is slow at many small ones. 0: one by
    one."""
    file_share: float = 0.25
    """Share of a small store that such a file is at most: the rest is filled while it is written."""
    files_ahead: int = 2
    """Once the threshold was passed so many files more are written: the disk does not wait for the next."""
    max_fused_object_count: int = 2000
    """Objects in one file."""
    max_io_workers: int = 4
    """Threads that write, and as many that read: a disk that is asked several things at a time is faster."""
    object_spilling_threshold: float = 0.8
    """Share of the store that only writing frees: more is written ahead of need. 0: everything."""
    local_fs_capacity_threshold: float = 0.95
    """Share of a file system up to which it is filled: the rest is left to its other users."""
    sparse_share: float = 0.7
    """What is left of a file is copied elsewhere when so much of it is dead."""
    spill_retry_s: float = 1.0
    """A directory in which nothing could be written is tried again so much later."""
    verbose_spill_logs_bytes: int = 2 << 30
    """People are told when so much has been written to disk, and each time that it has doubled; 0: never."""
    external_part_bytes: int = 16 * MIB
    """Parts in which a file goes to a storage elsewhere. S3 takes 10,000 at most, of 5 MiB or more."""
    external_check_timeout_s: float = 20.0
    """How long a storage elsewhere may take to write a little, read it and remove it when a node starts."""
    external_retry_s: float = 60.0
    """How long a read from a storage elsewhere that fails is tried again: what it cannot give is lost."""

    def __post_init__(self) -> None:
        if self.capacity_bytes < 64:
            raise ValueError(f"capacity_bytes must be at least 64, got {self.capacity_bytes}")
        for name in (
            "pulls_active_max",
            "connections_per_peer_max",
            "range_bytes",
            "holders_per_object_max",
            "receivers_per_object_max",
            "backing_step_bytes",
            "send_slice_bytes",
            "frees_pending_max",
            "dead_owners_max",
            "max_fused_object_count",
            "max_io_workers",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "create_timeout_s",
            "create_to_disk_s",
            "pull_memory_timeout_s",
            "overtaken_max_s",
            "copy_to_disk_after_s",
            "elsewhere_timeout_s",
            "unknown_node_timeout_s",
            "connect_timeout_s",
            "idle_transfer_timeout_s",
            "seal_timeout_s",
            "slow_range_s",
            "backing_ahead_bytes",
            "sent_on_bytes_min",
            "min_spilling_size_bytes",
            "object_spilling_threshold",
            "spill_retry_s",
            "verbose_spill_logs_bytes",
            "external_check_timeout_s",
            "external_retry_s",
            "files_ahead",
        ):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")
        if self.external_part_bytes < 5 * MIB:
            raise ValueError(f"external_part_bytes must be at least 5 MiB, got {self.external_part_bytes}")
        if self.object_spilling_threshold > 1:
            raise ValueError(
                f"object_spilling_threshold must be at most 1, got {self.object_spilling_threshold}"
            )
        for name in ("file_share", "local_fs_capacity_threshold", "sparse_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be more than 0 and at most 1, got {getattr(self, name)}")
