"""Which node has most of a task's arguments."""

from __future__ import annotations

from collections.abc import Iterable

from ray_mono.protobuf import common_pb2


def node_with_most(
    args: Iterable[common_pb2.TaskArg], except_node_id: bytes = b"", preferred_node_id: bytes = b""
) -> bytes | None:
    """The id of the node with most bytes of them in its store, of all but one; None where no other is known
    to have any. Ties go to the preferred node, then to the lowest."""
    sizes: dict[bytes, int] = {}
    for arg in args:
        for node_id in arg.location_node_ids:
            if node_id != except_node_id:
                sizes[node_id] = sizes.get(node_id, 0) + arg.size_bytes
    return min(
        sizes, key=lambda node_id: (-sizes[node_id], node_id != preferred_node_id, node_id), default=None
    )
