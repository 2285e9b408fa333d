"""The node with most of a task's arguments."""

from __future__ import annotations

from ray_mono.common.scheduling.argument_nodes import node_with_most
from ray_mono.protobuf import common_pb2


def arg(size_bytes: int, *node_ids: bytes) -> common_pb2.TaskArg:
    return common_pb2.TaskArg(size_bytes=size_bytes, location_node_ids=node_ids)


def test_the_node_with_most_bytes_is_chosen_whatever_the_count() -> None:
    args = [arg(10, b"a"), arg(10, b"a"), arg(25, b"b"), arg(90, b"here")]
    assert node_with_most(args, except_node_id=b"here") == b"b"
    assert node_with_most([*args, arg(10, b"a", b"c")], except_node_id=b"here") == b"a"


def test_of_equals_the_preferred_node_is_chosen() -> None:
    args = [arg(1, b"b", b"a", b"c"), arg(2, b"d")]
    assert node_with_most(args[:1], preferred_node_id=b"b") == b"b"
    assert node_with_most(args, preferred_node_id=b"b") == b"d"


def test_ties_go_to_the_lowest_id_and_where_nobody_else_has_any_there_is_none() -> None:
    assert node_with_most([arg(1, b"b"), arg(1, b"a")], except_node_id=b"here") == b"a"
    assert node_with_most([arg(1, b"here"), common_pb2.TaskArg()], except_node_id=b"here") is None
