"""What this node and this process hold, for tests and for people who look for what keeps memory."""

from __future__ import annotations

from ray_mono.core_worker.process import current
from ray_mono.protobuf import object_manager_pb2


def store_stats() -> object_manager_pb2.StoreStats:
    """Numbers of this node's plasma store. Raises RaySystemError where this process is not connected."""
    return current.require().store_stats()


def num_references() -> int:
    """How many objects this process owns or borrows. Raises as store_stats does."""
    return current.require().reference_counts()
