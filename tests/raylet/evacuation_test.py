"""Which objects leave a node together, and for where."""

from __future__ import annotations

from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import raylet_pb2
from ray_mono.raylet.evacuation import BATCH_BYTES_MAX, BATCH_OBJECTS_MAX, batches, by_room


def take(size_bytes: int) -> raylet_pb2.ObjectToTake:
    return raylet_pb2.ObjectToTake(size_bytes=size_bytes)


def node(name: bytes, free_bytes: int) -> NodeSnapshot:
    free = ResourceSet.from_units({"object_store_memory": free_bytes})
    return NodeSnapshot(name, "host", 1, free, free)


def sizes(objects: list[raylet_pb2.ObjectToTake]) -> list[list[int]]:
    return [[item.size_bytes for item in batch] for batch in batches(objects)]


def test_small_objects_leave_together_and_large_ones_alone() -> None:
    half, large = BATCH_BYTES_MAX // 2, BATCH_BYTES_MAX * 3
    assert sizes([take(1), take(2)]) == [[1, 2]]
    assert sizes([take(half), take(half), take(half)]) == [[half, half], [half]]
    assert sizes([take(1), take(large), take(1)]) == [[1], [large], [1]]
    assert [len(batch) for batch in batches([take(0)] * (BATCH_OBJECTS_MAX + 1))] == [BATCH_OBJECTS_MAX, 1]
    assert batches([]) == []


def test_nodes_with_room_come_first_and_then_those_with_most_of_it() -> None:
    nodes = [node(b"a", 1), node(b"b", 100), node(b"c", 3)]
    assert [one.node_id for one in by_room(nodes, 50, b"key")] == [b"b", b"c", b"a"]


def test_batches_take_turns_among_nodes_with_room() -> None:
    nodes = [node(b"a", 100), node(b"b", 100)]
    first = {by_room(nodes, 50, bytes([number]) * 8)[0].node_id for number in range(20)}
    assert first == {b"a", b"b"}
